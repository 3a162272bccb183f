"""Measured columns guessed from their names: kept where the values bear the guess out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from collamo.data.columns import MeasuredColumn
from collamo.data.measured_values import UnreadValue, in_unit, read_measured

# The smallest and the largest value in the published set, a little widened: an energy in eV lies
# outside. The columns of a set stand or fall together.
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "QM9": {
        "mu": (0, 35),
        "alpha": (5, 220),
        "homo": (-0.6, -0.05),
        "lumo": (-0.3, 0.3),
        "gap": (0.01, 0.8),
        "r2": (10, 4000),
        "zpve": (0.005, 0.35),
        "cv": (5.5, 55),
        "u0": (-800, -30),
        "u298": (-800, -30),
        "h298": (-800, -30),
        "g298": (-800, -30),
    },
    "QM7": {"atomization_energy": (-2500, -50)},
    "PubChem": {"xlogp3": (-50, 80), "complexity": (0, 30_000)},
}
# Our choice: a file may hold a few molecules that are unlike those of the set.
SHARE_INSIDE = 0.98


@dataclass
class _Values:
    inside: int = 0
    total: int = 0
    outside: float = field(default=float("nan"))


@dataclass(frozen=True)
class CheckedGuesses:
    """The guesses that stand, column → what it is, and a sentence about each set that was met."""

    measured: Mapping[str, MeasuredColumn]
    sentences: tuple[str, ...]


def without_named(
    guesses: Mapping[str, MeasuredColumn], named: Collection[str]
) -> dict[str, MeasuredColumn]:
    """Return the guesses about sets of which the user named no column.

    Who says that "homo" is in eV knows what "cv" is, and would have named it too.
    """
    known = {guesses[column].name for column in named if column in guesses}
    sets = [limits for limits in RANGES.values() if not known & set(limits)]
    return {c: guess for c, guess in guesses.items() if any(guess.name in each for each in sets)}


def check_guesses(
    guesses: Mapping[str, MeasuredColumn], rows: Iterable[Mapping[str, str]]
) -> CheckedGuesses:
    """Check guesses (column → what it would be) against the values in `rows` (column → text)."""
    values = {column: _Values() for column in guesses}
    ranges = {column: limits for each in RANGES.values() for column, limits in each.items()}
    for row in rows:
        for column, seen in values.items():
            number = _number(row.get(column), guesses[column].unit)
            if number is not None:
                low, high = ranges[guesses[column].name]
                seen.total += 1
                seen.inside += low <= number <= high
                if not low <= number <= high:
                    seen.outside = number
    measured: dict[str, MeasuredColumn] = {}
    sentences = []
    for name, limits in RANGES.items():
        columns = {
            column: guess
            for column, guess in guesses.items()
            if guess.name in limits and values[column].total
        }
        failed = [c for c in columns if values[c].inside < SHARE_INSIDE * values[c].total]
        if failed:
            sentences.append(_refusal(name, columns, failed[0], values[failed[0]], limits))
        elif columns:
            measured |= columns
            sentences.append(_acceptance(name, columns))
    return CheckedGuesses(measured, tuple(sentences))


def _number(text: str | None, unit: str | None) -> float | None:
    try:
        return in_unit(read_measured(text or ""), unit).number
    except UnreadValue:
        return None


def _acceptance(name: str, columns: Mapping[str, MeasuredColumn]) -> str:
    meanings = ", ".join(
        f"{column} ({guess.description}{f', {guess.unit}' if guess.unit else ''})"
        for column, guess in columns.items()
    )
    example = next(iter(columns))
    return (
        f"taken for columns of {name}, whose names they carry and in whose range their values are: "
        f"{meanings}; --measured-columns '{example}:UNIT' says otherwise, --no-guess-columns asks "
        "for none"
    )


def _refusal(
    name: str,
    columns: Mapping[str, MeasuredColumn],
    failed: str,
    values: _Values,
    limits: Mapping[str, tuple[float, float]],
) -> str:
    low, high = limits[columns[failed].name]
    unit = columns[failed].unit
    return (
        f"not asked for, though they carry names of {name}: {', '.join(columns)}; {failed} is "
        f"outside {name}'s {low:g} … {high:g}{f' {unit}' if unit else ''} in "
        f"{values.total - values.inside} of {values.total} rows (such as {values.outside:g}); "
        f"--measured-columns '{failed}:UNIT' asks for it"
    )
