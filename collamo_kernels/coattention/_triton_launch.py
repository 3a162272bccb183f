"""Launch the Triton kernels: the tensors of one call, as addresses, strides and grids."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.coattention import _triton_configuration as configuration
from collamo_kernels.coattention import _triton_kernels as kernels

# dL/dlogits of so many bytes are kept at a time for the gradients of tables; heads beyond take
# another round. 256 real molecules (0.23 M pairs) with 32 heads are 30 MB.
BUDGET = 2**28
HOP_SLOTS, CELL_SLOTS = 64, 8


@dataclass(frozen=True)
class Batch:
    """Where the molecules of a call are: numbers that every kernel takes."""

    packed: bool
    count: int  # molecules
    heads: int
    width: int
    atoms: int
    pairs: int
    longest: int  # atoms of the largest molecule
    atom_start: Tensor  # [B + 1] int64
    pair_start: Tensor  # [B + 1] int64

    def blocks(self, size: int) -> int:
        """Blocks of `size` atoms that hold the largest molecule."""
        return max(1, -(-self.longest // size))


@dataclass(frozen=True)
class Terms:
    """What is added to the logits; None leaves a term out."""

    hops: Tensor | None = None
    hop_bias: Tensor | None = None  # [H, S]
    cell: Tensor | None = None  # [pairs] int32
    fraction: Tensor | None = None  # [pairs]
    coefficients: Tensor | None = None  # [H, C, 4]
    bias: Tensor | None = None
    seed: Tensor | None = None

    @property
    def buckets(self) -> int:
        """Columns of the hop table."""
        return 0 if self.hop_bias is None else self.hop_bias.shape[1]

    @property
    def cells(self) -> int:
        """Cells of the radial table."""
        return 0 if self.coefficients is None else self.coefficients.shape[1]


def batch_of(q: Tensor, cu_seqlens: Tensor | None, max_seqlen: int, num_pairs: int) -> Batch:
    """Number the atoms and pairs of a call."""
    if cu_seqlens is None:
        molecules, heads, n, width = q.shape
        start = torch.arange(molecules + 1, device=q.device)
        sizes = molecules * n, molecules * n * n, n
        return Batch(False, molecules, heads, width, *sizes, start * n, start * n * n)
    start = cu_seqlens.long()
    pairs = F.pad(start.diff().square().cumsum(0), (1, 0))
    return Batch(
        True, len(start) - 1, q.shape[1], q.shape[2], len(q), num_pairs, max_seqlen, start, pairs
    )


def polynomials(rows: Tensor, first_knot: Tensor, block: float) -> Tensor:
    """Cubic coefficients ``[H, C, 4]`` in the place x of [0, 1] of each cell, from a table's rows.

    The Hermite formula of `RadialTable.lookup`, sorted by powers: three multiply-adds and one
    16-byte load a pair, where the formula takes eleven operations and four loads.
    """
    h = _cell_lengths(first_knot, block, len(rows) - 1)
    (y0, s0), (y1, s1) = (rows[:-1].unbind(1), rows[1:].unbind(1))
    rise, s0, s1 = y1 - y0, h * s0, h * s1
    powers = torch.stack([y0, s0, 3 * rise - 2 * s0 - s1, s0 + s1 - 2 * rise], 2)  # [C, H, 4]
    return powers.transpose(0, 1).contiguous()


def row_gradient(moments: Tensor, first_knot: Tensor, block: float) -> Tensor:
    """Gradient ``[G, 2, H]`` of a table's rows from that of `polynomials`: its transpose."""
    m0, m1, m2, m3 = moments.transpose(0, 1).unbind(2)  # [C, H] each
    h = _cell_lengths(first_knot, block, len(m0))
    ends = 3 * m2 - 2 * m3
    left = torch.stack([m0 - ends, h * (m1 - 2 * m2 + m3)], 1)
    right = torch.stack([ends, h * (m3 - m2)], 1)
    return F.pad(left, (0, 0, 0, 0, 0, 1)) + F.pad(right, (0, 0, 0, 0, 1, 0))


def _cell_lengths(first_knot: Tensor, block: float, count: int) -> Tensor:
    """Å, ``[C, 1]``; `count` saves asking the device how many there are."""
    cells = first_knot.diff()
    return torch.repeat_interleave(block / cells, cells, output_size=count)[:, None]


