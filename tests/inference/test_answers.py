"""The one place where a model answers."""

import math

import pytest
import torch
from trained import trained

from collamo.errors import CollamoError
from collamo.inference.answers import answer
from collamo.model import load_checkpoint


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_no_answer_runs_past_the_last_position(monkeypatch):
    model, processor = load_checkpoint(trained().checkpoint)
    question = "How many rings does it have?"
    prompt = processor(processor.prompt(question), ["C"])["input_ids"].shape[1]
    lengths = []

    def no_end(**inputs):  # an untrained model may stop by itself
        lengths.append(inputs["max_new_tokens"])
        return inputs["input_ids"]

    monkeypatch.setattr(model, "generate", no_end)
    for positions, longest in ((prompt + 3, 3), (prompt + 100, 8)):
        processor.tokenizer.model_max_length = positions
        answer(model, processor, [("C", question)], max_new_tokens=8)
        assert lengths.pop() == longest


@pytest.fixture
def opened():
    return load_checkpoint(trained().checkpoint)


def test_infinite_weights_are_an_error_and_no_empty_answer(opened):
    model, processor = opened
    with torch.no_grad():
        next(model.model.mol_projector.parameters()).fill_(math.inf)
    with pytest.raises(CollamoError, match="molecule 'CCO': the model's numbers are NaN"):
        answer(model, processor, [("CCO", "How many rings are in it?")])


def test_the_molecule_that_the_model_cannot_bear_is_named(opened):
    """Others of its batch have finite numbers."""
    model, processor = opened

    def poison(module, inputs, tokens):
        tokens = tokens.clone()
        tokens[1] = math.nan
        return tokens

    pairs = [(smiles, "How many rings are in it?") for smiles in ("CCO", "CCN", "CCC")]
    assert len(answer(model, processor, pairs)) == 3
    model.model.mol_projector.register_forward_hook(poison)
    with pytest.raises(CollamoError, match="molecule 'CCN': "):
        answer(model, processor, pairs)
