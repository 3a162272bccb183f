"""vLLM, as the server's engine, answers as the model itself does (`make test-vllm`, no part of CI).

A model of random weights whose heads are 32 wide: vLLM serves no narrower ones, such as those of
16 of the demo's model.
"""

import asyncio
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="make test-vllm")

import collamo
from collamo.inference.serve.engine import Prompt, Sampling
from collamo.inference.serve.vllm_engine import VllmEngine
from collamo.model import train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "model"))
from model_helpers import build

QUESTIONS = ["How many rings?", "What is its weight?", "Is it?"]
MOLECULES = ["CCO", "c1ccccc1O", "CC(=O)OCCCC", "CC.[Na+]", "C[Se]C"]  # of different sizes
PAIRS = [(molecule, question) for molecule in MOLECULES for question in QUESTIONS]
TOKENS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["How many hydroxyl groups? 12.5", "What is its weight? -3"] * 9)
    model, processor = build(
        tokenizer, hidden_size=128, num_attention_heads=4, num_key_value_heads=4
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def assistant(folder):
    return collamo.load(folder)


@pytest.fixture(scope="module")
def expected(assistant):
    return [assistant.ask(*pair, max_new_tokens=TOKENS) for pair in PAIRS]


def test_vllm_as_the_engine(folder, assistant, expected, entry_point):
    processor = assistant.processor
    engine = VllmEngine(folder, processor)

    def prompt(molecule, question):
        features = assistant.features([molecule])
        ids = processor(processor.prompt(question), [features])["input_ids"][0]
        return Prompt(tuple(ids.tolist()), tuple(features), ("1d", "2d", "3d"))

    async def answer(pair, sampling=Sampling(TOKENS)):  # noqa: B008 - frozen
        pieces = [piece async for piece in engine.stream(prompt(*pair), sampling)]
        return "".join(piece.text for piece in pieces), pieces[-1]

    async def ask_all():
        leaving = engine.stream(prompt(*PAIRS[0]), Sampling(900))
        await anext(leaving)
        await leaving.aclose()
        answers = await asyncio.gather(*map(answer, PAIRS))
        stop = answers[0][0][3:5]
        return answers, stop, await answer(PAIRS[0], Sampling(TOKENS, stop=(stop,)))

    answers, stop, (text, last) = asyncio.run(ask_all())
    assert [text for text, _ in answers] == expected
    assert text == expected[0][: expected[0].index(stop)].rstrip()
    assert last.finish == "stop"
    engine.close()
