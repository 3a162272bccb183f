"""A radial function and its derivatives by u: the formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def derivatives(
    u: Tensor,
    centre: Tensor,
    width: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight2: Tensor | None,
    bias2: Tensor | None,
    order: int,
) -> list[Tensor]:
    """Φ3d and its first `order` (0 to 2) derivatives by u, each ``[M, H]``: the definition."""
    z = (u[:, None] - centre) / width
    psi = [torch.exp(-0.5 * z * z)]
    if order > 0:
        psi.append(-z / width * psi[0])
    if order > 1:
        psi.append((z * z - 1) / width**2 * psi[0])
    out = [F.linear(psi[0], weight, bias), *(F.linear(x, weight) for x in psi[1:])]
    if weight2 is None:
        return out
    a, hidden = out[0], [F.gelu(out[0])]
    # GELU'(a)·a' in one pass over [M, K]; spelled out it takes five.
    hidden += [torch.ops.aten.gelu_backward(x, a) for x in out[1:]]
    if order > 1:
        bell = torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
        hidden[2] += (2 - a * a) * bell * out[1] ** 2  # GELU''(a)·a'²
    return [F.linear(hidden[0], weight2, bias2), *(F.linear(x, weight2) for x in hidden[1:])]
