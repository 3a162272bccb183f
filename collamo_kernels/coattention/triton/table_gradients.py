"""Triton kernels of the tables' gradients: sums over the pairs that share an entry.

The pairs are sorted by entry, once per batch, and cut into rows of a few. `add_up` goes through
each row pair by pair, heads side by side, and leaves a sum for every run of one entry; `finish`
adds up the runs of each entry, and what `add_exact` of `radial.triton.kernels` left for the
radial function where its table does not fit. Every sum has one order: the same bits every time.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from collamo_kernels.coattention.triton.kernels import entry_of, fraction_of, hop_column
from collamo_kernels.radial.triton.kernels import Function, collect_entries

BATCH_NUMBERS = (  # see `kernels`
    *("pairs", "cells", "group", "first_head", "turns", "hop_programs", "cell_programs"),
)


class HopSums(NamedTuple):
    """What the gradient of the hop table, ``hop_bias [H, S]``, takes."""

    order: Tensor | None  # pairs sorted by hops
    keys: Tensor | None
    offsets: Tensor | None  # [257]
    parts: Tensor | None  # [runs, group]
    hop_bias: Tensor | None


class CellSums(NamedTuple):
    """Likewise that of the radial table, ``rows [C + 1, 2, H]``."""

    order: Tensor | None  # pairs sorted by cell
    spot: Tensor | None
    fits: Tensor | None
    parts: Tensor | None  # [runs, 4, group]
    segments: Tensor | None  # [2, C]: where the pairs of a cell begin and end; 0 before `add_up`
    lengths: Tensor | None
    rows: Tensor | None


class LayerSums(NamedTuple):
    """Likewise that of the radial function's parameters, `layers`."""

    fits: Tensor | None
    parts: Tensor | None  # of `add_exact`
    layers: Tensor | None


class SumBuild(NamedTuple):
    """What is compiled into `add_up`."""

    ROWS: int  # of sorted pairs, of a program
    STEPS: int  # pairs of a row
    COLUMN: int  # heads of a program
    ALIGN: int  # what numbers of heads have in common


class FinishBuild(NamedTuple):
    """What is compiled into `finish`."""

    HOP_ENTRIES: int  # columns of the hop table of a program
    HOP_RUNS: int  # of each at a time
    ENTRIES: int  # likewise rows of the radial table
    RUNS: int
    STEPS: int
    COLUMN: int  # heads
    ALIGN: int  # as above
    PLACES: int  # of `add_exact`
    LAYER_ENTRIES: int
    ADD: bool  # whether to add to what is in `layers`


@triton.jit
def _cotangents(ds, p, h, live, group):
    """dL/dlogits ``[p, h]`` of some pairs from ``ds [pairs, group]``."""
    place = ds + (p.to(tl.int64) * group)[:, None] + h[None, :]
    mask = live[:, None] & (h < group)[None, :]
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store_sum(parts, run, h, group, size, ends, x):
    """Write a sum [row, h] of the runs that end here; a run has so many numbers."""
    place = parts + (run.to(tl.int64) * size)[:, None] + h[None, :]
    tl.store(place, x, mask=ends[:, None] & (h < group)[None, :])


@triton.jit
def _share(program, group, build: tl.constexpr):
    """Rows of sorted pairs of a program, its heads, and the first pair of each row."""
    columns = tl.cdiv(group, build.COLUMN)
    h = program % columns * build.COLUMN + tl.arange(0, build.COLUMN)
    row = program // columns * build.ROWS + tl.arange(0, build.ROWS)
    return row, h, row.to(tl.int64) * build.STEPS


@triton.jit
def _hop_column(keys, t, pairs, buckets):
    """Column of the hop table of sorted pairs: none, ``buckets``, of padding; -1 beyond the end."""
    inside = t < pairs
    hop = tl.load(keys + t, mask=inside, other=0).to(tl.int32)
    return tl.where(inside, hop_column(hop, buckets), -1)


@triton.jit
def _add_up_hops(program, ds, sums: HopSums, group, pairs, buckets, build: tl.constexpr):
    """Sums over runs of one column of the hop table in rows of pairs sorted by hops.

    A run's number, its column plus its row, belongs to no other run: both rise along the pairs.
    """
    STEPS: tl.constexpr = build.STEPS
    ROWS: tl.constexpr = build.ROWS
    COLUMN: tl.constexpr = build.COLUMN
    row, h, t = _share(program, group, build)
    s = _hop_column(sums.keys, t, pairs, buckets)
    p = tl.load(sums.order + t, mask=t < pairs, other=0)
    x = _cotangents(ds, p, h, t < pairs, group)  # [row, h]
    p = tl.load(sums.order + t + 1, mask=t + 1 < pairs, other=0)
    total = tl.zeros((ROWS, COLUMN), tl.float32)
    for step in range(STEPS):
        # What the next pair needs is on its way while this one is added: a row waits once a pair.
        later = tl.load(sums.order + t + 2, mask=t + 2 < pairs, other=0)
        after = _hop_column(sums.keys, t + 1, pairs, buckets)
        next_x = _cotangents(ds, p, h, t + 1 < pairs, group)
        total += x
        ends = (s < buckets) & (t < pairs) & ((step == STEPS - 1) | (s != after))
        _store_sum(sums.parts, s + row, h, group, group, ends, total)
        total = tl.where((s != after)[:, None], 0.0, total)
        s, x, p = after, next_x, later
        t += 1


