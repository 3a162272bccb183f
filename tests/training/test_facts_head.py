"""The auxiliary task of alignment: facts read off soft tokens."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trained import trained

from collamo.training import stages
from collamo.training.facts_head import FactsHead
from collamo.training.freezing import part_of
from collamo.training.frozen_weights import TRAINED_WEIGHTS
from collamo.training.recipe import RelationRates
from collamo.training.stages import train

NAN = math.nan


def head():
    """Two tokens of width 3; fact 0 has mean 2 and σ 1, fact 1 mean 5 and σ 0, fact 2 no value."""
    facts = [[1.0, 5.0, NAN], [3.0, 5.0, NAN], [2.0, NAN, NAN], [2.0, 5.0, NAN]]
    made = FactsHead(2, 3, [np.array(facts, np.float32)])
    torch.nn.init.zeros_(made.linear.weight)
    torch.nn.init.zeros_(made.linear.bias)
    return made


def test_the_loss_is_the_mean_squared_error_of_standardised_known_facts():
    soft = torch.randn(2, 1, 2, 3)
    spread = math.sqrt(0.5)  # of 1, 3, 2, 2
    facts = torch.tensor([[[3.0, 5.0, 7.0]], [[2.0, NAN, NAN]]])
    # A fact no training molecule has: mean 0 and the least σ, so 7 counts as the largest value, 4.
    expected = ((1 / spread) ** 2 + 0 + 4.0**2 + 0) / 4
    assert head()(soft, facts).item() == pytest.approx(expected)


def test_unknown_facts_send_no_gradient_and_no_nan():
    made, soft = head(), torch.randn(1, 1, 2, 3)
    made(soft, torch.full((1, 1, 3), NAN)).backward()
    assert made.linear.weight.grad.abs().sum() == 0
    made(soft, torch.tensor([[[4.0, NAN, NAN]]])).backward()
    assert made.linear.weight.grad.isfinite().all()
    assert made.linear.weight.grad[1:].abs().sum() == 0
    assert made.linear.weight.grad[0].abs().sum() > 0


def test_an_infinite_fact_is_unknown_to_statistics_and_loss():
    """Cut at ±4 σ it would be learned as the largest value there is; summed it would leave none."""
    facts = [[1.0, math.inf], [3.0, 2.0], [2.0, -math.inf], [2.0, 4.0]]
    made = FactsHead(2, 3, [np.array(facts, np.float32)])
    assert made.mean.tolist() == [2.0, 3.0]
    assert made.spread.isfinite().all()
    soft = torch.randn(1, 1, 2, 3)
    known = made(soft, torch.tensor([[[1.0, NAN]]]))
    assert made(soft, torch.tensor([[[1.0, math.inf]]])) == known
    assert made(soft, torch.tensor([[[1.0, -math.inf]]])) == known


@pytest.mark.slow
def test_it_trains_with_the_projector_and_is_gone_at_the_end(tmp_path):
    run = trained()
    log = [json.loads(line) for line in (run.folder / "stage1" / "log.jsonl").open()]
    assert all(entry["facts_loss"] > 0 for entry in log if "loss" in entry)
    checkpoint = load_file(run.folder / "stage1" / "checkpoint-10" / TRAINED_WEIGHTS)
    final = load_file(run.folder / "stage1" / "final" / "model.safetensors")
    assert checkpoint.keys() - final.keys() == {
        f"facts_head.{name}" for name in ("linear.weight", "linear.bias", "mean", "spread")
    }
    assert not checkpoint["facts_head.linear.bias"].eq(0).all()


@pytest.mark.slow
def test_its_gradient_reaches_the_encoders(tmp_path):
    """The same ten steps with another weight give other encoders."""
    run = trained()
    recipe = run.recipe("stage1", tmp_path / "out", "--facts_weight", "100")
    ours, theirs = (
        load_file(f / "model.safetensors") for f in (train(recipe), run.folder / "stage1" / "final")
    )
    changed = {part_of(name) for name in ours if not torch.equal(ours[name], theirs[name])}
    assert {"mol_projector", "graph_encoder", "selfies_encoder", "conformer_encoder"} <= changed


@pytest.mark.slow
def test_without_a_weight_there_is_no_head(tmp_path):
    recipe = trained().recipe("stage1", tmp_path / "out", "--facts_weight", "0")
    train(recipe)
    names = load_file(tmp_path / "out" / "checkpoint-10" / TRAINED_WEIGHTS).keys()
    assert not [name for name in names if "facts_head" in name]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_projector_can_have_a_learning_rate_of_its_own(stage, tmp_path, monkeypatch):
    rates = {}

    def watched(*args, **kwargs):
        trainer = make(*args, **kwargs)
        create = trainer.create_optimizer

        def watching(*args, **kwargs):
            optimizer = create(*args, **kwargs)
            names = {id(p): name for name, p in trainer.model.named_parameters()}
            rates.update(
                {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
            )
            return optimizer

        trainer.create_optimizer = watching
        return trainer

    make = stages.make_trainer
    monkeypatch.setattr(stages, "make_trainer", watched)
    recipe = trained().recipe(stage, tmp_path / "out", "--learning_rate", "1e-3")
    alike = {"projector_learning_rate": 1e-5, "relation_rates": RelationRates()}
    train(dataclasses.replace(recipe, **alike))
    assert {rate for name, rate in rates.items() if "mol_projector" in name} == {1e-5}
    assert {rate for name, rate in rates.items() if "mol_projector" not in name} == {1e-3}
    decayed = sum("weight" in name for name in rates)
    assert decayed > 10  # nothing was lost on the way
