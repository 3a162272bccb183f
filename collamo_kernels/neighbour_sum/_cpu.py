"""Backend 'cpu': csrc/neighbour_sum, one pass over the edges and no tensor of messages."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.neighbour_sum import op  # noqa: F401  registers gradients
from collamo_kernels.neighbour_sum.call import NeighbourSumCall


def unsupported(call: NeighbourSumCall) -> str | None:
    """Return why the compiled kernel cannot serve the call, or None."""
    if call.x.device.type != "cpu":
        return f"x is on {call.x.device}; this backend runs on the CPU"
    for name, value in {"x": call.x, "table": call.table, "scale": call.scale}.items():
        if value is not None and value.dtype != torch.float32:
            return f"{name} is {value.dtype}; this backend takes float32, the reference any"
    return why_absent()


def run(call: NeighbourSumCall) -> Tensor:
    """Call the operator."""
    edges = call.source, call.kind, call.ptr, call.receiver
    return torch.ops.collamo_kernels.neighbour_sum(
        call.x, call.table, *edges, call.scale, call.relu
    )