@triton.jit
def _cell_at(spot, p, there):
    """Cell of the pairs p, and the fraction of the way through it; -1 and 0 where none is."""
    place = tl.load(spot + p, mask=there, other=0)
    return tl.where(there, entry_of(place) // 4, -1), fraction_of(place)


@triton.jit
def _add_up_cells(program, ds, sums: CellSums, group, pairs, cells, build: tl.constexpr):
    """Four sums over runs of one cell in rows of pairs sorted by cell.

    The weights are those of value and slope at the cell's two ends. (Sums of powers of the
    fraction, combined later, cancel: they had 2.4 times the error.) Runs are numbered as those of
    the hop table. Where each cell's pairs begin and end is stored beside them, by the programs of
    all heads alike.
    """
    STEPS: tl.constexpr = build.STEPS
    ROWS: tl.constexpr = build.ROWS
    COLUMN: tl.constexpr = build.COLUMN
    order, parts, size = sums.order, sums.parts, 4 * group
    row, h, t = _share(program, group, build)
    p = tl.load(order + t - 1, mask=(t > 0) & (t <= pairs), other=0)
    before, _fraction = _cell_at(sums.spot, p, (t > 0) & (t <= pairs))
    p = tl.load(order + t, mask=t < pairs, other=0)
    s, fraction = _cell_at(sums.spot, p, t < pairs)
    x = _cotangents(ds, p, h, t < pairs, group)  # [row, h]
    p = tl.load(order + t + 1, mask=t + 1 < pairs, other=0)
    sum0 = tl.zeros((ROWS, COLUMN), tl.float32)
    sum1, sum2, sum3 = sum0, sum0, sum0
    for step in range(STEPS):
        later = tl.load(order + t + 2, mask=t + 2 < pairs, other=0)
        after, next_fraction = _cell_at(sums.spot, p, t + 1 < pairs)
        next_x = _cotangents(ds, p, h, t + 1 < pairs, group)
        live, known = t < pairs, (t < pairs) & (s < cells)
        new = (s != before)[:, None]
        f = fraction[:, None]
        right = f * f * (3.0 - 2.0 * f)
        leaving = f * (1.0 - f) * (1.0 - f)
        arriving = -f * f * (1.0 - f)
        sum0 = tl.where(new, 0.0, sum0) + x * (1.0 - right)
        sum1 = tl.where(new, 0.0, sum1) + x * leaving
        sum2 = tl.where(new, 0.0, sum2) + x * right
        sum3 = tl.where(new, 0.0, sum3) + x * arriving
        ends = live & ((step == STEPS - 1) | (s != after))
        _store_sum(parts, s + row, h, group, size, ends, sum0)
        _store_sum(parts + group, s + row, h, group, size, ends, sum1)
        _store_sum(parts + 2 * group, s + row, h, group, size, ends, sum2)
        _store_sum(parts + 3 * group, s + row, h, group, size, ends, sum3)
        tl.store(sums.segments + s, t, mask=known & (s != before))
        tl.store(sums.segments + cells + s, t + 1, mask=known & (s != after))
        before, s, fraction, x, p = s, after, next_fraction, next_x, later
        t += 1


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def add_up(
    ds, hop_sums: HopSums, cell_sums: CellSums, group, pairs, buckets, cells, hop_programs,
    build: tl.constexpr,
):  # fmt: skip
    """Partial sums of dL/dlogits ``ds [pairs, group]`` for the gradients of both tables.

    First come programs for the hop table, then those for the radial table, which write nothing
    where it does not fit: that stands on the device.
    """
    program = tl.program_id(0)
    # As it is, but now the compiler knows: it moves 16 bytes at a time.
    group = group // build.ALIGN * build.ALIGN
    if program < hop_programs:
        if hop_sums.keys is not None:
            _add_up_hops(program, ds, hop_sums, group, pairs, buckets, build)
    else:
        if cell_sums.spot is not None and tl.load(cell_sums.fits) != 0:
            program -= hop_programs
            _add_up_cells(program, ds, cell_sums, group, pairs, cells, build)


@triton.jit
def _runs_between(entry, begin, end, STEPS: tl.constexpr):
    """First run of entries whose sorted pairs go from begin to end, and their number of runs."""
    first = begin // STEPS
    count = tl.where(end > begin, (end - 1) // STEPS - first + 1, 0)
    return entry + first, count.to(tl.int32)


@triton.jit
def _load_sums(parts, first, count, done, h, group, size, RUNS: tl.constexpr):
    """A sum [s, run, h] of `RUNS` runs of each entry, after the first `done`."""
    t = done + tl.arange(0, RUNS)
    live = (t[None, :] < count[:, None])[:, :, None] & (h < group)[None, None, :]
    run = (first[:, None] + t[None, :])[:, :, None]
    return tl.load(parts + run * size + h[None, None, :], mask=live, other=0.0)


@triton.jit
def _finish_hops(program, sums: HopSums, group, buckets, first_head, build: tl.constexpr):
    """Gradient of `HOP_ENTRIES` columns of the hop table."""
    ENTRIES: tl.constexpr = build.HOP_ENTRIES
    RUNS: tl.constexpr = build.HOP_RUNS
    COLUMN: tl.constexpr = build.COLUMN
    columns = tl.cdiv(group, COLUMN)
    h = program % columns * COLUMN + tl.arange(0, COLUMN)
    s = program // columns * ENTRIES + tl.arange(0, ENTRIES)
    ordinary = s < buckets - 1
    begin = tl.where(ordinary, tl.minimum(s, 255), 255)
    end = tl.where(s < buckets - 2, tl.minimum(s + 1, 255), tl.where(ordinary, 255, 256))
    begin = tl.load(sums.offsets + begin)
    end = tl.where(s < buckets, tl.load(sums.offsets + end), begin)
    first, count = _runs_between(s, begin, end, build.STEPS)
    total = tl.zeros((ENTRIES, RUNS, COLUMN), tl.float32)
    for done in range(0, tl.max(count, 0), RUNS):
        total += _load_sums(sums.parts, first, count, done, h, group, group, RUNS)
    place = sums.hop_bias + (first_head + h)[None, :] * buckets + s[:, None]
    tl.store(place, tl.sum(total, 1), mask=(s < buckets)[:, None] & (h < group)[None, :])


@triton.jit
def _runs_of(sums: CellSums, c, cells, STEPS: tl.constexpr):
    """First run of the cells c, their number of runs, and the cells' lengths."""
    known = (c >= 0) & (c < cells)
    begin = tl.load(sums.segments + c, mask=known, other=0)
    end = tl.load(sums.segments + cells + c, mask=known, other=0)
    first, count = _runs_between(c, begin, end, STEPS)
    return first, count, tl.load(sums.lengths + c, mask=known, other=0.0)


@triton.jit
def _finish_cells(
    program, sums: CellSums, group, cells, first_head, heads, build: tl.constexpr
):  # fmt: skip
    """Gradient of `ENTRIES` rows of the radial table, from the cells on both sides of each knot."""
    ENTRIES: tl.constexpr = build.ENTRIES
    RUNS: tl.constexpr = build.RUNS
    COLUMN: tl.constexpr = build.COLUMN
    columns = tl.cdiv(group, COLUMN)
    h = program % columns * COLUMN + tl.arange(0, COLUMN)
    g = program // columns * ENTRIES + tl.arange(0, ENTRIES)
    size = 4 * group
    right, right_count, right_length = _runs_of(sums, g, cells, build.STEPS)
    left, left_count, left_length = _runs_of(sums, g - 1, cells, build.STEPS)
    value = tl.zeros((ENTRIES, RUNS, COLUMN), tl.float32)
    slope = value
    for done in range(0, tl.max(tl.maximum(right_count, left_count), 0), RUNS):
        value += _load_sums(sums.parts, right, right_count, done, h, group, size, RUNS)
        x = _load_sums(sums.parts + group, right, right_count, done, h, group, size, RUNS)
        slope += x * right_length[:, None, None]
        value += _load_sums(sums.parts + 2 * group, left, left_count, done, h, group, size, RUNS)
        x = _load_sums(sums.parts + 3 * group, left, left_count, done, h, group, size, RUNS)
        slope += x * left_length[:, None, None]
    place = sums.rows + g[:, None] * (2 * heads) + (first_head + h)[None, :]
    stored = (g <= cells)[:, None] & (h < group)[None, :]
    tl.store(place, tl.sum(value, 1), mask=stored)
    tl.store(place + heads, tl.sum(slope, 1), mask=stored)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def finish(
    hop_sums: HopSums, cell_sums: CellSums, layer_sums: LayerSums, function: Function,
    group, pairs, buckets, cells, first_head, hop_programs, cell_programs, turns, slices,
    size, length, build: tl.constexpr,
):  # fmt: skip
    """Gradients of some heads of the hop table and of the radial table's rows, and of the radial
    function's parameters, added to what they are if `ADD`: partial sums added up.

    The programs of the three follow each other. Of the last two kinds one writes 0.
    """
    program = tl.program_id(0)
    group = group // build.ALIGN * build.ALIGN
    if program < hop_programs:
        if hop_sums.offsets is not None:
            _finish_hops(program, hop_sums, group, buckets, first_head, build)
    elif program < hop_programs + cell_programs:
        if cell_sums.rows is not None:
            program -= hop_programs
            _finish_cells(program, cell_sums, group, cells, first_head, function.heads, build)
    else:
        if layer_sums.parts is not None:
            fits, parts, layers = layer_sums
            collect_entries(
                program - (hop_programs + cell_programs), parts, fits, layers, pairs, turns, slices,
                function.count, size, length,
                False, build.ADD, build.PLACES, build.LAYER_ENTRIES,
            )  # fmt: skip
