"""How large the derivatives of a radial function can be between two knots, from its parameters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# max|GELU⁽ⁿ⁾| over the real line, n = 1 … 5, rounded up. With φ the normal density they are
# Φ + xφ at √2, and (2 - x²)φ, (x³ - 4x)φ, (-x⁴ + 7x² - 4)φ, (x⁵ - 11x³ + 18x)φ at 0, 0.7923,
# 0 and 0.6344.
GELU_PEAKS = (1.1290, 0.7979, 0.7788, 1.5958, 2.8426)
# The polynomials Heₙ of the n-th derivative of exp(-z²/2), n = 1 … 5, given z and z².
HERMITE = (
    lambda z, square: z,
    lambda z, square: square - 1,
    lambda z, square: (square - 3) * z,
    lambda z, square: (square - 6) * square + 3,
    lambda z, square: ((square - 10) * square + 15) * z,
)
# Where |Heₙ(z)| exp(-z²/2), the n-th derivative of a Gaussian, turns back (z > 0), and its value
# there, rounded up: the zeros of Heₙ₊₁.
BELL_PEAKS = (
    ((1.0, 0.60654),),
    ((1.73206, 0.44627),),
    ((0.74197, 1.38012), (2.33442, 0.37490)),
    ((1.35563, 1.85488), (2.85698, 0.34873)),
    ((0.61671, 5.78306), (1.88918, 2.52212), (3.32426, 0.35248)),
)


def derivative_bounds(
    centres: Tensor,
    reach: float | Tensor,
    centre: Tensor,
    width: Tensor,
    weight: Tensor,
    weight2: Tensor | None,
    last: int,
) -> tuple[Tensor, Tensor]:
    """For ``|u - centres| <= reach``, from the *absolute* values of the weights.

    Returns
    -------
    bounds
        ``[M, last - 3]``: of ``max_h |Φ⁽ⁿ⁾|``, n from 4 to `last` (4 or 5).
    gaussian
        ``[M]``: of ``max_k |ψ⁗|``.
    """
    z = ((centres[:, None] - centre).abs() - reach).clamp_(min=0) / width  # [M, K]
    orders = range(4 if weight2 is None else 1, last + 1)
    psi = [
        bound / width**n
        for n, bound in zip(orders, _bell_derivative_bounds(z, orders), strict=True)
    ]
    gaussian = psi[4 - orders[0]].amax(1)
    bounds = F.linear(torch.stack(psi), weight)
    if weight2 is not None:
        bounds = F.linear(torch.stack(_gelu_chain_bounds(*bounds)), weight2)
    return bounds.amax(2).t(), gaussian


def _bell_derivative_bounds(z: Tensor, orders: range) -> Iterator[Tensor]:
    """Yield the largest ``|dⁿ/dzⁿ exp(-z²/2)|`` from z ≥ 0 outwards, for each n of 1 … 5."""
    square = z * z
    bell = torch.exp(-0.5 * square)
    for n in orders:
        bound = (HERMITE[n - 1](z, square) * bell).abs_()
        for turn, peak in BELL_PEAKS[n - 1]:
            bound = torch.maximum(bound, (z < turn) * peak)
        yield bound


def _gelu_chain_bounds(a1: Tensor, a2: Tensor, a3: Tensor, a4: Tensor, *a5: Tensor) -> list[Tensor]:
    """Bounds of the 4th (and 5th) derivative of GELU(a(u)), from those of a (Faà di Bruno)."""
    g1, g2, g3, g4, g5 = GELU_PEAKS
    square = a1 * a1
    out = [g1 * a4 + g2 * (3 * a2 * a2 + 4 * a1 * a3) + square * (6 * g3 * a2 + g4 * square)]
    for last in a5:
        fifth = g1 * last + g2 * (10 * a2 * a3 + 5 * a1 * a4)
        fifth += g3 * (15 * a1 * a2 * a2 + 10 * square * a3)
        out.append(fifth + square * a1 * (10 * g4 * a2 + g5 * square))
    return out
