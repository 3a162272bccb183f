"""The definition of relation-biased attention, in plain PyTorch.

Reads like the formula and builds every [B, H, N, N] tensor of it. Statistics are float32 at
least; float64 stays float64. Every gradient is summed in a fixed order on the CPU and on the GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.coattention.radial_function import (
    evaluate,
    is_typed,
    pairs_with_distance,
    types_of_pairs,
)
from collamo_kernels.pairwise_distances.reference import pairwise_distances
from collamo_kernels.relations import Relations


def unsupported(call: CoattentionCall) -> str | None:
    """Return None: the definition serves every input that fits in memory."""
    return None


def run(call: CoattentionCall) -> Tensor:
    """softmax(scale·QKᵀ + Φ2d + Φ3d + bias) V; see `collamo_kernels.coattention`."""
    relations, bias = call.relations, call.bias
    if relations.packed:
        layout = relations.packed_layout()
        q, k, v = (layout.pad(x).transpose(1, 2) for x in (call.q, call.k, call.v))
        bias = None if bias is None else layout.pad_pairs(bias.t()).permute(0, 3, 1, 2)
        padded = replace(call, q=q, k=k, v=v, relations=relations.padded(), bias=bias)
        return layout.pack(run(padded).transpose(1, 2))
    q, k, v = call.q, call.k, call.v
    with torch.autocast(q.device.type, enabled=False):
        weights = attention_weights(
            *(q, k, relations, call.hop_bias, call.radial, bias), sink=call.sink, scale=call.scale
        )
        values = _real(v.to(weights.dtype), relations.valid)
        return (F.dropout(weights, call.dropout_p) @ values).to(q.dtype)


def attention_weights(
    q: Tensor,
    k: Tensor,
    relations: Relations,
    hop_bias: Tensor | None = None,
    radial: Callable[..., Tensor] | None = None,
    bias: Tensor | None = None,
    *,
    sink: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention map ``[B, H, N, N]``, padded layout, before dropout.

    Rows sum to 1, with a sink to less: the rest is the sink's. Rows of padding, and rows whose
    every key is excluded, are 0.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, k = _real(q.to(dtype), relations.valid), _real(k.to(dtype), relations.valid)
    logits = scale * (q @ k.transpose(-1, -2))  # [B, H, i, j]
    for term in (hop_term(relations, hop_bias), radial_term(relations, radial), bias):
        if term is not None:
            logits = logits + term.to(dtype)
    if relations.valid is not None:
        logits = torch.where(valid_pairs(relations.valid)[:, None], logits, -math.inf)
    # softmax of a row of -inf alone is NaN, forward and backward: give it zeros, then drop it.
    alive = (logits != -math.inf).any(-1, keepdim=True)
    logits = torch.where(alive, logits, 0.0)
    if sink is not None:  # one more key, whose weight meets no value
        keys = logits.shape[-1]
        last = sink.to(dtype)[:, None, None].expand(*logits.shape[:-1], 1)
        return torch.where(alive, torch.cat([logits, last], -1).softmax(-1)[..., :keys], 0.0)
    return torch.where(alive, logits.softmax(-1), 0.0)


def hop_term(relations: Relations, hop_bias: Tensor | None) -> Tensor | None:
    """Φ2d ``[B, H, N, N]``: hop h reads column min(h, S - 2), 255 reads column S - 1."""
    if relations.hops is None or hop_bias is None:
        return None
    last = hop_bias.shape[1] - 1
    hops = relations.hops.long()
    column = torch.where(hops == 255, last, hops.clamp(max=last - 1))
    # F.embedding sums its gradient in a fixed order; an index would use atomics.
    table = hop_bias.t().to(torch.promote_types(hop_bias.dtype, torch.float32))
    return F.embedding(column, table).permute(0, 3, 1, 2)


def radial_term(relations: Relations, radial: Callable[..., Tensor] | None) -> Tensor | None:
    """Φ3d ``[B, H, N, N]``: radial(r_ij) where both atoms are real and have coordinates, else 0."""
    if relations.coordinates is None or radial is None:
        return None
    pairs = pairs_with_distance(relations, relations.coordinates)
    atoms = pairs.any(-1)  # an atom has a distance to itself, so this is "real, with coordinates"
    distance = pairwise_distances(relations.coordinates, atoms)
    types = types_of_pairs(relations) if is_typed(radial) else None
    if torch.compiler.is_compiling():  # a graph has no room for a size that depends on the data
        flat = None if types is None else types.flatten(0, 2)
        phi = evaluate(radial, distance.flatten(), flat).unflatten(0, distance.shape)
        phi = torch.where(pairs[..., None], phi, 0.0)
    else:
        values = evaluate(radial, distance[pairs], None if types is None else types[pairs])
        phi = values.new_zeros(*distance.shape, values.shape[-1]).index_put((pairs,), values)
    return phi.permute(0, 3, 1, 2)


def valid_pairs(valid: Tensor) -> Tensor:
    """``[B, N] → [B, N, N]``: both atoms are real."""
    return valid[:, :, None] & valid[:, None, :]


def _real(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the padding of ``x [B, H, N, D]``: NaN·0 is NaN, so it must go before any product."""
    return x if valid is None else torch.where(valid[:, None, :, None], x, 0.0)
