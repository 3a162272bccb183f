"""What the rows of `language_model` say: who is better, by intervals that do not overlap."""

import datetime
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from collamo.evaluation.examine.reliance import MODEL, WRONG_MOLECULE
from collamo.evaluation.examine.verdicts import MOST_COMMON
from collamo.training import stages
from evidence.claim import Workplace
from evidence.language_model import FROZEN, SMILES, SOFT_TOKENS, _trained, report, runs, scores_of
from evidence.ledger import Ledger

NOW = datetime.datetime.now(datetime.UTC)


def estimate(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def columns(mine, wrong, common):
    values = {MODEL: mine, WRONG_MOLECULE: wrong, MOST_COMMON: common}
    tasks = {"caption": "bleu4", "measured": "scaled_error"}
    return scores_of(
        {
            task: {
                name: {
                    "counts": {"rows": 9},
                    "metrics": {metric: estimate(value)},
                    "change": None if name == MODEL else estimate(value - mine),
                }
                for name, value in values.items()
            }
            for task, metric in tasks.items()
        }
    )


def finding(tmp_path, *rows):
    ledger = Ledger("language_model", tmp_path)
    for reader, seed, values in rows:
        run = {"size": "cpu", "source": "PubChem", "reader": reader, "seed": seed}
        metrics = {"train": 9, "steps": 2, **columns(*values)}
        ledger.add(run, metrics, started=NOW, device="cpu")
    return report(ledger)


def test_more_bleu_and_less_error_is_better(tmp_path):
    found = finding(tmp_path, (SOFT_TOKENS, 0, (0.5, 0.3, 0.5)), (SMILES, 0, (0.6, 0.3, 0.5)))
    assert found.verdict == (
        "Captions: soft tokens: do not differ clearly from the commonest answer, beat the wrong "
        "molecule, lose to SMILES as text (1 seed). Measured values: soft tokens: do not differ "
        "clearly from the commonest answer, lose to the wrong molecule, beat SMILES as text "
        "(1 seed)."
    )
    assert found.table.count("\n| PubChem |") == 5  # two readers, a wrong molecule each, one answer
    assert "| PubChem | most common answer | 0 | 0.5 [0.49, 0.51] | – | 0.5" in found.table


def test_seeds_that_disagree_are_said_to(tmp_path):
    found = finding(tmp_path, (SOFT_TOKENS, 0, (0.5, 0.3, 0.4)), (SOFT_TOKENS, 1, (0.5, 0.6, 0.4)))
    assert "differ by seed from the wrong molecule (2 seeds)." in found.verdict
    assert "SMILES as text" not in found.verdict


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_a_deadline_cuts_qm9_first(size):
    sources = [run["source"] for run in runs(size)]
    assert sources == sorted(sources)
    assert {run["reader"] for run in runs(size)[:3]} == {FROZEN, SOFT_TOKENS, SMILES}


def test_readers_that_begin_with_the_same_stage_take_turns(tmp_path, monkeypatch):
    """Of two runs side by side one trains the first stage, and the other waits for it."""
    at_work, side_by_side = [], []

    def slow(recipe, *, resume=False):
        at_work.append(recipe.output)
        time.sleep(0.1)
        side_by_side.append(at_work.count(recipe.output))
        at_work.remove(recipe.output)
        return Path(recipe.output) / "final"

    monkeypatch.setattr(stages, "train", slow)
    place, data = Workplace("cpu", "cpu", tmp_path), SimpleNamespace(folder=tmp_path / "data")
    with ThreadPoolExecutor() as pool:
        trainings = [
            pool.submit(
                *(_trained, {"source": "NCI", "reader": reader, "seed": 0}),
                *(place, data, tmp_path / "new" / "run"),
            )
            for reader in (FROZEN, SOFT_TOKENS)
        ]
    assert [training.result()[0].parent.name for training in trainings] == ["stage1", "stage2"]
    assert side_by_side == [1, 1, 1]  # the first stage twice, the second once
