"""Backend 'cpu': csrc/cpu/neighbour_sum.cpp, one pass over the edges and no tensor of messages."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.neighbour_sum import op  # noqa: F401  registers gradients


def unsupported(x: Tensor, table: Tensor, **others: object) -> str | None:
    """Return why the compiled kernel cannot serve these arguments, or None."""
    if x.device.type != "cpu":
        return f"x is on {x.device}; this backend runs on the CPU"
    scale = others["scale"]
    for name, value in {"x": x, "table": table, "scale": scale}.items():
        if value is not None and value.dtype != torch.float32:
            return f"{name} is {value.dtype}; this backend takes float32, the reference any"
    return why_absent()


def neighbour_sum(**arguments: object) -> Tensor:
    """Call the operator; arguments as in the reference."""
    return torch.ops.collamo_kernels.neighbour_sum(*arguments.values())
