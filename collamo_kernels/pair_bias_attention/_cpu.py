"""Backend 'cpu': csrc/cpu/pair_bias_attention*.cpp, one task per molecule and pair of heads."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.pair_bias_attention import op  # noqa: F401  registers gradients
from collamo_kernels.relations import Relations


def unsupported(q: Tensor, **arguments: object) -> str | None:
    """Return why the compiled kernel cannot serve these arguments, or None."""
    if q.device.type != "cpu":
        return f"q is on {q.device}; this backend runs on the CPU"
    if q.dtype not in (torch.float32, torch.bfloat16):
        return f"q is {q.dtype}; this backend takes float32 and bfloat16, the reference any"
    return why_absent()


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
    """Call the operator; arguments as in the reference."""
    # Drawn where F.dropout would draw, so torch.manual_seed decides.
    seed = torch.randint(2**63 - 1, (1,)) if dropout_p > 0 else None
    arguments = q, k, v, bias, relations.cu_seqlens, seed, scale, dropout_p
    operators = torch.ops.collamo_kernels
    if with_logits and in_place:
        return operators.pair_bias_attention_(*arguments), bias
    out, logits = operators.pair_bias_attention(*arguments, with_logits)
    return out, logits if with_logits else None
