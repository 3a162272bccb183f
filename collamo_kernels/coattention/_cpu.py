"""Backend 'cpu': csrc/coattention.

Φ3d comes from a radial module in one of two ways. A module with ``table(low, high, dtype,
derivative, occurring)``, such as `GaussianRadial`, is evaluated on the knots of a `RadialTable` and
read from there: no tensor grows with the number of pairs. Any other, and one whose table is None
because it would be too large, is evaluated at the distances of all pairs: H floats per pair then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.coattention import op
from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.coattention.reference import _call_radial, _pairs_with_distance, _types
from collamo_kernels.extension import why_absent
from collamo_kernels.pairwise_distances.reference import pairwise_distances
from collamo_kernels.relations import Relations


def unsupported(call: CoattentionCall) -> str | None:
    """Return why the compiled attention cannot serve the call, or None."""
    q = call.q
    if q.device.type != "cpu":
        return f"q is on {q.device}; this backend runs on the CPU"
    if q.dtype == torch.float64:
        return "float64 runs the reference"
    return why_absent()


def run(call: CoattentionCall) -> Tensor:
    """softmax(scale·QKᵀ + Φ2d + Φ3d + bias) V."""
    q, relations, hop_bias, bias = call.q, call.relations, call.hop_bias, call.bias
    phi3d: dict[str, Any] = {}
    if call.radial is not None and relations.coordinates is not None:
        with torch.autocast("cpu", enabled=False):
            phi3d = _radial_arguments(q, relations, call.radial)
    return op.attend(
        *(q, call.k, call.v),
        hop_bias=None if hop_bias is None else hop_bias.float(),
        bias=bias.float() if bias is not None and bias.dtype == torch.float64 else bias,
        hops=relations.hops,
        valid=relations.valid,
        cu_seqlens=relations.cu_seqlens,
        scale=1 / math.sqrt(q.shape[-1]) if call.scale is None else call.scale,
        dropout_p=call.dropout_p,
        # Drawn where F.dropout would draw, so torch.manual_seed decides.
        seed=torch.randint(2**63 - 1, (1,)) if call.dropout_p > 0 else None,
        **phi3d,
    )


def _radial_arguments(q: Tensor, relations: Relations, radial: Callable) -> dict[str, Any]:
    """Φ3d as the operator takes it: a table where the module has one that will do, else rows."""
    # A table's size depends on the data, so a compiled graph has no room for one.
    if hasattr(radial, "table") and not torch.compiler.is_compiling():
        arguments = _table(q, relations, radial)
        if arguments is not None:
            return arguments
    return _rows(q, relations, radial)


def _table(q: Tensor, relations: Relations, radial: Callable) -> dict[str, Any] | None:
    x = relations.coordinates.float()
    types = typed(relations, radial)
    low, high = 0.0, relations.max_distance
    affine = torch.stack([radial.gamma, radial.beta], 1).float() if types else None
    if types:
        ends = affine.detach() @ affine.new_tensor([[low, high], [1, 1]])  # u at 0 and `high`
        terms = 2 if "atom_types" in types else 1  # u is the sum of two rows then
        low, high = (terms * float(end) for end in (ends.min(), ends.max()))
    if not -math.inf < low <= high < math.inf:
        return None
    learned = x.requires_grad or (affine is not None and affine.requires_grad)
    derivative = learned and torch.is_grad_enabled()
    occurring = None if types else relations.occurring_distances
    table = radial.table(low, high, q.dtype, derivative=derivative, occurring=occurring)
    if table is None:
        return None
    if table.rows.shape[2] != q.shape[1]:
        raise ValueError(f"radial has {table.rows.shape[2]} heads, but q has {q.shape[1]}")
    names = "rows", "slope_rows", "first_knot", "low", "block"
    fields = {name: getattr(table, name) for name in names}
    return {**fields, "coordinates": x, "affine": affine, "has_3d": relations.has_3d, **types}


def _istyped(radial: Callable) -> bool:
    return getattr(radial, "pair_types", None) is not None


def typed(relations: Relations, radial: Callable) -> dict[str, Tensor]:
    """The types of pairs or atoms, int32; empty where the radial module has none."""
    if not _istyped(radial):
        return {}
    name = "pair_types" if relations.pair_types is not None else "atom_types"
    types = getattr(relations, name)
    if types is None:
        radial.affine(torch.zeros(0))  # raises: types is missing
    return {name: types.int()}


def _rows(q: Tensor, relations: Relations, radial: Callable) -> dict[str, Any]:
    """Φ3d of every pair, from the module itself."""
    # A compiled graph has no room for a size that depends on the data: it takes the padding along.
    everything = relations.packed or torch.compiler.is_compiling()
    if relations.packed:
        distance, types = _packed_pairs(relations)
    else:
        pairs = _pairs_with_distance(relations)
        distance = pairwise_distances(relations.coordinates, pairs.any(-1))
        types = _types(relations)
        distance = distance.flatten() if everything else distance[pairs]
        if types is not None:
            types = types.flatten(0, 2) if everything else types[pairs]
    phi = _call_radial(radial, distance, types if _istyped(radial) else None).float()
    if phi.shape[1] != q.shape[1]:
        raise ValueError(
            f"radial returned shape {list(phi.shape)}, but q has {q.shape[1]} heads; "
            "it must map [M] to [M, H]"
        )
    return {"phi": phi, "phi_of_all_pairs": everything, "has_3d": relations.has_3d}


def _packed_pairs(relations: Relations) -> tuple[Tensor, Tensor | None]:
    """Distance ``[P]`` and type of every pair, packed; 0 where a molecule has no conformer."""
    start = relations.cu_seqlens[:-1].long()
    sizes = relations.cu_seqlens.diff().long()
    ends = (sizes * sizes).cumsum(0)
    number = torch.arange(relations.num_pairs)
    molecule = torch.searchsorted(ends, number, right=True)
    place = number - (ends - sizes * sizes)[molecule]
    query = start[molecule] + place // sizes[molecule]
    key = start[molecule] + place % sizes[molecule]
    x = relations.coordinates
    real = torch.ones(relations.num_atoms, dtype=torch.bool)
    if relations.valid is not None:
        real = real & relations.valid
    real = real[query] & real[key]
    if relations.has_3d is not None:
        real = real & relations.has_3d[molecule]
    # F.embedding sums its gradient in a fixed order.
    difference = F.embedding(query, x) - F.embedding(key, x)
    squared = torch.where(real[:, None], difference, 0.0).square().sum(-1)
    apart = squared != 0  # NaN must be seen
    distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    if relations.atom_types is None:
        return distance, relations.pair_types
    types = torch.stack([relations.atom_types[query, 0], relations.atom_types[key, 1]], -1)
    return distance, types
