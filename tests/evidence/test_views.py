"""Skill with all views and with one: by hand, and what the reports make of it."""

import datetime

import numpy as np
import pytest

from evidence import collaboration, modality_dropout
from evidence.ledger import Ledger
from evidence.views import VIEWS, Probed, skill

NOW = datetime.datetime.now(datetime.UTC)


def test_skill_is_the_share_of_the_constants_error_that_is_gone():
    errors, constant = np.array([[1.0, 0], [0, 3]]), np.array([[2.0, 1], [2, 2]])
    assert skill(errors, constant) == pytest.approx(((1 - 1 / 4) + (1 - 3 / 3)) / 2)
    assert skill(constant, constant) == 0
    known = np.array([[1.0, 0], [2, 0]])  # of the second fact the constant is right
    assert skill(known / 4, known) == pytest.approx(0.75)


def test_what_a_view_keeps_is_of_its_own_seed():
    constant = np.ones((2, 5, 3))
    errors = {"all views": 0.2 * constant, "1D alone": 0.4 * constant, "constant": constant}
    kept = Probed([0, 1], errors).kept("1D alone")
    assert (kept.value, kept.low, kept.high) == pytest.approx((0.75, 0.75, 0.75))
    assert Probed([4, 7], errors).of([7]).errors["constant"].shape == (1, 5, 3)


def add(ledger, seed, left, **run):
    """A row in which every view leaves `left` of the constant's error, one alone a tenth more."""
    rng = np.random.default_rng(seed)
    constant = rng.gamma(2, size=(40, 3))
    details = {name: (left + 0.1 * (name != "all views")) * constant for name in VIEWS}
    metrics = {"test": 40, "train": 9, "steps": 2, "batch": 2, "facts": 3}
    metrics["details"] = details | {"constant": constant}
    ledger.add({"size": "cpu", **run, "seed": seed}, metrics, started=NOW, device="cpu")


@pytest.mark.parametrize(
    ("left", "words"), [(0.6, "gains +0.200"), (0.9, "loses -0.100"), (0.8, "makes no clear")]
)
def test_the_verdict_on_co_proj_says_what_the_rows_say(tmp_path, left, words):
    ledger = Ledger("collaboration", tmp_path)
    for seed in range(3):
        add(ledger, seed, left, projector="Co-Proj")
        add(ledger, seed, 0.8, projector="a projector a view")
    finding = collaboration.report(ledger)
    assert f"With all views Co-Proj {words}" in finding.verdict
    kept = (0.9 - left) / (1 - left)
    assert f"Co-Proj keeps {100 * kept:.0f} % [" in finding.verdict
    assert finding.table.count("\n| Co-Proj | ") == 1


def test_a_verdict_without_the_other_projector(tmp_path):
    ledger = Ledger("collaboration", tmp_path)
    add(ledger, 0, 0.5, projector="Co-Proj")
    assert collaboration.report(ledger).verdict.startswith("Trained on all views, Co-Proj keeps")


def test_the_verdict_on_dropout_names_where_the_goal_is_reached(tmp_path):
    ledger = Ledger("modality_dropout", tmp_path)
    for probability, left in ((0.0, 0.7), (0.2, 0.2), (0.5, 0.3)):
        add(ledger, 0, left, probability=probability)
    verdict = modality_dropout.report(ledger).verdict
    assert "With all views skill is highest at 0.2 (0.800)." in verdict
    assert verdict.endswith("The goal of 85% is reached at 0.2, 0.5.")
