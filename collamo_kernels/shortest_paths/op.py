"""What torch must know about the operator beside its C++ schema: the shape of its result."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent


def fake(edge_index: Tensor, ptr: Tensor, packed: bool, size: int) -> Tensor:
    """Return an empty result; `size` makes its shape known without looking at the data."""
    shape = (size,) if packed else (ptr.shape[0] - 1, size, size)
    return edge_index.new_empty(shape, dtype=torch.uint8)


if why_absent() is None:
    torch.library.register_fake("collamo_kernels::shortest_paths", fake)
