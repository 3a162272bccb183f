"""One checked call of `neighbour_sum`: what every backend takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class NeighbourSumCall:
    """The arguments of `collamo_kernels.neighbour_sum`, which explains each; checked."""

    x: Tensor
    table: Tensor
    source: Tensor
    kind: Tensor
    ptr: Tensor
    receiver: Tensor | None
    scale: Tensor | None
    relu: bool
