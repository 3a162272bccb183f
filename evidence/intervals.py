"""Intervals of a difference between two models, over test molecules and over seeds at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from collamo.evaluation.statistics import LEVEL, Estimate

RESAMPLES = 4000  # seeds are few, so that the ends need more draws than those of molecules alone
_CHUNK = 500  # resamples at a time


def relative_change(
    errors: np.ndarray, reference: np.ndarray, units: Sequence[object] | np.ndarray | None = None
) -> Estimate:
    """Return mean(errors) / mean(reference) - 1 with its 95 % interval.

    Both are ``[seeds, rows]``, paired: the same seeds, the same rows of the test. A resample draws
    seeds with replacement and units (the molecules of the rows; None: each row is one) with
    replacement. With three seeds the interval is no narrower than their disagreement.

    >>> relative_change(np.ones((3, 9)), np.full((3, 9), 2.0)).value
    -0.5
    """
    labels = np.arange(errors.shape[1]) if units is None else np.asarray(units)
    _, unit = np.unique(labels, return_inverse=True)
    first, second = (_by_unit(array, unit) for array in (errors, reference))  # [seeds, units]

    def change(drawn: np.ndarray, weights: np.ndarray) -> np.ndarray:
        own, other = ((drawn * (weights @ totals.T)).sum(1) for totals in (first, second))
        return own / other - 1

    return interval(change, *first.shape)


def interval(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], seeds: int, units: int
) -> Estimate:
    """Return a statistic of all seeds and units with its 95 % interval.

    It takes how often each of R resamples drew each seed [R,S] and each unit [R,U], both with
    replacement, and returns its values [R]. Resamples without a finite one are left out: of very
    few units one may draw those without an error.
    """
    values = []
    for drawn, weights in _draws(seeds, units):
        with np.errstate(divide="ignore", invalid="ignore"):
            values.append(statistic(drawn.astype(float), weights.astype(float)))
    every = np.concatenate(values)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(every[np.isfinite(every)], [tail, 100 - tail])
    (whole,) = statistic(np.ones((1, seeds)), np.ones((1, units)))
    return Estimate(float(whole), float(low), float(high))


@lru_cache(maxsize=2)
def _draws(seeds: int, units: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return how often each resample drew each seed and each unit, `_CHUNK` resamples at a time.

    The same for every statistic of as many seeds and units, and more work than most of them.
    """
    rng = np.random.default_rng(0)
    chunks = []
    for _ in range(RESAMPLES // _CHUNK):
        pairs = [
            (
                rng.multinomial(units, np.full(units, 1 / units)),
                np.bincount(rng.integers(seeds, size=seeds), minlength=seeds),
            )
            for _ in range(_CHUNK)
        ]
        weights, drawn = (np.stack(each).astype(np.uint16) for each in zip(*pairs, strict=True))
        chunks.append((drawn, weights))
    return chunks


def _by_unit(errors: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(unit, weights=row) for row in errors])
