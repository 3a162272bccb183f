"""Rows of counts and of properties: the number read in each answer, its status, its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from collamo.data.conversions import ELECTRONVOLT, HARTREE, conversion
from collamo.data.numbers import WrittenNumber, find_number
from collamo.data.units import unit_beside, unit_of
from collamo.evaluation.score.counts import find_count, find_reference_count
from collamo.evaluation.statistics import Sums

#: Why an answer or a reference has no number to compare, as in ``ambiguous_prediction``.
FAULTS = ("unparsed", "ambiguous", "other_unit")
# Relative: Avogadro's constant × dalton differs from 1 g/mol by 1e-9 since 2019.
CONVERSION_ERROR = 1e-8


class Reading(NamedTuple):
    """The number read in a text, in the expected unit, or the one of `FAULTS` that stands in for
    it."""

    value: float | None = None
    fault: str | None = None
    converted: bool = False


def read_quantity(
    text: str,
    unit: str | None = None,
    find: Callable[[str], WrittenNumber | None] = find_number,
) -> Reading:
    """Return the number that `find` finds in `text`, in `unit` (pint's name; None: as written).

    A number without a unit is taken to be in `unit`; one in a unit that does not convert is an
    ``other_unit``.
    """
    number = find(text)
    if number is None:
        return Reading(fault="unparsed")
    if number.value is None:
        return Reading(fault="ambiguous")
    written = _written_unit(text, number) if unit else None
    if unit is None or written is None:
        return Reading(number.value)
    change = conversion(written, unit)
    if change is None:
        return Reading(fault="other_unit")
    value = change(number.value)
    if not math.isfinite(value):
        return Reading(fault="unparsed")
    return Reading(value, converted=written != unit)


def _written_unit(text: str, number: WrittenNumber) -> str | None:
    unit = unit_beside(text, number.start, number.end)
    return unit.name if unit else None


def parse_quantity(text: str, unit: str | None = None) -> float | None:
    """Return the first number of `text`, in `unit`; None where it has none, or another unit.

    A number without a unit, and any number where `unit` is none that is known, stands as it is.

    >>> round(parse_quantity("The gap is 6.8 eV.", "Hartree"), 4), parse_quantity("0.25", "Hartree")
    (0.2499, 0.25)
    """
    return read_quantity(text, unit_of(unit)).value


def motif_row(prediction: str, reference: str) -> tuple[str, dict[str, float]]:
    """Return (status, statistics) of a count; `unparsed_prediction` is wrong and has no error, and
    so is `ambiguous_prediction`.

    >>> motif_row("It has three.", "2")
    ('scored', {'parsed': 1.0, 'exact': 0.0, 'mae': 1.0})
    """
    true = read_quantity(reference, find=find_reference_count)
    guess = read_quantity(prediction, find=find_count)
    if true.value is None:
        return f"{true.fault}_reference", {}
    if guess.value is None:
        return f"{guess.fault}_prediction", {"parsed": 0.0, "exact": 0.0}
    error = abs(guess.value - true.value)
    return "scored", {"parsed": 1.0, "exact": float(error == 0), "mae": error}


def motif_scores(sums: Sums) -> dict[str, float]:
    """Return ``exact`` (of all rows), ``mae`` (of what parsed) and ``parsed`` (share of rows)."""
    return sums.means(("exact", "mae", "parsed"))


def property_row(
    prediction: str,
    reference: str,
    unit: str | None = None,
    train_mean: float | None = None,
    counted: bool = False,
    known_unit: str | None = None,
) -> tuple[str, dict[str, float]]:
    """Return (status, statistics) of a property in `unit`, without one in the reference's own.

    `train_mean` stands in for an answer without a number in the penalised error, which is left out
    without it. A `counted` property is read as motifs are. Where the answer's unit does not convert
    to `unit` but to the `known_unit` of the property, the row is in that one.

    >>> property_row("no idea", "2.0", train_mean=1.5)
    ('unparsed_prediction', {'parsed': 0.0, 'mae_penalised': 0.5})
    """
    true, guess = _read_pair(prediction, reference, unit_of(unit), counted)
    if guess.fault == "other_unit" and known_unit:
        known = _read_pair(prediction, reference, unit_of(known_unit), counted)
        if all(reading.value is not None for reading in known):
            true, guess = known
    if true.value is None:
        return f"{true.fault}_reference", {}
    if guess.value is None:
        silent = {} if train_mean is None else {"mae_penalised": abs(train_mean - true.value)}
        return f"{guess.fault}_prediction", {"parsed": 0.0, **silent}
    values = {"parsed": 1.0, "mae": _error(guess, true)}
    if train_mean is not None:
        values["mae_penalised"] = values["mae"]
    return "scored", values


def _read_pair(
    prediction: str, reference: str, unit: str | None, counted: bool
) -> tuple[Reading, Reading]:
    """Return what is read in the reference and in the prediction, in one unit."""
    if unit is None:
        number = find_number(reference)
        unit = _written_unit(reference, number) if number else None
    return (
        read_quantity(reference, unit, find_reference_count if counted else find_number),
        read_quantity(prediction, unit, find_count if counted else find_number),
    )


def _error(guess: Reading, true: Reading) -> float:
    """Return |guess − true|, 0 where conversion factors are no more exact than the difference."""
    assert guess.value is not None
    assert true.value is not None
    converted = guess.converted or true.converted
    if converted and math.isclose(guess.value, true.value, rel_tol=CONVERSION_ERROR):
        return 0.0
    return abs(guess.value - true.value)


def property_scores(sums: Sums, unit: str | None = None) -> dict[str, float]:
    """Return ``mae`` [unit] of what parsed, ``mae_penalised`` [unit] and ``parsed`` (a share).

    For an energy also both errors in Hartree and eV, named so.
    """
    scores = sums.means(("mae", "mae_penalised", "parsed"))
    written = unit_of(unit)
    for name in [name for name in ("mae", "mae_penalised") if written and name in scores]:
        for energy, column in ((HARTREE, f"{name}_hartree"), (ELECTRONVOLT, f"{name}_ev")):
            change = conversion(written, energy)
            if change is not None:
                scores[column] = change(scores[name])
    return scores
