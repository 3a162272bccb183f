"""How the prompts of the trained model are made."""

import pytest

from collamo.inference.serve.engine import Prompt


@pytest.fixture(scope="session")
def prompt(assistant):
    """``prompt(question, molecule, views)``: as the server makes it."""

    def make(question, molecule="CCO", views=("1d", "2d", "3d")):
        features = assistant.features([molecule])
        text = assistant.processor.prompt(question)
        ids = assistant.processor(text, [features], modalities=views)["input_ids"][0]
        return Prompt(tuple(ids.tolist()), tuple(features), tuple(views))

    return make
