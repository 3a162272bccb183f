"""What `relations` and `conformers` vary, and how their rows are compared."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from collamo.evaluation.report.page import markdown_table
from collamo.evaluation.statistics import Estimate
from evidence.claim import SIZES, Finding, Run
from evidence.intervals import relative_change
from evidence.ledger import Ledger, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The relations that attention over atoms has; every other is compared with the last.
RELATIONS = ("Φ2d + Φ3d", "Φ2d", "Φ3d", "neither")
#: The paper's softmax; ours, with sinks and learning rates of their own for the relations.
ATTENTIONS = ("softmax",)
_SEEDS = {"tiny": 2, "cpu": 3, "gpu": 5}


def relation_runs(size: str) -> list[Run]:
    """Return every set of relations with each attention and seed; both and neither come first."""
    both, *single, neither = RELATIONS
    return [
        {"attention": attention, "relations": relations, "seed": seed}
        for pair in ((both, neither), single)
        for seed, attention, relations in product(range(_SEEDS[size]), ATTENTIONS, pair)
    ]


def relation_overrides(run: Run) -> dict[str, object]:
    """Return the configuration of a run: 2D and 3D are read, and no view is hidden."""
    return {
        "modalities": ["2d", "3d"],
        "projector_config.modality_dropout": 0.0,
        "projector_config.phi2d": "Φ2d" in str(run["relations"]),
        "projector_config.phi3d": "Φ3d" in str(run["relations"]),
    }


def report_relations(ledger: Ledger, targets: Mapping[str, str]) -> Finding:
    """Compare the errors with each set of relations; `targets` are the errors' columns → unit."""
    size = next(size for size in reversed(SIZES) if ledger.rows(size=size))
    changes = {
        (attention, relations): _changes(ledger, size, attention, relations, len(targets))
        for attention, relations in product(ATTENTIONS, RELATIONS)
    }
    header = ["attention", "relations", *(f"{name} [{unit}]" for name, unit in targets.items())]
    rows = []
    for (attention, relations), change in changes.items():
        found = ledger.rows(size=size, attention=attention, relations=relations)
        cells = [_cell(found, f"mae_{name}", change, i) for i, name in enumerate(targets)]
        if found:
            rows.append([attention, relations, *cells])
    first = ledger.rows(size=size)[0]
    note = (
        f"Mean absolute error on {first['test']} test molecules after {first['steps']} steps of "
        f"{first['batch']} on {first['train']}, a figure a seed; in brackets the change against "
        "“neither” of the same attention and its 95 % interval over molecules and seeds. "
        f"Size: {size}."
    )
    table = "\n".join([*markdown_table(header, rows), "", note])
    verdict = " ".join(_verdict(changes, attention, list(targets)) for attention in ATTENTIONS)
    return Finding(table, verdict, lambda axes: _draw(axes, changes, list(targets)))


Changes = Mapping[tuple[str, str], "list[Estimate] | None"]


def _changes(
    ledger: Ledger, size: str, attention: str, relations: str, targets: int
) -> list[Estimate] | None:
    """Return the change of each error against that without relations, over the seeds of both."""
    if relations == "neither":
        return None
    found = {
        name: {
            row["seed"]: ledger.details(row)
            for row in ledger.rows(size=size, attention=attention, relations=name)
        }
        for name in (relations, "neither")
    }
    seeds = sorted(set(found[relations]) & set(found["neither"]))
    if not seeds:
        return None
    with_, without = (
        np.stack([found[name][seed]["errors"] for seed in seeds]) for name in (relations, "neither")
    )
    units = found["neither"][seeds[0]].get("units")
    return [relative_change(with_[..., i], without[..., i], units) for i in range(targets)]


def _cell(rows: list[Row], metric: str, change: list[Estimate] | None, place: int) -> str:
    values = " ".join(f"{float(row[metric]):.3g}" for row in rows)
    if change is None:
        return values
    return f"{values} ({_percent(change[place])})"


def _percent(change: Estimate) -> str:
    return f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"


def _verdict(changes: Changes, attention: str, targets: list[str]) -> str:
    """Say of which errors both relations together make a clear difference."""
    both = changes[attention, RELATIONS[0]]
    if both is None:
        return f"With {attention}: not run yet."
    lower = [f"{name} ({_percent(c)})" for name, c in zip(targets, both, strict=True) if c.high < 0]
    higher = [f"{name} ({_percent(c)})" for name, c in zip(targets, both, strict=True) if c.low > 0]
    unclear = [
        f"{name} ({_percent(c)})" for name, c in zip(targets, both, strict=True) if not c.clear
    ]
    parts = [
        f"{words} {', '.join(names)}"
        for words, names in (
            ("lower the error of", lower),
            ("raise that of", higher),
            ("make no clear difference to", unclear),
        )
        if names
    ]
    return f"With {attention}, Φ2d and Φ3d together {'; '.join(parts)}."


def _draw(axes: Axes, changes: Changes, targets: list[str]) -> None:
    """Draw the change of each error, a group of points a set of relations and attention."""
    shown = [(key, change) for key, change in changes.items() if change is not None]
    for i, name in enumerate(targets):
        places = [place + 0.2 * (i - (len(targets) - 1) / 2) for place in range(len(shown))]
        values = [change[i] for _, change in shown]
        ends = [
            [100 * (c.value - c.low) for c in values],
            [100 * (c.high - c.value) for c in values],
        ]
        axes.errorbar(places, [100 * c.value for c in values], yerr=ends, fmt="o", label=name)
    axes.axhline(0, color="grey", linewidth=0.8)
    labels = [f"{relations}\n{attention}" for (attention, relations), _ in shown]
    axes.set_xticks(range(len(shown)), labels, fontsize="small")
    axes.set_ylabel("error against neither relation [%]")
    axes.legend(frameon=False)
