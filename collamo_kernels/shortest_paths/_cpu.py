"""Backend 'cpu': csrc/cpu/shortest_paths.cpp, breadth-first search with one bit per pair."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.shortest_paths import op  # noqa: F401  registers the shape of the result
from collamo_kernels.shortest_paths.checks import check_contents


def unsupported(edge_index: Tensor, **arguments: object) -> str | None:
    """Return why the compiled search cannot serve these arguments, or None."""
    if edge_index.device.type != "cpu":
        return f"edge_index is on {edge_index.device}; this backend runs on the CPU"
    return why_absent()


def shortest_paths(edge_index: Tensor, ptr: Tensor, packed: bool, size: int | None) -> Tensor:
    """Call the operator; arguments as in the reference.

    The operator checks the data while it reads them, in 0.1 µs a molecule; the checks in PyTorch
    cost 3 µs, so they only run to put into words what it has refused.
    """
    search = torch.ops.collamo_kernels.shortest_paths
    if torch.compiler.is_compiling():
        return search(edge_index, ptr, packed, size)
    try:
        return search(edge_index, ptr, packed, size)
    except ValueError:
        check_contents(edge_index, ptr, packed, size)
        raise
