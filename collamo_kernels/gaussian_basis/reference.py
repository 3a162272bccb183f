"""The definition of an expansion in normal densities, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from collamo_kernels.gaussian_basis.call import GaussianBasisCall


def unsupported(call: GaussianBasisCall) -> str | None:
    """Return None: the definition serves every input."""
    return None


def run(call: GaussianBasisCall) -> Tensor:
    """Compute the definition."""
    return gaussian_basis(call.u, call.centre, call.width)


def gaussian_basis(u: Tensor, centre: Tensor, width: Tensor) -> Tensor:
    """exp(-½ ((u - μ) / s)²) / (√(2π)·s); see `collamo_kernels.gaussian_basis`."""
    z = (u[:, None] - centre) / width  # [M, K]
    return torch.exp(-0.5 * z * z) / (math.sqrt(2 * math.pi) * width)
