"""Backend 'cpu': csrc/pairwise_distances, rows of a molecule as vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.pairwise_distances import op  # noqa: F401  registers gradients
from collamo_kernels.pairwise_distances.call import DistancesCall


def unsupported(call: DistancesCall) -> str | None:
    """Return why the compiled kernel cannot serve the call, or None."""
    coordinates = call.coordinates
    if coordinates.device.type != "cpu":
        return f"coordinates is on {coordinates.device}; this backend runs on the CPU"
    if coordinates.dtype == torch.float64:
        return "float64 runs the reference"
    return why_absent()


def run(call: DistancesCall) -> Tensor:
    """Call the operator."""
    return torch.ops.collamo_kernels.pairwise_distances(call.coordinates, call.valid)
