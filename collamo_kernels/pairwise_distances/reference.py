"""The definition of pairwise distances, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.pairwise_distances.call import DistancesCall


def unsupported(call: DistancesCall) -> str | None:
    """Return None: the definition serves every input."""
    return None


def run(call: DistancesCall) -> Tensor:
    """Compute the definition."""
    return pairwise_distances(call.coordinates, call.valid)


def pairwise_distances(coordinates: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return r_ij = |x_i - x_j|; see `collamo_kernels.pairwise_distances`."""
    dtype = torch.promote_types(coordinates.dtype, torch.float32)
    x = coordinates.to(dtype)
    if valid is not None:
        x = torch.where(valid[..., None], x, 0.0)
    # Direct differences: |x|² + |y|² - 2xy loses up to 8e-3 Å to cancellation on real conformers.
    difference = x[..., :, None, :] - x[..., None, :, :]  # [B, i, j, 3]
    squared = difference.square().sum(-1)
    apart = squared != 0  # NaN is not "in one place": it must be seen
    # The square root never sees 0, so its infinite slope there cannot reach the gradient.
    distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    if valid is not None:
        distance = torch.where(valid[..., :, None] & valid[..., None, :], distance, 0.0)
    return distance
