"""Backend 'triton': the kernels of `coattention` with the packed bias, which write the logits."""

from __future__ import annotations

from torch import Tensor

from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.coattention.dropout import drawn
from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.pair_bias_attention.call import PairBiasCall


def unsupported(call: PairBiasCall) -> str | None:
    """Return why the Triton attention cannot serve the call, or None."""
    tensors = call.q, call.k, call.v, call.relations
    return _triton.unsupported(CoattentionCall(*tensors, bias=call.bias))


def run(call: PairBiasCall) -> tuple[Tensor, Tensor | None]:
    """One kernel forward and one backward; nobody waits for the device."""
    from collamo_kernels.pair_bias_attention import triton_op as triton_op

    q, relations = call.q, call.relations
    assert relations.cu_seqlens is not None  # it is packed
    assert relations.max_seqlen is not None
    arguments = triton_op.PairBias(
        q if q.stride(-1) == 1 else q.contiguous(),  # the result is laid out as q is
        call.k,
        call.v,
        call.bias,
        *(relations.cu_seqlens, relations.pair_start, relations.tiles),
        *drawn(call.dropout_p, q.device),
        scale=call.scale,
        longest=relations.max_seqlen,
    )
    if call.with_logits and call.in_place:
        return triton_op.attend_in_place(arguments), call.bias
    out, logits = triton_op.attend(arguments, call.with_logits)
    return out, logits if call.with_logits else None
