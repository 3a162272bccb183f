"""What the operators of the attention compute, in plain PyTorch: for their second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.coattention.arguments import Arguments
from collamo_kernels.coattention.dropout import dropout_factors
from collamo_kernels.coattention.reference import attention_weights, valid_pairs
from collamo_kernels.pairwise_distances.reference import pairwise_distances
from collamo_kernels.radial import RadialTable
from collamo_kernels.relations import Relations


def definition(arguments: Arguments) -> Tensor:
    """Return what the forward operator makes of these arguments."""
    q, k, v, bias = arguments.q, arguments.k, arguments.v, arguments.bias
    relations = Relations(
        hops=arguments.hops, valid=arguments.valid, cu_seqlens=arguments.cu_seqlens
    )
    dense = _phi3d(arguments)  # [B, N, N, H]
    layout = relations.packed_layout() if relations.packed else None
    if layout is not None:
        q, k, v = (layout.pad(x).transpose(1, 2) for x in (q, k, v))
        bias = None if bias is None else layout.pad_pairs(bias.t()).permute(0, 3, 1, 2)
        relations = relations.padded()
    bias = _sum(bias, None if dense is None else dense.permute(0, 3, 1, 2))
    weights = attention_weights(
        *(q, k, relations, arguments.hop_bias, None, bias),
        sink=arguments.sink,
        scale=arguments.scale,
    )
    seed, dropout_p = arguments.seed, arguments.dropout_p
    if seed is not None and dropout_p is not None:
        weights = weights * dropout_factors(seed, weights.shape, float(dropout_p))
    if relations.valid is not None:
        v = torch.where(relations.valid[:, None, :, None], v, 0.0)
    out = (weights @ v.to(weights.dtype)).to(q.dtype)
    return out if layout is None else layout.pack(out.transpose(1, 2))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a.to(b.dtype) + b


def _phi3d(arguments: Arguments) -> Tensor | None:
    """Φ3d ``[B, N, N, H]``, 0 where a pair has none; None without a table and without rows."""
    q, phi, has_3d = arguments.q, arguments.phi, arguments.has_3d
    if phi is None and arguments.rows is None:
        return None
    relations = Relations(
        valid=arguments.valid,
        cu_seqlens=arguments.cu_seqlens,
        coordinates=arguments.coordinates,
        pair_types=arguments.pair_types,
        atom_types=arguments.atom_types,
    )
    if relations.packed and phi is not None and arguments.phi_of_all_pairs:
        phi = relations.packed_layout().pad_pairs(phi).flatten(0, 2)
    relations = relations.padded()
    atoms = relations.valid
    if atoms is None:
        atoms = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool)
    pairs = valid_pairs(atoms if has_3d is None else atoms & has_3d[:, None])
    if phi is not None:
        values = phi[pairs.flatten()] if arguments.phi_of_all_pairs else phi
    else:
        values = _from_table(arguments, relations, pairs)
    return values.new_zeros(*pairs.shape, values.shape[-1]).index_put((pairs,), values)


def _from_table(arguments: Arguments, relations: Relations, pairs: Tensor) -> Tensor:
    rows, first_knot, x = arguments.rows, arguments.first_knot, relations.coordinates
    if rows is None or first_knot is None or x is None:
        raise ValueError("a table of Φ3d takes rows, first_knot and coordinates; give all three")
    u = pairwise_distances(x, pairs.any(-1))[pairs]
    if arguments.affine is not None:
        gamma, beta = _gamma_beta(arguments.affine, relations, pairs).unbind(-1)
        u = gamma * u + beta
    slope_rows = arguments.slope_rows
    return RadialTable(rows, first_knot, arguments.low, arguments.block, [], slope_rows).lookup(u)


def _gamma_beta(affine: Tensor, relations: Relations, pairs: Tensor) -> Tensor:
    """γ and β of each pair, ``[M, 2]``."""
    if relations.pair_types is not None:
        return F.embedding(relations.pair_types[pairs].long(), affine)
    if relations.atom_types is None:
        raise ValueError("affine is given without pair_types or atom_types; give one of them")
    query, key = F.embedding(relations.atom_types.long(), affine).unbind(2)
    return (query[:, :, None] + key[:, None])[pairs]
