"""Attention over keys that no relation joins to the queries: another sequence, of any length."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(QKᵀ/√d + bias) V, by PyTorch.

    Parameters
    ----------
    q, k, v
        ``[B, H, N, D]`` queries, ``[B, H, M, D]`` keys and values.
    bias
        ``[B, H, N, M]``, or None; -inf excludes a pair. A row without keys is 0.
    sink
        ``[H]``, as in `collamo_kernels.coattention`: a key more, whose value is zero.
    dropout_p
        Probability of dropping a weight.
    """
    shape = [*q.shape[:3], k.shape[2]]
    if bias is not None and list(bias.shape) != shape:
        raise ValueError(f"bias has shape {list(bias.shape)}; it must be {shape}")
    if sink is not None:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        logit = sink[:, None, None].expand(*q.shape[:3], 1)
        rest = q.new_zeros(()).expand(*q.shape[:3], k.shape[2] - 1) if bias is None else bias
        bias = torch.cat([rest.to(q.dtype), logit.to(q.dtype)], -1)
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
    # A row of -inf alone is NaN in some of PyTorch's kernels: give it zeros, then drop it.
    dead = (bias == -math.inf).all(-1, keepdim=True)
    mask = bias.to(q.dtype).masked_fill(dead, 0.0)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)
    return torch.where(dead, 0.0, out)
