"""Backend 'triton': `coattention` with the packed bias, and the logits from one batched product."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.pair_bias_attention.call import PairBiasCall


def unsupported(call: PairBiasCall) -> str | None:
    """Return why the Triton attention cannot serve the call, or None."""
    return _triton.unsupported(_attention(call))


def run(call: PairBiasCall) -> tuple[Tensor, Tensor | None]:
    """As the reference, without tensors of weights; q·k is worked out twice for the logits."""
    out = _triton.run(_attention(call))
    if not call.with_logits:
        return out, None
    logits = _logits(call)
    return out, call.bias.copy_(logits) if call.in_place else logits


def _attention(call: PairBiasCall) -> CoattentionCall:
    return CoattentionCall(
        *(call.q, call.k, call.v, call.relations),
        bias=call.bias,
        scale=call.scale,
        dropout_p=call.dropout_p,
    )


def _logits(call: PairBiasCall) -> Tensor:
    layout, bias = call.relations.packed_layout(), call.bias
    with torch.autocast(bias.device.type, enabled=False):
        q, k = (layout.pad(x.to(bias.dtype)).transpose(1, 2) for x in (call.q, call.k))
        products = call.scale * q @ k.mT  # [B, H, i, j]
        return bias + layout.pack_pairs(products.permute(0, 2, 3, 1)).t()
