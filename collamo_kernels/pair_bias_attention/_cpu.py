"""Backend 'cpu': csrc/pair_bias_attention, one task per molecule and pair of heads."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.pair_bias_attention import op  # noqa: F401  registers gradients
from collamo_kernels.pair_bias_attention.call import PairBiasCall


def unsupported(call: PairBiasCall) -> str | None:
    """Return why the compiled kernel cannot serve the call, or None."""
    q = call.q
    if q.device.type != "cpu":
        return f"q is on {q.device}; this backend runs on the CPU"
    if q.dtype not in (torch.float32, torch.bfloat16):
        return f"q is {q.dtype}; this backend takes float32 and bfloat16, the reference any"
    return why_absent()


def run(call: PairBiasCall) -> tuple[Tensor, Tensor | None]:
    """Call the operator."""
    # Drawn where F.dropout would draw, so torch.manual_seed decides.
    seed = torch.randint(2**63 - 1, (1,)) if call.dropout_p > 0 else None
    tensors = call.q, call.k, call.v, call.bias, call.relations.cu_seqlens, seed
    arguments = *tensors, call.scale, call.dropout_p
    operators = torch.ops.collamo_kernels
    if call.with_logits and call.in_place:
        return operators.pair_bias_attention_(*arguments), call.bias
    out, logits = operators.pair_bias_attention(*arguments, call.with_logits)
    return out, logits if call.with_logits else None
