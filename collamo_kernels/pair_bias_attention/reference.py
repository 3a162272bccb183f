"""The definition of attention with a pair bias, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.pair_bias_attention.call import PairBiasCall
from collamo_kernels.relations import Relations


def unsupported(call: PairBiasCall) -> str | None:
    """Return None: the definition serves every input that fits in memory."""
    return None


def run(call: PairBiasCall) -> tuple[Tensor, Tensor | None]:
    """softmax(scale·QKᵀ + bias) V and the logits; see `collamo_kernels.pair_bias_attention`."""

    def drop(weights: Tensor, molecule: int) -> Tensor:
        return F.dropout(weights, call.dropout_p)

    inputs = call.q, call.k, call.v, call.bias
    out, logits = formula(*inputs, call.relations, call.scale, drop)
    if call.with_logits and call.in_place:
        logits = call.bias.copy_(logits)
    return out, logits if call.with_logits else None


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    relations: Relations,
    scale: float,
    drop: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return output and logits, molecule by molecule.

    `drop` is what becomes of the weights ``[H, n, n]`` of a molecule, given its number.
    """
    sizes = relations.sizes().tolist()
    atoms = (x.split(sizes) for x in (q, k, v))
    biases = bias.split([n * n for n in sizes], dim=1)
    outputs, logits = [q[:0]], [bias[:, :0]]
    for molecule, (*qkv, own) in enumerate(zip(*atoms, biases, strict=True)):
        with torch.autocast(q.device.type, enabled=False):
            query, key, value = (x.to(bias.dtype).transpose(0, 1) for x in qkv)  # [H, n, D]
            own = own.unflatten(1, (sizes[molecule],) * 2) + scale * query @ key.mT
            # softmax of a row of -∞ alone is NaN: give it zeros, then drop it.
            alive = (own != -math.inf).any(-1, keepdim=True)
            weights = torch.where(alive, torch.where(alive, own, 0.0).softmax(-1), 0.0)
            outputs.append((drop(weights, molecule) @ value).transpose(0, 1).to(q.dtype))
            logits.append(own.flatten(1))
    return torch.cat(outputs), torch.cat(logits, 1)
