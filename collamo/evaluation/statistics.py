"""Numbers with their uncertainty: bootstrap intervals over molecules."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# 1,000 resamples put the ends of a 95 % interval on the 25th and 975th value; twice as many moved
# them by less than a tenth of the interval's width. Our choice.
RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `rows` rows of `molecules` molecules went in.

    ``value`` is None where no row could be scored.
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int
    molecules: int

    def above(self, other: Estimate) -> bool:
        """Return whether this interval lies wholly above the other's."""
        return None not in (self.low, other.high) and self.low > other.high

    def below(self, other: Estimate) -> bool:
        """Return whether this interval lies wholly below the other's."""
        return None not in (self.high, other.low) and self.high < other.low

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(
    statistics: Sequence[Sequence[float]],
    molecules: Sequence[Hashable],
    score: Callable[[np.ndarray], float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Return ``score(Σ statistics)`` with a percentile interval from resampling molecules.

    The questions about one molecule share its encoding, so they succeed and fail together:
    molecules, not rows, are drawn with replacement. `statistics` has one row of sums per question,
    `molecules` its molecule.

    >>> str(bootstrap([[1, 1], [1, 1]], ["a", "b"], ratio))
    '1 [1, 1]'
    """
    if len(statistics) != len(molecules):
        raise ValueError(f"{len(statistics)} rows of statistics for {len(molecules)} molecules")
    if not len(statistics):
        return Estimate(None, None, None, 0, 0)
    names = {name: index for index, name in enumerate(dict.fromkeys(molecules))}
    sums = np.zeros((len(names), len(statistics[0])))
    np.add.at(sums, [names[name] for name in molecules], np.asarray(statistics, dtype=float))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    scores = np.array([score(row) for row in draws @ sums])
    # A resample of molecules that all lack a scorable row has no score; it says nothing about the
    # spread.
    scores = scores[np.isfinite(scores)]
    value = score(sums.sum(axis=0))
    if not math.isfinite(value):
        return Estimate(None, None, None, len(statistics), len(names))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(scores, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high), len(statistics), len(names))


def ratio(sums: np.ndarray) -> float:
    """Return ``sums[0] / sums[1]``, NaN for an empty denominator: the mean of what was summed."""
    return float(sums[0] / sums[1]) if sums[1] else math.nan


class Sums:
    """Column sums of judged rows, from which every score of a predictions file follows.

    A row adds a value to the columns that apply to it and nothing to the others, so that
    ``mean(column)`` is over the rows the column applies to. Corpus scores (BLEU) are functions of
    several totals. Rows can be added in any order and dropped as soon as they are added.
    """

    def __init__(self, totals: Mapping[str, float] = (), counts: Mapping[str, float] = ()):
        self.totals = dict(totals)
        self.counts = dict(counts)

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of one row."""
        for column, value in values.items():
            self.totals[column] = self.totals.get(column, 0) + value
            self.counts[column] = self.counts.get(column, 0) + 1

    def mean(self, column: str) -> float | None:
        """Return the mean of a column over its rows, None where it has none."""
        return self.totals[column] / self.counts[column] if self.counts.get(column) else None
