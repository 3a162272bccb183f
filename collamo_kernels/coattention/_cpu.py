"""Backend 'cpu': csrc/coattention.

Φ3d comes from a radial module in one of two ways. A module with ``table(low, high, dtype,
derivative, occurring)``, such as `GaussianRadial`, is evaluated on the knots of a `RadialTable` and
read from there: no tensor grows with the number of pairs. Any other, and one whose table is None
because it would be too large, is evaluated at the distances of all pairs: H floats per pair then.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.coattention import op
from collamo_kernels.coattention.arguments import Arguments
from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.coattention.dropout import drawn
from collamo_kernels.coattention.radial_function import (
    Tabulated,
    evaluate,
    is_typed,
    pairs_with_distance,
    tabulates,
    types_of,
    types_of_pairs,
)
from collamo_kernels.extension import why_absent
from collamo_kernels.pairwise_distances.reference import pairwise_distances
from collamo_kernels.relations import Relations


def unsupported(call: CoattentionCall) -> str | None:
    """Return why the compiled attention cannot serve the call, or None."""
    if call.q.device.type != "cpu":
        return f"q is on {call.q.device}; this backend runs on the CPU"
    if call.q.dtype == torch.float64:
        return "float64 runs the reference"
    return why_absent()


def run(call: CoattentionCall) -> Tensor:
    """softmax(scale·QKᵀ + Φ2d + Φ3d + bias) V."""
    relations, hop_bias, bias = call.relations, call.hop_bias, call.bias
    arguments = Arguments(
        *(call.q, call.k, call.v),
        hop_bias=None if hop_bias is None else hop_bias.float(),
        bias=bias.float() if bias is not None and bias.dtype == torch.float64 else bias,
        sink=None if call.sink is None else call.sink.float(),
        hops=relations.hops,
        valid=relations.valid,
        cu_seqlens=relations.cu_seqlens,
        scale=1 / math.sqrt(call.q.shape[-1]) if call.scale is None else call.scale,
    )
    if call.radial is not None and relations.coordinates is not None:
        with torch.autocast("cpu", enabled=False):
            arguments = _with_radial(arguments, relations, relations.coordinates, call.radial)
    if call.dropout_p > 0:
        seed, dropout_p = drawn(call.dropout_p, call.q.device)
        arguments = arguments._replace(seed=seed, dropout_p=dropout_p)
    return op.attend(arguments)


def _with_radial(
    arguments: Arguments, relations: Relations, x: Tensor, radial: Callable[..., Tensor]
) -> Arguments:
    """Add Φ3d of coordinates x: a table where the module has one that will do, else rows."""
    # A table's size depends on the data, so a compiled graph has no room for one.
    if tabulates(radial) and not torch.compiler.is_compiling():
        tabulated = _with_table(arguments, relations, x.float(), radial)
        if tabulated is not None:
            return tabulated
    return _with_rows(arguments, relations, x, radial)


def _with_table(
    arguments: Arguments, relations: Relations, x: Tensor, radial: Tabulated
) -> Arguments | None:
    q, types = arguments.q, types_of(relations, radial)
    low, high, affine = 0.0, relations.max_distance, None
    if types.rows:
        affine = torch.stack([radial.gamma, radial.beta], 1).float()
        ends = affine.detach() @ affine.new_tensor([[low, high], [1, 1]])  # u at 0 and `high`
        low, high = (types.rows * float(end) for end in (ends.min(), ends.max()))
    if not -math.inf < low <= high < math.inf:
        return None
    learned = x.requires_grad or (affine is not None and affine.requires_grad)
    derivative = learned and torch.is_grad_enabled()
    occurring = None if types.rows else relations.occurring_distances
    table = radial.table(low, high, q.dtype, derivative=derivative, occurring=occurring)
    if table is None:
        return None
    if table.rows.shape[2] != q.shape[1]:
        raise ValueError(f"radial has {table.rows.shape[2]} heads, but q has {q.shape[1]}")
    return arguments._replace(
        rows=table.rows,
        slope_rows=table.slope_rows,
        first_knot=table.first_knot,
        low=float(table.low),
        block=float(table.block),
        coordinates=x,
        affine=affine,
        has_3d=relations.has_3d,
        pair_types=types.pair_types,
        atom_types=types.atom_types,
    )


def _with_rows(
    arguments: Arguments, relations: Relations, x: Tensor, radial: Callable[..., Tensor]
) -> Arguments:
    """Φ3d of every pair, from the module itself."""
    # A compiled graph has no room for a size that depends on the data: it takes the padding along.
    everything = relations.packed or torch.compiler.is_compiling()
    distance = _distances(relations, x)
    types = _types_of_all_pairs(relations) if is_typed(radial) else None
    if not everything:
        pairs = pairs_with_distance(relations, x).flatten()
        distance = distance[pairs]
        types = None if types is None else types[pairs]
    phi = evaluate(radial, distance, types).float()
    heads = arguments.q.shape[1]
    if phi.shape[1] != heads:
        raise ValueError(
            f"radial returned shape {list(phi.shape)}, but q has {heads} heads; "
            "it must map [M] to [M, H]"
        )
    return arguments._replace(phi=phi, phi_of_all_pairs=everything, has_3d=relations.has_3d)


def _distances(relations: Relations, x: Tensor) -> Tensor:
    """Å of every pair, ``[P]`` or ``[B·N·N]``, 0 where there is none; with the history of x."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        known = relations.distances  # of all layers, and prepared perhaps
        return torch.where(known == math.inf, 0.0, known)
    if not relations.packed:
        return pairwise_distances(x, pairs_with_distance(relations, x).any(-1)).flatten()
    query, key = relations.atoms_of_pairs()
    atoms = relations.atoms_with_coordinates()
    # F.embedding sums its gradient in a fixed order.
    difference = F.embedding(query, x) - F.embedding(key, x)
    real = (atoms[query] & atoms[key])[:, None]
    squared = torch.where(real, difference, 0.0).square().sum(-1)
    apart = squared != 0  # NaN must be seen
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def _types_of_all_pairs(relations: Relations) -> Tensor | None:
    """``[P]`` or ``[B·N·N]``, of atoms' types with two columns; None where there are none."""
    if not relations.packed:
        types = types_of_pairs(relations)
        return None if types is None else types.flatten(0, 2)
    if relations.atom_types is None:
        return relations.pair_types
    query, key = relations.atoms_of_pairs()
    return torch.stack([relations.atom_types[query, 0], relations.atom_types[key, 1]], -1)
