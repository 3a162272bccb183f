"""Numbers with their uncertainty: bootstrap intervals over molecules.

Not scipy's bootstrap: here one draw of molecules serves every score of every set, so that
differences are paired, and a draw is a product of matrices and no second look at the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# 1,000 resamples put the ends of a 95 % interval on the 25th and 975th value; twice as many moved
# them by less than a tenth of the interval's width. Our choice.
RESAMPLES = 1000
LEVEL = 0.95
CHUNK = 50  # resamples at a time: 100,000 units take 40 MB of weights

# How the names of errors begin.
LOWER_IS_BETTER = ("levenshtein", "mae", "charm", "rcharm", "scaled")


def higher_is_better(metric: str) -> bool:
    """Return whether more of a score is better.

    >>> higher_is_better("bleu4"), higher_is_better("mae_ev")
    (True, False)
    """
    return not metric.startswith(LOWER_IS_BETTER)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def above(self, other: Estimate) -> bool:
        """Return whether this interval lies wholly above the other's."""
        return self.low > other.high

    def below(self, other: Estimate) -> bool:
        """Return whether this interval lies wholly below the other's."""
        return self.high < other.low

    @property
    def clear(self) -> bool:
        """Return whether the interval, of a difference, excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


class Sums:
    """Column sums of scored rows, from which every score of a predictions file follows.

    A row adds a value to the columns that apply to it and nothing to the others, so that
    ``mean(column)`` is over the rows the column applies to. Corpus scores (BLEU) are functions of
    several totals. Rows can be added in any order and dropped as soon as they are added.
    """

    def __init__(
        self, totals: Mapping[str, float] | None = None, counts: Mapping[str, float] | None = None
    ):
        self.totals = dict(totals or {})
        self.counts = dict(counts or {})

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of one row."""
        for column, value in values.items():
            self.totals[column] = self.totals.get(column, 0) + value
            self.counts[column] = self.counts.get(column, 0) + 1

    def mean(self, column: str) -> float | None:
        """Return the mean of a column over its rows, None where it has none."""
        return self.totals[column] / self.counts[column] if self.counts.get(column) else None

    def means(self, columns: Iterable[str]) -> dict[str, float]:
        """Return the mean of each column over its rows; a column without rows is left out."""
        return {name: mean for name in columns if (mean := self.mean(name)) is not None}


class UnitSums:
    """Scored rows added up by unit (a molecule, or the row itself): what a resample multiplies.

    Parameters
    ----------
    columns
        Names of the statistics.
    values
        float ``[rows, columns]``, NaN where a statistic does not apply to a row.
    units
        The unit of each row.
    order
        All units, the same for every set of rows that is compared: one without rows adds nothing.
    """

    def __init__(
        self,
        columns: Sequence[str],
        values: np.ndarray,
        units: Sequence[Hashable],
        order: Sequence[Hashable],
    ):
        self.columns = list(columns)
        place = {unit: index for index, unit in enumerate(order)}
        rows = np.array([place[unit] for unit in units], dtype=int)
        present = ~np.isnan(values)
        self.totals, self.counts = np.zeros((2, len(order), len(self.columns)))
        np.add.at(self.totals, rows, np.where(present, values, 0.0))
        np.add.at(self.counts, rows, present.astype(float))

    def weighted(self, weights: np.ndarray) -> list[Sums]:
        """Return the `Sums` in which unit u counts ``weights[r, u]`` times, for each r."""
        resamples = []
        products = ((weights @ each).tolist() for each in (self.totals, self.counts))
        for total, count in zip(*products, strict=True):
            kept = [(c, i) for i, c in enumerate(self.columns) if count[i]]
            resamples.append(Sums({c: total[i] for c, i in kept}, {c: count[i] for c, i in kept}))
        return resamples


Scored = Callable[[Sums], Mapping[str, float]]


def resampled(
    sets: Sequence[UnitSums], score: Scored, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[list[Mapping[str, float]]]:
    """Return the scores of each set: of all its units first, then of every resample of units.

    Units are drawn with replacement, in every resample the same ones for all sets (which share
    their order of units): differences between sets are paired. The questions about one molecule
    share its encoding, so they succeed and fail together: molecules, not rows, are the units of
    questions.

    >>> rows = UnitSums(["exact"], np.array([[1.0], [0.0]]), ["a", "b"], ["a", "b"])
    >>> resampled([rows], lambda sums: {"exact": sums.mean("exact")}, resamples=0)
    [[{'exact': 0.5}]]
    """
    units = len(sets[0].totals) if sets else 0
    scores = [[score(sums) for sums in each.weighted(np.ones((1, units)))] for each in sets]
    rng = np.random.default_rng(seed)
    for start in range(0, resamples if units else 0, CHUNK):
        size = min(CHUNK, resamples - start)
        weights = rng.multinomial(units, np.full(units, 1 / units), size=size).astype(float)
        for scores_of_set, each in zip(scores, sets, strict=True):
            scores_of_set += [score(sums) for sums in each.weighted(weights)]
    return scores


def estimates(scores: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Return every score of one set of `resampled` with its percentile interval.

    A resample that drew none of a score's rows is left out of that score's interval.
    """
    whole, *draws = scores
    return {name: _estimate(value, [d.get(name) for d in draws]) for name, value in whole.items()}


def differences(
    a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]]
) -> dict[str, Estimate]:
    """Return ``b − a`` of every score that both sets of `resampled` have, with its interval."""
    pairs = list(zip(a[1:], b[1:], strict=True))
    return {
        name: _estimate(
            b[0][name] - value,
            [y[name] - x[name] for x, y in pairs if name in x and name in y],
        )
        for name, value in a[0].items()
        if name in b[0]
    }


def _estimate(value: float, draws: Sequence[float | None]) -> Estimate:
    present = [draw for draw in draws if draw is not None]
    if not present:
        return Estimate(value, value, value)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(present, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))
