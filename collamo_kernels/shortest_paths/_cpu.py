"""Backend 'cpu': csrc/cpu/shortest_paths.cpp, breadth-first search with one bit per pair."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.shortest_paths import op  # noqa: F401  registers the shape of the result


def unsupported(edge_index: Tensor, **arguments: object) -> str | None:
    """Return why the compiled search cannot serve these arguments, or None."""
    if edge_index.device.type != "cpu":
        return f"edge_index is on {edge_index.device}; this backend runs on the CPU"
    return why_absent()


def shortest_paths(edge_index: Tensor, ptr: Tensor, packed: bool, size: int) -> Tensor:
    """Call the operator; arguments as in the reference."""
    return torch.ops.collamo_kernels.shortest_paths(edge_index, ptr, packed, size)
