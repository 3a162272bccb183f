"""Backend 'cpu': csrc/shortest_paths/cpu.cpp, breadth-first search with one bit per pair."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.shortest_paths import op  # noqa: F401  registers the shape of the result
from collamo_kernels.shortest_paths.call import ShortestPathsCall
from collamo_kernels.shortest_paths.checks import check_contents


def unsupported(call: ShortestPathsCall) -> str | None:
    """Return why the compiled search cannot serve the call, or None."""
    if call.edge_index.device.type != "cpu":
        return f"edge_index is on {call.edge_index.device}; this backend runs on the CPU"
    return why_absent()


def run(call: ShortestPathsCall) -> Tensor:
    """Call the operator.

    The operator checks the data while it reads them, in 0.1 µs a molecule; the checks in PyTorch
    cost 3 µs, so they only run to put into words what it has refused.
    """
    search = torch.ops.collamo_kernels.shortest_paths
    if torch.compiler.is_compiling():
        return search(call.edge_index, call.ptr, call.packed, call.size)
    try:
        return search(call.edge_index, call.ptr, call.packed, call.size)
    except ValueError:
        check_contents(call)
        raise
