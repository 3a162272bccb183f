"""What torch must know about the operator beside its C++ code: the shape of the result."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent


def fake(edge_index: Tensor, ptr: Tensor, packed: bool, size: int | None) -> Tensor:
    """Return an empty result; `size` makes its shape known without looking at the data."""
    n = torch.library.get_ctx().new_dynamic_size() if size is None else size
    shape = (n,) if packed else (ptr.shape[0] - 1, n, n)
    return edge_index.new_empty(shape, dtype=torch.uint8)


if why_absent() is None:
    torch.library.register_fake("collamo_kernels::shortest_paths", fake)
