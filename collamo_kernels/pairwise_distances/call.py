"""One checked call of `pairwise_distances`: what every backend takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DistancesCall:
    """The arguments of `collamo_kernels.pairwise_distances`, which explains each; checked."""

    coordinates: Tensor
    valid: Tensor | None
