"""Numbers in answers: counts of motifs, and properties with their units."""

from __future__ import annotations

import re

from collamo.evaluation.score.text import number_span, parse_number
from collamo.evaluation.statistics import Sums

HARTREE_IN_EV = 27.211386245988  # CODATA 2018
# Energies in Hartree. Longer names come first: the pattern below takes the first that matches.
_HARTREE = {
    "kcal/mol": 1 / 627.5094740631,
    "kj/mol": 1 / 2625.4996394799,
    "hartree": 1.0,
    "mev": 1e-3 / HARTREE_IN_EV,
    "ev": 1 / HARTREE_IN_EV,
    "ha": 1.0,
}
_UNIT = re.compile(rf"\s*({'|'.join(map(re.escape, _HARTREE))})\b", re.IGNORECASE)


def energy_factor(unit: str) -> float | None:
    """Return how many Hartree the energy unit is, None for any other text.

    >>> energy_factor("eV") * HARTREE_IN_EV
    1.0
    """
    return _HARTREE.get(unit.strip().lower())


def parse_quantity(text: str, unit: str | None = None) -> float | None:
    """Return the first number of `text`, in `unit`.

    A number followed by an energy unit (Hartree, Ha, eV, meV, kcal/mol, kJ/mol) is converted when
    `unit` is one too; in all other cases the number stands as it is, taken to be in `unit`.

    >>> round(parse_quantity("The gap is 6.8 eV.", "Hartree"), 4), parse_quantity("0.25", "Hartree")
    (0.2499, 0.25)
    """
    number = parse_number(text)
    factor = energy_factor(unit) if unit else None
    span = number_span(text)
    if number is None or factor is None or span is None:
        return number
    written = _UNIT.match(text, span[1])
    return number * _HARTREE[written[1].lower()] / factor if written else number


def motif_row(prediction: str, reference: str) -> tuple[str, dict[str, float]]:
    """Return (status, statistics) of a count; `unparsed_prediction` is wrong and has no error.

    >>> motif_row("It has three.", "2")
    ('scored', {'parsed': 1.0, 'exact': 0.0, 'mae': 1.0})
    """
    true, guess = parse_number(reference), parse_number(prediction)
    if true is None:
        return "unparsed_reference", {}
    if guess is None:
        return "unparsed_prediction", {"parsed": 0.0, "exact": 0.0}
    return "scored", {"parsed": 1.0, "exact": float(guess == true), "mae": abs(guess - true)}


def motif_scores(sums: Sums) -> dict[str, float]:
    """Return ``exact`` (of all rows), ``mae`` (of what parsed) and ``parsed`` (share of rows)."""
    return sums.means(("exact", "mae", "parsed"))


def property_row(
    prediction: str, reference: str, unit: str | None = None, train_mean: float | None = None
) -> tuple[str, dict[str, float]]:
    """Return (status, statistics) of a property in `unit`.

    `train_mean` stands in for an answer without a number in the penalised error, which is left out
    without it.

    >>> property_row("no idea", "2.0", train_mean=1.5)
    ('unparsed_prediction', {'parsed': 0.0, 'mae_penalised': 0.5})
    """
    true, guess = parse_quantity(reference, unit), parse_quantity(prediction, unit)
    if true is None:
        return "unparsed_reference", {}
    values = {"parsed": float(guess is not None)}
    if guess is not None:
        values["mae"] = abs(guess - true)
    if train_mean is not None:
        values["mae_penalised"] = abs((train_mean if guess is None else guess) - true)
    return ("scored" if guess is not None else "unparsed_prediction"), values


def property_scores(sums: Sums, unit: str | None = None) -> dict[str, float]:
    """Return ``mae`` [unit] of what parsed, ``mae_penalised`` [unit] and ``parsed`` (a share).

    For an energy also both errors in Hartree and eV, named so.
    """
    scores = sums.means(("mae", "mae_penalised", "parsed"))
    factor = energy_factor(unit) if unit else None
    if factor is not None:
        for name in [name for name in ("mae", "mae_penalised") if name in scores]:
            scores[f"{name}_hartree"] = scores[name] * factor
            scores[f"{name}_ev"] = scores[name] * factor * HARTREE_IN_EV
    return scores
