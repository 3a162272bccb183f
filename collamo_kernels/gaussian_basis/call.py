"""One checked call of `gaussian_basis`: what every backend takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GaussianBasisCall:
    """The arguments of `collamo_kernels.gaussian_basis`, which explains each; checked."""

    u: Tensor
    centre: Tensor
    width: Tensor
