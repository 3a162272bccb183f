"""Launch the Triton kernels: the tensors of one call, as addresses, strides and grids."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from collamo_kernels.coattention.triton import configuration as configuration
from collamo_kernels.coattention.triton import kernels as kernels
from collamo_kernels.coattention.triton import pairs as on_pairs
from collamo_kernels.coattention.triton.configuration import PAIRS
from collamo_kernels.radial import BLOCKS
from collamo_kernels.radial.triton import launch as on_radial
from collamo_kernels.relations import TILE

# So many bytes are set aside at a time for the exact Φ3d, and for the dL/dlogits that the gradients
# of tables need; heads beyond take another round. 256 real molecules (0.23 M pairs) with 32 heads
# are 30 MB.
BUDGET = 2**27


@dataclass(frozen=True)
class Batch:
    """Where the molecules of a call are: what every kernel takes."""

    molecules: int
    longest: int  # atoms of the largest molecule
    atoms: int
    pairs: int
    cu_seqlens: Tensor | None  # packed
    pair_start: Tensor | None  # packed
    tiles: Tensor | None  # packed

    @property
    def packed(self) -> bool:
        """Whether atoms of all molecules follow each other."""
        return self.cu_seqlens is not None

    def blocks(self, size: int) -> int:
        """Blocks of `size` atoms of a padded molecule."""
        return triton.cdiv(self.longest, size)

    def tile_count(self, size: int, listed: bool) -> int:
        """Tiles of `size` atoms of all molecules, at most; or, `listed`, those in `tiles`."""
        if listed:
            return len(self.tiles) * (TILE // size)
        return self.molecules * self.blocks(size)

    def numbers(self, size: int) -> dict:
        """Arguments that `place_of` and `tile_of` take."""
        return {
            "cu_seqlens": self.cu_seqlens,
            "pair_start": self.pair_start,
            "tiles": self.tiles,
            "longest": self.longest,
            "blocks": self.blocks(size),
            "PACKED": self.packed,
            "BLOCK": size,
        }


@dataclass(frozen=True)
class Terms:
    """What is added to the logits; None leaves a term out."""

    hops: Tensor | None = None
    hop_bias: Tensor | None = None  # [H, S]
    spot: Tensor | None = None  # [pairs] int64: where a pair is in both tables
    coefficients: Tensor | None = None  # [H, C + 1, 4]
    fits: Tensor | None = None  # whether the table is fine enough
    exact: on_radial.Function | None = None  # Φ3d where it is not
    u: Tensor | None = None  # [pairs]
    ready: Tensor | None = None  # what `phi` gives of the first heads, where `locate` made it
    bias: Tensor | None = None
    seed: Tensor | None = None

    @property
    def buckets(self) -> int:
        """Columns of the hop table."""
        return 0 if self.hop_bias is None else self.hop_bias.shape[1]

    @property
    def cells(self) -> int:
        """Cells of the radial table."""
        return 0 if self.coefficients is None else self.coefficients.shape[1] - 1

    def phi(self, heads: slice) -> Tensor | None:
        """Φ3d ``[heads, pairs]`` of some heads where the table does not fit, else left as it is."""
        if self.exact is None:
            return None
        if self.ready is not None and heads.start == 0:
            return self.ready
        return on_radial.evaluate(self.u, self.fits, self.exact, heads)


@dataclass(frozen=True)
class Table:
    """A `RadialTable` of fixed size."""

    rows: Tensor  # [C + 1, 2, H]
    first_knot: Tensor
    geometry: Tensor  # number of the first block, 1 / its length
    lengths: Tensor


Rounds = Iterator[tuple[slice, Tensor | None]]  # heads, and their dL/dlogits

# --- attention ----------------------------------------------------------------------------------


def forward(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, valid: Tensor | None, terms: Terms,
    scale: float, dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Result, in the shape of q; largest logit and 1 / Σ exp of each row, ``[atoms, H]``."""
    out = torch.empty_like(q)
    rows = (batch.atoms, q.shape[1])
    most, inverse = (q.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if not batch.atoms:
        return out, most, inverse
    of, width = _bucket(q, batch)
    chosen = configuration.forward(of, width, q.dtype)
    q, k, v = _same_strides(q, k, v)
    tiles = batch.tile_count(chosen.block, chosen.listed(batch.packed))
    shared = _shared(batch, valid, terms, scale, dropout_p, q, out, chosen)
    for heads in _rounds(q.shape[1], batch.pairs, terms.exact is not None):
        count = heads.stop - heads.start
        kernels.attend[(tiles * count,)](
            *(q, k, v, out, most, inverse),
            phi=terms.phi(heads),
            first_head=heads.start,
            group=count,
            **shared,
        )
    return out, most, inverse


def _rounds(heads: int, pairs: int, limited: bool) -> Iterator[slice]:
    """Heads at a time: all, or, if `limited`, those whose float32 per pair are in the budget."""
    group = max(1, min(heads, BUDGET // max(1, 4 * pairs))) if limited else max(1, heads)
    for first in range(0, heads, group):
        yield slice(first, min(first + group, heads))


def backward(
    grad: Tensor, out: Tensor, most: Tensor, inverse: Tensor, q: Tensor, k: Tensor, v: Tensor,
    batch: Batch, valid: Tensor | None, terms: Terms, scale: float, dropout_p: float,
    bias: bool, counters: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Rounds]:  # fmt: skip
    """dq, dk, dv, dbias (where `bias`), and rounds of heads with their dL/dlogits.

    Those are kept for `sum_up`, whose `counters` each round sets to 0, unless these are None. Every
    round must be drawn: the kernels run then.
    """
    dq, dk, dv = (torch.empty_like(out) for _ in range(3))
    keep, dbias = counters is not None, like_bias(terms.bias) if bias else None
    q, k, v = _same_strides(q, k, v)
    grad = grad if grad.stride() == out.stride() else torch.empty_like(out).copy_(grad)
    strides = (0, 0) if dbias is None else (0, dbias.stride(0)) if batch.packed else dbias.stride()

    def rounds() -> Rounds:
        of, width = _bucket(q, batch)
        chosen = configuration.backward(of, width, q.dtype)
        shared = _shared(batch, valid, terms, scale, dropout_p, q, out, chosen)
        tiles = batch.tile_count(chosen.block, chosen.listed(batch.packed))
        kernel, programs, ways = kernels.differentiate, batch.molecules, 1
        if chosen.tiles is None:  # a tile's program for keys, and one for queries
            kernel, programs, ways = kernels.differentiate_tile, tiles, 2
        for heads in _rounds(q.shape[1], batch.pairs, keep or terms.exact is not None):
            count = heads.stop - heads.start
            ds = q.new_empty((count, batch.pairs), dtype=torch.float32) if keep else None
            kernel[(programs * count, ways)](
                *(q, k, v, out, most, inverse, grad, dq, dk, dv, ds, dbias, counters),
                phi=terms.phi(heads),
                first_head=heads.start,
                group=count,
                counter_count=0 if counters is None else len(counters),
                dbias_b=strides[0],
                dbias_h=strides[1],
                **shared,
            )
            yield heads, ds

    return dq, dk, dv, dbias, rounds() if batch.atoms else iter(())


def like_bias(bias: Tensor) -> Tensor:
    """Return where the gradient of a dense bias goes: a row of pairs is in one piece.

    A bias built once is ``[H, pairs]`` in memory, whatever its shape, and so is its gradient.
    """
    shape, stride = bias.shape[-2:], bias.stride()[-2:]
    if bias.dim() == 4 and stride == (shape[1], 1) and 0 not in bias.stride():
        return torch.empty_like(bias)
    return torch.empty_like(bias, memory_format=torch.contiguous_format)


def _bucket(q: Tensor, batch: Batch) -> tuple[int | str, int]:
    width = configuration.padded_width(q.shape[-1])
    mean = batch.atoms / max(1, batch.molecules)
    return configuration.bucket(batch.longest, mean, width, q.dtype), width


def _shared(
    batch: Batch, valid: Tensor | None, terms: Terms, scale: float, dropout_p: float, q: Tensor,
    out: Tensor, chosen: configuration.Configuration,
) -> dict:  # fmt: skip
    """Arguments of the kernels forward and backward; what is compiled in is in capitals."""
    names = ("hops", "hop_bias", "spot", "coefficients", "fits", "bias", "seed")
    bias = (0, 0, 0, 0)
    if terms.bias is not None:
        bias = terms.bias.stride()
        bias = (0, bias[0], 0, bias[1]) if batch.packed else bias
    strides = {"q": _strides(batch, q), "out": _strides(batch, out)}
    # PyTorch's own switch: "highest" is IEEE float32, anything below may use TensorFloat-32.
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        **batch.numbers(chosen.block),
        "valid": valid,
        **{name: getattr(terms, name) for name in names},
        "heads": q.shape[1],
        "pairs": batch.pairs,
        "buckets": terms.buckets,
        "cells": terms.cells,
        "scale": scale,
        **{
            f"{x}_{axis}": s for x, of in strides.items() for axis, s in zip("bht", of, strict=True)
        },
        **{f"bias_{axis}": s for axis, s in zip("bhij", bias, strict=True)},
        "THRESHOLD": math.floor(dropout_p * 2**32),
        "KEPT": 1 / (1 - dropout_p),
        "PRECISION": "ieee" if exact else "tf32",
        "ALIGN": math.gcd(16, *strides["q"], *strides["out"]),
        "LISTED": chosen.listed(batch.packed),
        "SINGLE": chosen.tiles == 1,
        "HEAD": q.shape[-1],  # its divisors say how wide loads may be
        "WIDTH": configuration.padded_width(q.shape[-1]),
        "num_warps": chosen.num_warps,
        "enable_fp_fusion": on_radial.FUSION,
        "num_stages": 1,  # a molecule has few tiles: nothing to run ahead of
    }


def _strides(batch: Batch, x: Tensor) -> tuple[int, int, int]:
    """Over molecules, heads and atoms."""
    if batch.packed:
        return 0, x.stride(1), x.stride(0)
    return x.stride()[:3]


def _same_strides(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if q.stride(-1) == 1 and q.stride() == k.stride() == v.stride():
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


# --- pairs --------------------------------------------------------------------------------------


def locate(
    u: Tensor, table: Table, sums: bool, fits: Tensor | None = None,
    exact: on_radial.Function = on_radial.ABSENT, hops: Tensor | None = None,
    hop_bias: Tensor | None = None,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:  # fmt: skip
    """Spots ``[pairs]``, coefficients ``[H, C + 1, 4]``, and, for `sums`, segments.

    Beside them, of a radial function, what `Terms.phi` gives of the first round of heads.
    """
    cells, heads, pairs = len(table.rows) - 1, table.rows.shape[2], len(u)
    spot = u.new_empty(pairs, dtype=torch.int64)
    coefficients = u.new_empty((heads, cells + 1, 4))
    segments = u.new_empty((2, cells if sums else 0), dtype=torch.int64)
    group = next(_rounds(heads, pairs, limited=True)).stop
    phi = None if exact.layers is None else u.new_empty((group, pairs))
    radial = on_radial.RADIAL
    pair_programs, cell_programs = triton.cdiv(pairs, PAIRS.pairs), cells // PAIRS.cells + 1
    exact_programs = 0 if phi is None else on_radial.programs(pairs)
    on_pairs.locate[(pair_programs + cell_programs + exact_programs,)](
        *(u, hops, table.first_knot, table.geometry, table.rows, table.lengths),
        *(spot, coefficients, segments if sums else None),
        *(fits, exact.layers, phi, pairs, cells, 0 if hops is None else hop_bias.shape[1]),
        pair_programs=pair_programs,
        cell_programs=cell_programs,
        group=group,
        TABLE_BLOCKS=BLOCKS,
        PAIRS=PAIRS.pairs,
        CELLS=PAIRS.cells,
        COLUMN=PAIRS.heads,
        PLACES=radial.places,
        num_warps=radial.warps,
        **exact.sizes(radial.chunk) | {"heads": heads},
    )
    return (spot, coefficients, segments), phi


def build(terms: Terms, like: Tensor, heads: int, pairs: int, dtype: torch.dtype) -> Tensor:
    """Φ2d + Φ3d ``[H, pairs]``, on the device of `like`."""
    bias = like.new_empty((heads, pairs), dtype=dtype)
    for some in _rounds(heads, pairs, terms.exact is not None):
        on_pairs.build[(triton.cdiv(pairs, PAIRS.pairs), some.stop - some.start)](
            *(terms.hops, terms.hop_bias, terms.spot, terms.coefficients),
            *(terms.phi(some), terms.fits, bias, some.start, pairs, terms.buckets, terms.cells),
            PAIRS=PAIRS.pairs,
            num_warps=PAIRS.warps,
            enable_fp_fusion=on_radial.FUSION,
        )
    return bias


@dataclass(frozen=True)
class Sums:
    """What the gradients of the tables are summed by; None leaves one out."""

    hop_order: Tensor | None = None  # [pairs]
    hop_keys: Tensor | None = None
    hop_offsets: Tensor | None = None  # [257]
    cell_order: Tensor | None = None  # [pairs]
    segments: Tensor | None = None  # [2, C]


def counters(terms: Terms, like: Tensor, heads: int) -> Tensor:
    """Set memory aside for what `sum_up` counts of so many heads at a time, on that device."""
    return like.new_empty(sum(_slices(terms, heads)), dtype=torch.int32)


def _slices(terms: Terms, group: int) -> tuple[int, int, int]:
    """Counters of the hop table, of the radial table and of the radial function's parameters."""
    columns = triton.cdiv(group, PAIRS.heads)
    hops = triton.cdiv(terms.buckets, PAIRS.hop_entries) * columns
    if terms.exact is None:
        return hops, 0, 0
    _, slices, chunks = on_radial.parts(terms.exact, 0, on_radial.RADIAL.chunk).grid
    return hops, triton.cdiv(terms.cells + 1, PAIRS.entries) * columns, (slices + 1) * chunks


def sum_up(
    ds: Tensor, heads: slice, sums: Sums, terms: Terms, lengths: Tensor | None, counters: Tensor,
    add: bool, hop_bias: Tensor | None = None, rows: Tensor | None = None,
    layers: Tensor | None = None,
) -> None:  # fmt: skip
    """Write the gradients of some heads into ``hop_bias [H, S]`` and ``rows [C + 1, 2, H]``.

    Into `layers`, the parameters of the radial function, goes what the exact Φ3d of these heads
    sends back (0 where the table fits), on top of what is there if `add`. Each is None where it is
    not wanted. The `counters` must be 0.
    """
    group, pairs = ds.shape
    radial, chunks = on_radial.RADIAL, triton.cdiv(pairs, PAIRS.chunk)
    hop_chunks, cell_chunks = (0 if x is None else chunks for x in (hop_bias, rows))
    hop_size, cell_size = terms.buckets + 1 + hop_chunks, terms.cells + 1 + cell_chunks
    hop_parts = None if hop_bias is None else hop_bias.new_empty((2, hop_size, group))
    cell_parts = None if rows is None else rows.new_empty((4, 2, cell_size, group))
    of = on_radial.ABSENT if layers is None else terms.exact
    exact = on_radial.parts(of, pairs, radial.chunk)
    sizes = of.sizes(radial.chunk) | {"CHUNK": PAIRS.chunk}
    sizes["heads"] = sizes["heads"] if rows is None else rows.shape[2]
    columns = triton.cdiv(group, PAIRS.heads)
    programs = hop_chunks * columns, cell_chunks * columns
    on_pairs.add_up[(sum(programs) + math.prod(exact.grid),)](
        *(ds, sums.hop_order, sums.hop_keys, sums.hop_offsets, hop_parts, hop_bias),
        *(sums.cell_order, terms.spot, cell_parts, sums.segments, lengths, rows),
        *(terms.fits, terms.u, of.layers, exact.rows, layers),
        *counters.split(_slices(terms, group)),
        columns=columns,
        group=group,
        pairs=pairs,
        buckets=terms.buckets,
        cells=terms.cells,
        hop_programs=programs[0],
        cell_programs=programs[1],
        hop_size=hop_size,
        cell_size=cell_size,
        first_head=heads.start,
        COLUMN=PAIRS.heads,
        HOP_ENTRIES=PAIRS.hop_entries,
        HOP_RUNS=PAIRS.hop_runs,
        ENTRIES=PAIRS.entries,
        RUNS=PAIRS.runs,
        ADD=add,
        PLACES=radial.places,
        GAUSSIANS=radial.chunk,
        num_warps=radial.warps,
        **sizes,
        **exact.numbers(),
    )


def slopes(ds: Tensor, terms: Terms, coefficients: Tensor, du: Tensor | None) -> Tensor:
    """du ``[pairs]``: what dL/dlogits of these heads send back to u, on top of `du`."""
    group, pairs = ds.shape
    out = torch.empty_like(terms.u) if du is None else du
    on_pairs.slope[(triton.cdiv(pairs, 128),)](
        *(ds, terms.spot, coefficients, terms.fits, out),
        *(pairs, group, terms.cells),
        ADD=du is not None,
        PAIRS=128,
        num_warps=PAIRS.warps,
        enable_fp_fusion=on_radial.FUSION,
    )
    return out


def stretch(
    batch: Batch, distances: Tensor, affine: Tensor, pair_types: Tensor | None,
    atom_types: Tensor | None,
) -> Tensor:  # fmt: skip
    """u = γ·r + β ``[pairs]``."""
    u = torch.empty_like(distances)
    on_pairs.stretch[(batch.tile_count(PAIRS.atoms, batch.packed),)](
        *(distances, affine, pair_types, atom_types),
        u=u,
        **batch.numbers(PAIRS.atoms),
        num_warps=PAIRS.atoms_warps,
        enable_fp_fusion=on_radial.FUSION,
    )
    return u


def pull(
    batch: Batch, du: Tensor, coordinates: Tensor, distances: Tensor, affine: Tensor | None,
    pair_types: Tensor | None, atom_types: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients of the coordinates ``[atoms, 3]`` and of γ, β ``[types, 2]``."""
    dx = du.new_empty((batch.atoms, 3))
    du_r, of_query, of_key = None, None, None
    if affine is not None:
        du_r = torch.empty_like(du)
        of_query, of_key = du.new_empty((2, batch.atoms, 2)).unbind(0)
    on_pairs.pull[(batch.tile_count(PAIRS.atoms, batch.packed),)](
        *(coordinates, distances, affine, pair_types, atom_types),
        du=du,
        dx=dx,
        du_r=du_r,
        of_query=of_query,
        of_key=of_key,
        **batch.numbers(PAIRS.atoms),
        num_warps=PAIRS.atoms_warps,
        enable_fp_fusion=on_radial.FUSION,
    )
    if affine is None:
        return dx, None
    # The gradient of an embedding is summed in a fixed order, without atomics.
    add = torch.ops.aten.embedding_dense_backward
    count = len(affine)
    if pair_types is not None:
        both = torch.stack([du_r, du], 1)
        return dx, add(both, pair_types.flatten().long(), count, -1, False)
    query, key = atom_types.reshape(-1, 2).long().unbind(1)
    return dx, add(of_query, query, count, -1, False) + add(of_key, key, count, -1, False)
