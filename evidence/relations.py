"""Do Φ2d and Φ3d help? Gap, dipole and extent of QM9's molecules, with and without them."""

from __future__ import annotations

from functools import partial

import numpy as np

from collamo.data.qm9 import HARTREE
from evidence.claim import Claim, Metrics, Run, Workplace
from evidence.molecules import molecules_of, prepared, qm9_sample
from evidence.probe import Budget, Molecules, predictions
from evidence.relation_report import report_relations
from evidence.relation_variants import relation_overrides, relation_runs

#: What is predicted, its unit, and the factor from QM9's.
TARGETS = {"gap": ("eV", HARTREE), "mu": ("D", 1.0), "r2": ("a0²", 1.0)}
_TINY_TARGETS = ("molecular_weight", "logp", "tpsa")  # in place of these, computed by RDKit
# Molecules that are drawn from QM9 (tiny: the first of NCI); steps and batch.
_SIZES = {
    "tiny": (60, Budget(steps=2, batch=8)),
    "cpu": (7_200, Budget(steps=600, batch=32)),
    "gpu": (40_000, Budget(steps=2000, batch=256)),
}


def measure(run: Run, place: Workplace) -> Metrics:
    """Train one probe; mean absolute errors on test molecules in the units of `TARGETS`."""
    count, budget = _SIZES[place.size]
    train, test = _molecules(place, count)
    overrides = relation_overrides(run)
    predicted = predictions(train, test, overrides, budget, int(run["seed"]), place.device)
    errors = np.abs(predicted - test.values)
    maes = {f"mae_{n}": round(float(x), 5) for n, x in zip(TARGETS, errors.mean(0), strict=True)}
    return {
        "train": len(train.values),
        "test": len(test.values),
        "steps": budget.steps,
        "batch": budget.batch,
        **maes,
        "details": {"errors": errors.astype(np.float32)},
    }


def _molecules(place: Workplace, count: int) -> tuple[Molecules, Molecules]:
    """Return (train, test)."""
    folder = place.data / f"qm9-{count}"
    if place.size == "tiny":
        data = prepared(folder, lambda: "nci", limit=count)
        return molecules_of(data, "train", _TINY_TARGETS), molecules_of(data, "test", _TINY_TARGETS)
    data = prepared(folder, partial(qm9_sample, folder.with_suffix(".xyz"), count))
    factors = np.array([factor for _, factor in TARGETS.values()])
    sets = (molecules_of(data, split, list(TARGETS)) for split in ("train", "test"))
    train, test = (Molecules(each.features, each.values * factors, each.units) for each in sets)
    return train, test


CLAIM = Claim(
    name="relations",
    title="Φ2d and Φ3d help",
    paper="Table 6: attention over atoms with both relations beats attention that lacks either or "
    "both. Its figures are not known to us; here is the direction alone.",
    runs=relation_runs,
    measure=measure,
    report=partial(report_relations, targets=("gap [eV]", "dipole [D]", "⟨R²⟩ [a0²]")),
)
