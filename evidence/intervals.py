"""Intervals of a difference between two models, over test molecules and over seeds at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collamo.evaluation.statistics import LEVEL, Estimate

RESAMPLES = 4000  # seeds are few, so that the ends need more draws than those of molecules alone


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
    totals = [_by_unit(array, unit) for array in (errors, reference)]  # [seeds, units]
    seeds, count = totals[0].shape
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(RESAMPLES):
        weights = rng.multinomial(count, np.full(count, 1 / count))
        drawn = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds)
        first, second = (drawn @ total @ weights for total in totals)
        if second > 0:  # of very few units one may draw those without an error
            ratios.append(first / second - 1)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Estimate(float(errors.sum() / reference.sum() - 1), float(low), float(high))


def _by_unit(errors: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(unit, weights=row) for row in errors])
