"""The parameters of a radial function, and all of them in one tensor."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class RadialParameters(NamedTuple):
    """What the formula reads, in the order of the operators' schemas; None: a linear head."""

    centre: Tensor  # [K], μ in Å
    width: Tensor  # [K], s in Å
    weight: Tensor  # [K', K]
    bias: Tensor  # [K']
    weight2: Tensor | None  # [H, K']
    bias2: Tensor | None  # [H]

    @property
    def heads(self) -> int:
        """H."""
        return (self.weight if self.weight2 is None else self.weight2).shape[0]


def join(parameters: RadialParameters) -> Tensor:
    """The parameters one after the other in one tensor, as the Triton kernels take them."""
    every = (x for x in parameters if x is not None)
    return torch.cat([x.flatten() if x.dim() > 1 else x for x in every])


def shapes(gaussians: int, hidden: int, heads: int) -> list[tuple[int, ...]]:
    """Of the parameters that are there, given K, K' and H; K' is 0 for a linear head."""
    first = hidden or heads
    last = [(heads, hidden), (heads,)] if hidden else []
    return [(gaussians,), (gaussians,), (first, gaussians), (first,), *last]


def separate(layers: Tensor, gaussians: int, hidden: int, heads: int) -> RadialParameters:
    """What `join` put together, given the sizes that `shapes` takes."""
    sizes = shapes(gaussians, hidden, heads)
    parts = layers.split([math.prod(shape) for shape in sizes])
    centre, width, weight, bias, *second = (
        part.view(shape) for part, shape in zip(parts, sizes, strict=True)
    )
    weight2, bias2 = second if hidden else (None, None)
    return RadialParameters(centre, width, weight, bias, weight2, bias2)