def locate(batch: Batch, table: dict, molecules: dict) -> tuple[Tensor, Tensor]:
    """Cell of the radial table and place in it of every pair, ``[pairs]`` each."""
    like = molecules["coordinates"]
    cell = like.new_empty(batch.pairs, dtype=torch.int32)
    fraction = like.new_empty(batch.pairs)
    if batch.pairs:
        size = configuration.PAIR_BLOCK
        first_knot, block = table["first_knot"], table["block"]
        kernels.locate[(batch.count * batch.blocks(size),)](
            **molecules,
            atom_start=batch.atom_start,
            pair_start=batch.pair_start,
            first_knot=first_knot,
            cell=cell,
            fraction=fraction,
            blocks=batch.blocks(size),
            table_blocks=len(first_knot) - 1,
            first_block=table["low"] / block,
            per_block=1 / block,
            BLOCK=size,
            num_warps=configuration.PAIR_WARPS,
        )
    return cell, fraction


def forward(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, valid: Tensor | None, terms: Terms,
    scale: float, dropout_p: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Result, in the shape of q, and log Σ exp ``[atoms, H]``."""
    out = torch.empty_like(q)
    lse = q.new_empty((batch.atoms, batch.heads), dtype=torch.float32)
    if not batch.atoms:
        return out, lse
    width = configuration.padded_width(batch.width)
    of = configuration.bucket(batch.longest, width, q.dtype)
    chosen = configuration.forward(of, width, q.dtype)
    q, k, v = _same_strides(q, k, v)
    blocks = batch.blocks(chosen.block)
    kernels.attend[(batch.count * blocks * batch.heads,)](
        *(q, k, v, out, lse),
        blocks=blocks,
        **_shared(batch, valid, terms, scale, q, out),
        **_compiled(batch, width, dropout_p, chosen),
    )
    return out, lse


def backward(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, batch: Batch,
    valid: Tensor | None, terms: Terms, scale: float, dropout_p: float, keep: bool, bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Iterator[tuple[slice, Tensor]]]:  # fmt: skip
    """dq, dk, dv, dbias (where `bias`), and rounds of heads with their dL/dlogits.

    Without `keep` no round has any. Every round must be drawn: the kernels run then.
    """
    dq, dk, dv = (torch.empty_like(out) for _ in range(3))
    width = configuration.padded_width(batch.width)
    of = configuration.bucket(batch.longest, width, q.dtype)
    chosen = configuration.backward(of, width, q.dtype)
    if not chosen.single:
        dq = torch.empty_like(out, dtype=torch.float32)
    dbias = None
    if bias:
        dbias = terms.bias.new_empty(terms.bias.shape)
    rounds = _rounds(grad, out, lse, q, k, v, batch, valid, terms, scale, dropout_p, keep,
                     (dq, dk, dv, dbias), chosen)  # fmt: skip
    return dq, dk, dv, dbias, rounds


def _rounds(
    grad, out, lse, q, k, v, batch, valid, terms, scale, dropout_p, keep, results, chosen
) -> Iterator[tuple[slice, Tensor]]:  # fmt: skip
    if not batch.atoms:
        return
    width = configuration.padded_width(batch.width)
    q, k, v = _same_strides(q, k, v)
    grad = grad if grad.stride() == out.stride() else torch.empty_like(out).copy_(grad)
    dbias = results[3]
    strides = (0, 0) if dbias is None else (0, dbias.stride(0)) if batch.packed else dbias.stride()
    group = batch.heads
    if keep:
        group = max(1, min(group, BUDGET // (4 * batch.pairs)))
    for first in range(0, batch.heads, group):
        heads = slice(first, min(first + group, batch.heads))
        count = heads.stop - heads.start
        ds = q.new_empty((count, batch.pairs), dtype=torch.float32) if keep else None
        kernels.differentiate[(batch.count * count,)](
            *(q, k, v, out, lse, grad, *results[:3], ds, dbias),
            first_head=first,
            group=count,
            pairs=batch.pairs,
            dbias_b=strides[0],
            dbias_h=strides[1],
            **_shared(batch, valid, terms, scale, q, out),
            **_compiled(batch, width, dropout_p, chosen),
        )
        yield heads, ds


def _shared(
    batch: Batch, valid: Tensor | None, terms: Terms, scale: float, q: Tensor, out: Tensor
) -> dict:
    names = ("hops", "hop_bias", "cell", "fraction", "coefficients", "bias", "seed")
    bias = (0, 0, 0, 0)
    if terms.bias is not None:
        bias = terms.bias.stride()
        bias = (0, bias[0], 0, bias[1]) if batch.packed else bias
    strides = zip(("q", "out"), (_strides(batch, q), _strides(batch, out)), strict=True)
    return {
        "atom_start": batch.atom_start,
        "pair_start": batch.pair_start,
        "valid": valid,
        **{name: getattr(terms, name) for name in names},
        "heads": batch.heads,
        "width": batch.width,
        "buckets": terms.buckets,
        "cells": terms.cells,
        "scale": scale,
        **{f"{x}_{axis}": s for x, of in strides for axis, s in zip("bht", of, strict=True)},
        **{f"bias_{axis}": s for axis, s in zip("bhij", bias, strict=True)},
    }


def _compiled(
    batch: Batch, width: int, dropout_p: float, chosen: configuration.Configuration
) -> dict:
    """What a kernel is compiled for: nothing that changes from batch to batch."""
    # PyTorch's own switch: "highest" is IEEE float32, anything below may use TensorFloat-32.
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "THRESHOLD": math.floor(dropout_p * 2**32),
        "KEPT": 1 / (1 - dropout_p),
        "PRECISION": "ieee" if exact else "tf32",
        "PACKED": batch.packed,
        "SINGLE": chosen.single,
        "BLOCK": chosen.block,
        "WIDTH": width,
        "num_warps": chosen.num_warps,
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


# --- sums over pairs ----------------------------------------------------------------------------


def hop_sums(ds: Tensor, order: Tensor, keys: Tensor, buckets: int) -> Tensor:
    """Gradient ``[h, S]`` of the hop table: pairs sorted by hops, summed by column."""
    borders = torch.arange(buckets + 1, device=ds.device).clamp(max=255)
    borders[-1] = 256
    borders[-2] = 255
    offsets = torch.searchsorted(keys.long(), borders)
    return _segment_sums(ds, order, offsets, None, HOP_SLOTS)[:, 0].t()


def cell_moments(ds: Tensor, cell: Tensor, fraction: Tensor, cells: int) -> Tensor:
    """Gradient ``[h, C, 4]`` of the coefficients of each cell: Σ ds·xᵐ over its pairs."""
    keys, order = cell.sort(stable=True)
    offsets = torch.searchsorted(keys, torch.arange(cells + 1, device=ds.device, dtype=keys.dtype))
    return _segment_sums(ds, order, offsets, fraction, CELL_SLOTS).permute(2, 0, 1)


def _segment_sums(
    values: Tensor, order: Tensor, offsets: Tensor, fraction: Tensor | None, slots: int
) -> Tensor:
    """``[segments, moments, h]``."""
    columns, pairs = values.shape
    segments, moments = len(offsets) - 1, 1 if fraction is None else 4
    sums = values.new_empty((slots, segments, moments, columns))
    tile = configuration.segments(columns)
    grid = (-(-segments // tile.segments), slots, -(-columns // tile.columns))
    kernels.sum_segments[grid](
        *(values, order, offsets, fraction, sums, segments, columns, pairs),
        MOMENTS=moments,
        SLOTS=slots,
        SEGMENTS=tile.segments,
        PAIRS=tile.pairs,
        COLUMNS=tile.columns,
        num_warps=4,
    )
    return sums.sum(0)


def slopes(
    ds: Tensor, cell: Tensor, fraction: Tensor, coefficients: Tensor, du: Tensor | None
) -> Tensor:
    """du ``[pairs]``: what dL/dlogits of these heads send back to u, on top of `du`."""
    group, pairs = ds.shape
    out = ds.new_empty(pairs) if du is None else du
    kernels.slope[(triton.cdiv(pairs, 128),)](
        *(ds, cell, fraction, coefficients, out, pairs, group, coefficients.shape[1]),
        ADD=du is not None,
        PAIRS=128,
        num_warps=4,
    )
    return out


def pull(batch: Batch, molecules: dict, du: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of the coordinates ``[atoms, 3]`` and of γ, β ``[types, 2]``."""
    affine = molecules["affine"]
    dx = du.new_empty((batch.atoms, 3))
    du_r, of_query, of_key = None, None, None
    if affine is not None:
        du_r = torch.empty_like(du)
        of_query, of_key = du.new_empty((2, batch.atoms, 2)).unbind(0)
    size = configuration.PAIR_BLOCK
    kernels.pull[(batch.count * batch.blocks(size),)](
        **molecules,
        atom_start=batch.atom_start,
        pair_start=batch.pair_start,
        du=du,
        dx=dx,
        du_r=du_r,
        of_query=of_query,
        of_key=of_key,
        blocks=batch.blocks(size),
        BLOCK=size,
        num_warps=configuration.PAIR_WARPS,
    )
    if affine is None:
        return dx, None
    # The gradient of an embedding is summed in a fixed order, without atomics.
    add = torch.ops.aten.embedding_dense_backward
    count = len(affine)
    if molecules["pair_types"] is not None:
        both = torch.stack([du_r, du], 1)
        return dx, add(both, molecules["pair_types"].flatten().long(), count, -1, False)
    query, key = molecules["atom_types"].reshape(-1, 2).long().unbind(1)
    return dx, add(of_query, query, count, -1, False) + add(of_key, key, count, -1, False)
