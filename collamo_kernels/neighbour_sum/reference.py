"""The definition of sums over neighbours, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from collamo_kernels.neighbour_sum.call import NeighbourSumCall


def unsupported(call: NeighbourSumCall) -> str | None:
    """Return None: the definition serves every input."""
    return None


def run(call: NeighbourSumCall) -> Tensor:
    """Compute the definition."""
    edges = call.source, call.kind, call.ptr
    return neighbour_sum(call.x, call.table, *edges, call.receiver, call.scale, call.relu)


def neighbour_sum(
    x: Tensor,
    table: Tensor,
    source: Tensor,
    kind: Tensor,
    ptr: Tensor,
    receiver: Tensor | None = None,
    scale: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """Return scale·x_i + Σ_e relu(x_source + table_kind); see `collamo_kernels.neighbour_sum`."""
    messages = x.index_select(0, source) + F.embedding(kind, table)  # [E, C]
    messages = (F.relu(messages) if relu else messages).to(x.dtype)
    edges = torch.arange(len(messages), device=x.device)
    total = F.embedding_bag(edges, messages, ptr, mode="sum", include_last_offset=True)
    if scale is None:
        return total
    itself = x if receiver is None else x.index_select(0, receiver)
    return (total + scale * itself).to(x.dtype)
