"""Triton kernels on the pairs of a batch: where each stands in the tables, Φ, and the way back.

`locate` finds the cell of every pair in the radial table; `build` looks Φ up; `stretch` gives
u = γ·r + β, `slope` its gradient, and `pull` those of the coordinates, γ and β. `table_gradients`
sums the gradients of the tables.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from collamo_kernels.coattention.triton.kernels import (
    Places,
    column_of,
    entry_of,
    fraction_of,
    hop_column,
    place_of,
    polynomial,
    tile_of,
)
from collamo_kernels.radial.triton.kernels import Function, evaluate_from

BATCH_NUMBERS = (  # see `kernels`
    *("longest", "blocks", "pairs", "cells", "group", "first_head"),
    *("pair_programs", "cell_programs"),
)


class Affine(NamedTuple):
    """γ and β ``[types, 2]``, and the types that choose a row: of pairs, or of their two atoms."""

    affine: Tensor | None
    pair_types: Tensor | None
    atom_types: Tensor | None


class CellTable(NamedTuple):
    """A `RadialTable` of fixed size, as `locate` reads it."""

    rows: Tensor  # [C + 1, 2, H]
    first_knot: Tensor
    geometry: Tensor  # number of the first block, 1 / its length
    lengths: Tensor


@triton.jit
def _affine(types: Affine, start, pair, i, j, n, offset: tl.constexpr):
    """γ (offset 0) or β (offset 1) of each pair [i, j]."""
    affine, pair_types, atom_types = types
    there = (i < n)[:, None] & (j < n)[None, :]
    if pair_types is not None:
        kind = tl.load(pair_types + pair + i[:, None] * n + j[None, :], mask=there, other=0)
        value = tl.load(affine + 2 * kind + offset)
    else:
        query = tl.load(atom_types + (start + i) * 2, mask=i < n, other=0)
        key = tl.load(atom_types + (start + j) * 2 + 1, mask=j < n, other=0)
        by_query = tl.load(affine + 2 * query + offset)
        value = by_query[:, None] + tl.load(affine + 2 * key + offset)[None, :]
    return value


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def stretch(
    distances, types: Affine, u, places: Places, longest, blocks,
    PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """u = γ_t·r + β_t of each pair; ∞, no distance, stays ∞."""
    molecule, first = tile_of(tl.program_id(0), places.tiles, blocks, PACKED, BLOCK)
    if molecule < 0:
        return
    start, n, pair = place_of(molecule, places.cu_seqlens, places.pair_start, longest, PACKED)
    i = first + tl.arange(0, BLOCK)
    for next in range(0, n, BLOCK):
        j = next + tl.arange(0, BLOCK)
        place = pair + i[:, None] * n + j[None, :]
        stored = (i < n)[:, None] & (j < n)[None, :]
        r = tl.load(distances + place, mask=stored, other=0.0)
        gamma = _affine(types, start, pair, i, j, n, 0)
        beta = _affine(types, start, pair, i, j, n, 1)
        far = r == float("inf")
        tl.store(u + place, tl.where(far, r, gamma * r + beta), mask=stored)


@triton.jit
def _locate(
    u, hops, table: CellTable, spot, p, pairs, cells, buckets, TABLE_BLOCKS: tl.constexpr
):  # fmt: skip
    """Where the pairs p are in both tables."""
    _rows, first_knot, geometry, _lengths = table
    x = tl.load(u + p, mask=p < pairs, other=0.0)
    low = tl.load(geometry)
    # A block's length is a power of two: u / block and what is left of it are exact.
    at = x * tl.load(geometry + 1)
    far = x == float("inf")
    known = (x == x) & (far == 0)
    number = tl.minimum(tl.maximum(tl.floor(at) - low, 0.0), TABLE_BLOCKS - 1.0)
    number = tl.where(known, number, 0.0)
    block = number.to(tl.int32)
    knot = tl.load(first_knot + block)
    count = (tl.load(first_knot + block + 1) - knot).to(tl.float32)
    along = (at - (number + low)) * count
    c = tl.minimum(tl.maximum(tl.floor(along), 0.0), count - 1.0)
    f = tl.minimum(tl.maximum(along - c, 0.0), 1.0)
    f = tl.where(known, f, tl.where(far, 0.0, x))  # NaN must be seen
    c = tl.where(known, c, 0.0).to(tl.int32)
    code = 4 * tl.where(far, cells, knot + c)
    if hops is not None:
        hop = tl.load(hops + p, mask=p < pairs, other=0).to(tl.int32)
        code |= hop_column(hop, buckets) << 17
    value = f.to(tl.int32, bitcast=True).to(tl.int64) << 32 | code.to(tl.int64)
    tl.store(spot + p, value, mask=p < pairs)


@triton.jit
def _expand(rows, lengths, coefficients, c, cells, heads, COLUMN: tl.constexpr):
    """Polynomials of the cells c of all heads, and 0 for what has no distance."""
    length = tl.load(lengths + c, mask=c < cells, other=0.0)[:, None]
    for first in range(0, heads, COLUMN):
        h = first + tl.arange(0, COLUMN)
        column = (h < heads)[None, :]
        mask = (c < cells)[:, None] & column
        row = rows + c[:, None] * (2 * heads) + h[None, :]
        y0 = tl.load(row, mask=mask, other=0.0)  # [c, h]
        s0 = tl.load(row + heads, mask=mask, other=0.0) * length
        rise = tl.load(row + 2 * heads, mask=mask, other=0.0) - y0
        s1 = tl.load(row + 3 * heads, mask=mask, other=0.0) * length
        place = coefficients + (h[None, :].to(tl.int64) * (cells + 1) + c[:, None]) * 4
        mask = (c <= cells)[:, None] & column
        tl.store(place, y0, mask=mask)
        tl.store(place + 1, s0, mask=mask)
        tl.store(place + 2, 3 * rise - 2 * s0 - s1, mask=mask)
        tl.store(place + 3, s0 + s1 - 2 * rise, mask=mask)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def locate(
    u, hops, table: CellTable, spot, coefficients, fits, function: Function, phi,
    pairs, cells, buckets, pair_programs, cell_programs, group,
    TABLE_BLOCKS: tl.constexpr, PAIRS: tl.constexpr, CELLS: tl.constexpr, COLUMN: tl.constexpr,
    build: tl.constexpr,
):  # fmt: skip
    """Where each pair is in both tables; then the radial table as polynomials.

    ``spot [pairs]`` holds, from the lowest bit on, 17 bits of four times the cell (`C`, behind the
    last, without a distance), 15 of the column of the hop table, and 32 of the fraction of the way
    through the cell (float32): `entry_of`, `column_of`, `fraction_of`.
    ``coefficients [H, C + 1, 4]`` are those of the Hermite formula of `RadialTable.lookup` sorted
    by powers: three multiply-adds and one 16-byte load a pair and head, where the formula takes
    eleven operations and four loads. Those of cell `C` are 0. Where the table does not fit, further
    programs write the exact Φ3d of the first heads, ``phi [group, pairs]``.
    """
    program = tl.program_id(0)
    if program < pair_programs:
        p = program.to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
        _locate(u, hops, table, spot, p, pairs, cells, buckets, TABLE_BLOCKS)
    elif program < pair_programs + cell_programs:
        c = (program - pair_programs) * CELLS + tl.arange(0, CELLS)
        _expand(table.rows, table.lengths, coefficients, c, cells, function.heads, COLUMN)
    else:
        if phi is not None and tl.load(fits) == 0:
            before = pair_programs + cell_programs
            programs = tl.num_programs(0) - before
            evaluate_from(program - before, programs, u, function, phi, pairs, 0, group, build)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def build(
    hops, hop_bias, spot, coefficients, phi, fits, bias, first_head, pairs, buckets, cells,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """``bias [H, pairs]`` = Φ2d + Φ3d of a head (axis 1), to be read by several layers."""
    p = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    local = tl.program_id(1).to(tl.int64)
    head = first_head + local
    live = p < pairs
    p = tl.minimum(p, pairs - 1)
    value = tl.zeros((PAIRS, 1), tl.float32)
    if spot is not None:
        place = tl.load(spot + p)[:, None]
        if hop_bias is not None:
            value += tl.load(hop_bias + head * buckets + column_of(place))
        if tl.load(fits) != 0:
            head_cells = coefficients + head * (cells + 1) * 4
            value += polynomial(head_cells, entry_of(place), fraction_of(place))
        else:
            value += tl.load(phi + local * pairs + p)[:, None]
    elif hops is not None:
        column = hop_column(tl.load(hops + p).to(tl.int32), buckets)
        value += tl.load(hop_bias + head * buckets + column)[:, None]
    tl.store(bias + head * pairs + p, tl.sum(value, 1).to(bias.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def slope(
    ds, spot, coefficients, fits, du, pairs, group, cells,
    ADD: tl.constexpr, PAIRS: tl.constexpr, COLUMN: tl.constexpr,
):  # fmt: skip
    """``du[p] (+)= Σ_h ds[p, h]·dΦ3d_h/du``, by the table of the derivative."""
    p = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    live = p < pairs
    place = tl.load(spot + tl.minimum(p, pairs - 1))[:, None]
    entry, x = entry_of(place), fraction_of(place)
    total = tl.zeros((PAIRS, COLUMN), tl.float32)
    if tl.load(fits) != 0:
        for first in range(0, group, COLUMN):
            h = first + tl.arange(0, COLUMN)
            shown = live[:, None] & (h < group)[None, :]
            weight = tl.load(ds + p[:, None] * group + h[None, :], mask=shown, other=0.0)
            of_head = (tl.minimum(h, group - 1) * ((cells + 1) * 4))[None, :]
            total += polynomial(coefficients, entry + of_head, x) * weight
    sums = tl.sum(total, 1)
    if ADD:
        sums += tl.load(du + p, mask=live, other=0.0)
    tl.store(du + p, sums, mask=live)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def pull(
    coordinates, distances, types: Affine, du, dx, du_r, by_query, by_key, places: Places,
    longest, blocks, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From du of each pair to its atoms: gradients of coordinates, and the sums that γ, β need.

    ``du_r [pairs]`` is du·r; ``by_query [atoms, 2]`` holds Σ_j of du_ij·r and of du_ij, and
    ``by_key [atoms, 2]`` the same over du_ji. Both directions of a pair go to the row that this
    program owns.
    """
    molecule, first = tile_of(tl.program_id(0), places.tiles, blocks, PACKED, BLOCK)
    if molecule < 0:
        return
    start, n, pair = place_of(molecule, places.cu_seqlens, places.pair_start, longest, PACKED)
    i = first + tl.arange(0, BLOCK)
    xi, yi, zi = _positions(coordinates, start, i, n)
    dx0 = tl.zeros((BLOCK,), tl.float32)
    dx1, dx2, query_r, query, key_r, key = dx0, dx0, dx0, dx0, dx0, dx0
    for next in range(0, n, BLOCK):
        j = next + tl.arange(0, BLOCK)
        stored = (i < n)[:, None] & (j < n)[None, :]
        place = pair + i[:, None] * n + j[None, :]
        back = pair + j[None, :] * n + i[:, None]
        r = tl.load(distances + place, mask=stored, other=float("inf"))
        there = r != float("inf")
        r = tl.where(there, r, 0.0)
        forth = tl.load(du + place, mask=there, other=0.0)
        away = tl.load(du + back, mask=there, other=0.0)
        if types.affine is not None:
            tl.store(du_r + place, forth * r, mask=stored)
            query_r += tl.sum(forth * r, 1)
            query += tl.sum(forth, 1)
            key_r += tl.sum(away * r, 1)
            key += tl.sum(away, 1)
            forth *= _affine(types, start, pair, i, j, n, 0)
            turned = _affine(types, start, pair, j, i, n, 0)
            away *= tl.trans(turned)
        xj, yj, zj = _positions(coordinates, start, j, n)
        away = tl.where(r > 0, (forth + away) / tl.where(r > 0, r, 1.0), 0.0)
        # Where there is no distance the coordinates may be anything: 0 · NaN is NaN.
        dx0 += tl.sum(tl.where(there, away * (xi[:, None] - xj[None, :]), 0.0), 1)
        dx1 += tl.sum(tl.where(there, away * (yi[:, None] - yj[None, :]), 0.0), 1)
        dx2 += tl.sum(tl.where(there, away * (zi[:, None] - zj[None, :]), 0.0), 1)
    stored = i < n
    place = dx + (start + i) * 3
    tl.store(place, dx0, mask=stored)
    tl.store(place + 1, dx1, mask=stored)
    tl.store(place + 2, dx2, mask=stored)
    if types.affine is not None:
        tl.store(by_query + (start + i) * 2, query_r, mask=stored)
        tl.store(by_query + (start + i) * 2 + 1, query, mask=stored)
        tl.store(by_key + (start + i) * 2, key_r, mask=stored)
        tl.store(by_key + (start + i) * 2 + 1, key, mask=stored)


@triton.jit
def _positions(coordinates, start, i, n):
    """x, y, z of atoms."""
    place = coordinates + (start + i) * 3
    x = tl.load(place, mask=i < n, other=0.0)
    y = tl.load(place + 1, mask=i < n, other=0.0)
    z = tl.load(place + 2, mask=i < n, other=0.0)
    return x, y, z
