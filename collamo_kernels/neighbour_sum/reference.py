"""The definition of sums over neighbours, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unsupported(**arguments: object) -> str | None:
    """Return None: the definition serves every input."""
    return None


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
