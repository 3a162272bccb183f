"""What the rows of `relations` and `conformers` say: every error against that without relations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from collamo.evaluation.report.page import markdown_table
from collamo.evaluation.statistics import Estimate
from evidence.claim import SIZES, Finding
from evidence.intervals import relative_change
from evidence.ledger import Ledger
from evidence.relation_variants import ATTENTIONS, RELATIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BOTH, _NEITHER = RELATIONS[0], RELATIONS[-1]


def report_relations(ledger: Ledger, targets: Sequence[str], remark: str = "") -> Finding:
    """Compare the errors, which are of `targets`, ``"gap [eV]"``; `remark` ends the note.

    Of the sizes that were run the largest counts.
    """
    size = next(size for size in reversed(SIZES) if ledger.rows(size=size))
    errors = {key: _errors(ledger, size, *key) for key in product(ATTENTIONS, RELATIONS)}
    names = [target.partition(" [")[0] for target in targets]
    changes = {
        key: _change(errors[key], errors[key[0], _NEITHER]) for key in errors if key[1] != _NEITHER
    }
    header = ["attention", "relations", *targets]
    rows = [
        [*key, *(_cell(by_seed, changes.get(key), i) for i in range(len(names)))]
        for key, by_seed in errors.items()
        if by_seed
    ]
    first = ledger.rows(size=size)[0]
    note = (
        f"Mean absolute error on {first['test']} rows of the test, a figure a seed, after "
        f"{first['steps']} steps of {first['batch']} on {first['train']} rows (size {size}); "
        f"in brackets the change against “{_NEITHER}” with its 95 % interval. {remark}"
    )
    sentences = [_verdict(f"With {a}", changes[a, _BOTH], names) for a in ATTENTIONS]
    for attention in ATTENTIONS[1:]:
        change = _change(errors[attention, _BOTH], errors[ATTENTIONS[0], _BOTH])
        if change is not None:
            start = f"Both relations there, {attention} instead of {ATTENTIONS[0]}"
            sentences.append(_sentence(start, change, names))
    table = "\n".join([*markdown_table(header, rows), "", note.strip()])
    summary = "; ".join(f"{a}: {_in_short(changes[a, _BOTH], names)}" for a in ATTENTIONS)
    return Finding(
        table, " ".join(sentences), lambda axes: _draw(axes, changes, names), f"{summary}."
    )


@dataclass(frozen=True)
class _Errors:
    """Absolute errors of a seed [rows, targets], and the molecule of each row."""

    errors: np.ndarray
    units: np.ndarray | None


@dataclass(frozen=True)
class _Change:
    """The change of each error, over the seeds that both have."""

    estimates: Sequence[Estimate]
    seeds: int


Key = tuple[str, str]


def _errors(ledger: Ledger, size: str, attention: str, relations: str) -> dict[int, _Errors]:
    """Return seed → errors, in the order of seeds."""
    rows = ledger.rows(size=size, attention=attention, relations=relations)
    arrays = {int(row["seed"]): ledger.details(row) for row in rows}
    return {seed: _Errors(a["errors"], a.get("units")) for seed, a in sorted(arrays.items())}


def _change(errors: Mapping[int, _Errors], reference: Mapping[int, _Errors]) -> _Change | None:
    seeds = sorted(set(errors) & set(reference))
    if not seeds:
        return None
    own, other = (np.stack([each[seed].errors for seed in seeds]) for each in (errors, reference))
    units = errors[seeds[0]].units
    targets = range(own.shape[-1])
    estimates = [relative_change(own[..., i], other[..., i], units) for i in targets]
    return _Change(estimates, len(seeds))


def _cell(by_seed: Mapping[int, _Errors], change: _Change | None, target: int) -> str:
    values = " ".join(f"{each.errors[:, target].mean():.3g}" for each in by_seed.values())
    return values if change is None else f"{values} ({_percent(change.estimates[target])})"


def _percent(change: Estimate) -> str:
    return f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"


def _verdict(start: str, change: _Change | None, names: Sequence[str]) -> str:
    """Say what both relations together do to each error."""
    if change is None:
        return f"{start}: not run yet."
    return _sentence(f"{start}, Φ2d and Φ3d together", change, names)


def _sentence(start: str, change: _Change, names: Sequence[str]) -> str:
    kinds: dict[str, list[str]] = {"lower": [], "raise": [], "make no clear difference to": []}
    for name, estimate in zip(names, change.estimates, strict=True):
        word = "lower" if estimate.high < 0 else "raise" if estimate.low > 0 else None
        kinds[word or "make no clear difference to"].append(f"{name} ({_percent(estimate)})")
    parts = [f"{words} the error of {', '.join(some)}" for words, some in kinds.items() if some]
    return f"{start} {'; '.join(parts)} ({_seeds(change)})."


def _seeds(change: _Change) -> str:
    return f"{change.seeds} seed{'s' if change.seeds > 1 else ''}"


def _in_short(change: _Change | None, names: Sequence[str]) -> str:
    """Say whether both relations together help, with the errors that change clearly."""
    if change is None:
        return "not run yet"
    pairs = list(zip(names, change.estimates, strict=True))
    helped = sum(estimate.high < 0 for _, estimate in pairs)
    word = "shown" if helped == len(pairs) else "in part" if helped else "not shown"
    clear = [f"error of {name} {e.value:+.1%}" for name, e in pairs if e.clear]
    return f"{word} ({', '.join(clear) or 'no clear change'}; {_seeds(change)})"


def _draw(axes: Axes, changes: Mapping[Key, _Change | None], names: Sequence[str]) -> None:
    """Draw the change of each error, a group of points a set of relations and attention."""
    shown = {key: change.estimates for key, change in changes.items() if change is not None}
    for i, name in enumerate(names):
        places = [place + 0.2 * (i - (len(names) - 1) / 2) for place in range(len(shown))]
        values = [100 * np.array([e.low, e.value, e.high]) for e in (c[i] for c in shown.values())]
        centres = [value for _, value, _ in values]
        ends = [[v - low for low, v, _ in values], [high - v for _, v, high in values]]
        axes.errorbar(places, centres, yerr=ends, fmt="o", label=name)
    axes.axhline(0, color="grey", linewidth=0.8)
    labels = [f"{relations}\n{attention}" for attention, relations in shown]
    axes.set_xticks(range(len(shown)), labels, fontsize="small")
    axes.set_xlim(-0.5, max(len(shown), 1) - 0.5)
    axes.set_ylabel(f"error against {_NEITHER} [%]")
    if shown:
        axes.legend(frameon=False)
