"""Backend 'cpu': csrc/cpu/pairwise_distances.cpp, rows of a molecule as vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.pairwise_distances import op  # noqa: F401  registers gradients


def unsupported(coordinates: Tensor, valid: Tensor | None = None) -> str | None:
    """Return why the compiled kernel cannot serve these arguments, or None."""
    if coordinates.device.type != "cpu":
        return f"coordinates is on {coordinates.device}; this backend runs on the CPU"
    if coordinates.dtype == torch.float64:
        return "float64 runs the reference"
    return why_absent()


def pairwise_distances(coordinates: Tensor, valid: Tensor | None = None) -> Tensor:
    """Call the operator; arguments as in the reference."""
    return torch.ops.collamo_kernels.pairwise_distances(coordinates, valid)
