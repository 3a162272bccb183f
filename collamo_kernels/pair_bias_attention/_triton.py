"""Backend 'triton': `coattention` with the packed bias, and the logits from one batched product."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.relations import PackedLayout, Relations


def unsupported(q: Tensor, relations: Relations, **arguments: object) -> str | None:
    """Return why the Triton attention cannot serve these arguments, or None."""
    return _triton.unsupported(q, relations)


def pair_bias_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    relations: Relations,
    scale: float,
    dropout_p: float,
    with_logits: bool,
    in_place: bool,
) -> tuple[Tensor, Tensor | None]:
    """As the reference, without tensors of weights; q·k is worked out twice for the logits."""
    out = _triton.coattention(q, k, v, relations, bias=bias, scale=scale, dropout_p=dropout_p)
    if not with_logits:
        return out, None
    logits = _logits(q, k, bias, relations, scale)
    return out, bias.copy_(logits) if in_place else logits


def _logits(q: Tensor, k: Tensor, bias: Tensor, relations: Relations, scale: float) -> Tensor:
    layout = PackedLayout(relations.cu_seqlens, relations.max_seqlen)
    with torch.autocast(q.device.type, enabled=False):
        q, k = (layout.pad(x.to(bias.dtype)).transpose(1, 2) for x in (q, k))  # [B, H, N, D]
        return bias + layout.pack_pairs((scale * q @ k.mT).permute(0, 2, 3, 1)).t()
