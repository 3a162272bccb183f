"""L-BFGS: the minimum of a function of many coordinates from its gradient and little memory.

RDKit's own minimiser updates a dense matrix at every step, which for a hundred atoms takes longer
than the force field itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

# Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5, and 3.1 with this
# constant for the length of a step. The number of pairs is our choice, from their range of 3 to 20.
PAIRS = 8
SUFFICIENT_DECREASE = 1e-4
# Our choice: Å that a coordinate moves at most in a step, and in the first one, downhill.
LONGEST_MOVE = 0.5
FIRST_MOVE = 0.1
# Our choice: tries for the length of a step. None of them lower is as low as rounding allows.
LENGTHS = 20


def minimise(
    energy: Callable[[list[float]], float],
    gradient: Callable[[list[float]], tuple[float, ...]],
    start: np.ndarray,
    steps: int,
    tolerance: float,
) -> tuple[np.ndarray, bool]:
    """Return (coordinates, converged) after at most `steps` of L-BFGS from `start` (``[n]``).

    Converged: no component of the gradient is larger than `tolerance`. The energy never rises. Sums
    are numpy's rather than a BLAS's, which differ from processor to processor in the last bit.

    >>> place, converged = minimise(
    ...     lambda x: (x[0] - 3) ** 2, lambda x: (2 * (x[0] - 3),), np.zeros(1), 50, 1e-6
    ... )
    >>> round(float(place[0]), 3), converged
    (3.0, True)
    """
    place, height = start, energy(start.tolist())
    slope = np.array(gradient(start.tolist()))
    pairs: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=PAIRS)
    for _ in range(steps):
        if np.abs(slope).max() <= tolerance:
            return place, True
        move = _move(slope, pairs)
        lower = _lower(energy, place, height, move, _dot(move, slope))
        if lower is None:
            if not pairs:
                break
            pairs.clear()  # downhill from here, as at the start
            continue
        (after, height), before = lower, slope
        slope = np.array(gradient(after.tolist()))
        moved, turned = after - place, slope - before
        curvature = _dot(moved, turned)
        if curvature > 0:
            pairs.append((moved, turned, curvature))
        place = after
    return place, bool(np.abs(slope).max() <= tolerance)


def _move(slope: np.ndarray, pairs: deque[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """Return the move that the pairs of earlier moves and turns of the gradient suggest."""
    if not pairs:
        return -slope * min(1.0, FIRST_MOVE / np.abs(slope).max())
    move, shares = -slope, []
    for moved, turned, curvature in reversed(pairs):
        shares.append(_dot(moved, move) / curvature)
        move = move - shares[-1] * turned
    _, turned, curvature = pairs[-1]
    move = move * (curvature / _dot(turned, turned))
    for (moved, turned, curvature), share in zip(pairs, reversed(shares), strict=True):
        move = move + moved * (share - _dot(turned, move) / curvature)
    return move * min(1.0, LONGEST_MOVE / np.abs(move).max())


def _lower(
    energy: Callable[[list[float]], float],
    place: np.ndarray,
    height: float,
    move: np.ndarray,
    descent: float,
) -> tuple[np.ndarray, float] | None:
    """Return (coordinates, energy) along the move, shortened until it is low enough, or None."""
    if descent >= 0:
        return None
    length = 1.0
    for _ in range(LENGTHS):
        after = place + length * move
        rise = energy(after.tolist()) - height
        if rise <= SUFFICIENT_DECREASE * length * descent:
            return after, height + rise
        # the minimum of the parabola, where there is one
        parabola = -descent * length**2 / (2 * (rise - length * descent))
        length = (
            min(max(parabola, 0.1 * length), 0.5 * length) if np.isfinite(rise) else length / 10
        )
    return None


def _dot(one: np.ndarray, other: np.ndarray) -> float:
    return float((one * other).sum())
