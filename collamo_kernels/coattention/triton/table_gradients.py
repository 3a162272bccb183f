"""Triton kernel of the tables' gradients: sums over the pairs that share an entry.

The pairs are sorted by entry, once per batch, and cut into chunks. `add_up` sums inside a chunk;
the program that ends last of those that have a share in a slice of the table then sums over the
chunks. Which program that is differs from run to run, what it adds and in which order does not: the
same bits every time.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from collamo_kernels.coattention.triton.kernels import entry_of, fraction_of, hop_column
from collamo_kernels.radial.triton.kernels import Function, Turn, add_parts, arrive, finish_parts

BATCH_NUMBERS = (  # see `kernels`
    *("pairs", "cells", "group", "first_head", "columns", "programs"),
    *("hop_programs", "cell_programs", "hop_size", "cell_size"),
)


class HopSums(NamedTuple):
    """What `add_up` takes for the gradient of the hop table, ``hop_bias [H, S]``."""

    order: Tensor | None  # pairs sorted by hops
    keys: Tensor | None
    offsets: Tensor | None
    parts: Tensor | None
    hop_bias: Tensor | None
    counters: Tensor


class CellSums(NamedTuple):
    """Likewise for the gradient of the radial table, ``rows [C + 1, 2, H]``."""

    order: Tensor | None  # pairs sorted by cell
    spot: Tensor | None
    parts: Tensor | None
    segments: Tensor | None
    lengths: Tensor | None
    rows: Tensor | None
    counters: Tensor


class LayerSums(NamedTuple):
    """Likewise for the gradient of the radial function's parameters, `layers`."""

    u: Tensor | None
    fits: Tensor | None
    parts: Tensor | None
    layers: Tensor | None
    counters: Tensor


class SumBuild(NamedTuple):
    """What is compiled into `add_up`, apart from the radial function's `Build`."""

    CHUNK: int  # sorted pairs
    COLUMN: int  # heads
    HOP_ENTRIES: int
    HOP_RUNS: int
    ENTRIES: int
    RUNS: int
    ADD: bool


@triton.jit
def _hop_column(keys, t, total, buckets):
    """Column of the hop table of sorted pairs; ``buckets``, none, behind the last real pair."""
    inside = (t >= 0) & (t < total)
    hop = tl.load(keys + t, mask=inside, other=0).to(tl.int32)
    return tl.where(inside, hop_column(hop, buckets), -1)


@triton.jit
def _cell_column(order, spot, t, total):
    """Cell of sorted pairs; -1 where there is none."""
    inside = (t >= 0) & (t < total)
    p = tl.load(order + t, mask=inside, other=0)
    return tl.where(inside, entry_of(tl.load(spot + p, mask=inside, other=0)) // 4, -1)


@triton.jit
def _store_runs(parts, x, s, starts, ends, chunk, c, group, size):
    """Sums of x [t, h] before the beginning and up to the end of each run of one segment s.

    A run's number, s + chunk, belongs to no other run: both rise along the sorted pairs.
    """
    running = tl.cumsum(x, 0)
    place = parts + (s + chunk).to(tl.int64)[:, None] * group + c[None, :]
    column = (c < group)[None, :]
    tl.store(place, running - x, mask=starts[:, None] & column)
    tl.store(place + size * group, running, mask=ends[:, None] & column)


@triton.jit
def _add_up_hops(
    ds, order, keys, parts, chunk, h, group, pairs, buckets, size, CHUNK: tl.constexpr
):  # fmt: skip
    """Sums over runs of one column of the hop table in a chunk of the pairs sorted by hops."""
    local = tl.arange(0, CHUNK)
    t = chunk.to(tl.int64) * CHUNK + local
    live = t < pairs
    last = (local == CHUNK - 1) | (t == pairs - 1)
    p = tl.load(order + t, mask=live, other=0)
    s = _hop_column(keys, t, pairs, buckets)
    starts = live & ((local == 0) | (s != _hop_column(keys, t - 1, pairs, buckets)))
    ends = live & (last | (s != _hop_column(keys, t + 1, pairs, buckets)))
    x = _cotangents(ds, p, h, live, group)
    _store_runs(parts, x, s, starts, ends, chunk, h, group, size)


@triton.jit
def _add_up_cells(
    ds, order, spot, parts, segments, chunk, h, group, pairs, cells, size, CHUNK: tl.constexpr
):  # fmt: skip
    """Four sums over runs of one cell in a chunk of the pairs sorted by cell.

    The weights are those of value and slope at the cell's two ends. (Sums of powers of the
    fraction, combined later, cancel: they had 2.4 times the error.) Where each cell's pairs begin
    and end is stored beside them, by the programs of all heads alike: one that later reads it has
    waited for those of its own heads only.
    """
    local = tl.arange(0, CHUNK)
    t = chunk.to(tl.int64) * CHUNK + local
    live = t < pairs
    last = (local == CHUNK - 1) | (t == pairs - 1)
    p = tl.load(order + t, mask=live, other=0)
    s = _cell_column(order, spot, t, pairs)
    new = s != _cell_column(order, spot, t - 1, pairs)
    old = s != _cell_column(order, spot, t + 1, pairs)
    tl.store(segments + s, t, mask=live & new & (s < cells))
    tl.store(segments + cells + s, t + 1, mask=live & old & (s < cells))
    starts = live & ((local == 0) | new)
    ends = live & (last | old)
    x = _cotangents(ds, p, h, live, group)
    f = fraction_of(tl.load(spot + p, mask=live, other=0))[:, None]
    right = f * f * (3.0 - 2.0 * f)
    step = 2 * size * group
    _store_runs(parts, x * (1.0 - right), s, starts, ends, chunk, h, group, size)
    weight = f * (1.0 - f) * (1.0 - f)
    _store_runs(parts + step, x * weight, s, starts, ends, chunk, h, group, size)
    _store_runs(parts + 2 * step, x * right, s, starts, ends, chunk, h, group, size)
    weight = -f * f * (1.0 - f)
    _store_runs(parts + 3 * step, x * weight, s, starts, ends, chunk, h, group, size)


@triton.jit
def _cotangents(ds, p, h, live, group):
    """dL/dlogits of sorted pairs ``[t, h]`` from ``ds [pairs, group]``."""
    place = ds + p[:, None] * group + h[None, :]
    mask = live[:, None] & (h < group)[None, :]
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _first_entry(before, s, REACH: tl.constexpr):
    """First entry of a table that a chunk sees to, whose first pair has the segment s.

    A segment's pairs are summed into its own entry and the `REACH` ones after it. Entries that no
    pair has a share in belong to the chunk behind the gap; ``before`` is the segment of the pair
    before the chunk, -1 for none.
    """
    behind_gap = tl.where(before < 0, 0, tl.minimum(before + REACH + 1, s))
    return tl.where(s == before, s, behind_gap)


@triton.jit
def _slices(before, begin, end, after, entries, REACH: tl.constexpr, ENTRIES: tl.constexpr):
    """Slices of `ENTRIES` entries of a table that a chunk of sorted pairs sees to.

    That is the first and the last; then the last of the chunk before, and the first of the chunk
    after. ``begin`` and ``end`` are the segments of the chunk's first and last pair, ``before`` and
    ``after`` of its neighbours, -1 where there is none.
    """
    top = entries - 1
    first = tl.minimum(_first_entry(before, begin, REACH), top) // ENTRIES
    last = tl.where(after < 0, top, tl.minimum(end + REACH, top)) // ENTRIES
    earlier = tl.where(before < 0, -1, tl.minimum(before + REACH, top) // ENTRIES)
    later = tl.minimum(_first_entry(end, after, REACH), top) // ENTRIES
    return first, last, earlier, tl.where(after < 0, top // ENTRIES + 1, later)


@triton.jit
def _completes(counter, number, chunk, earlier, later):
    """Whether this chunk is the last to arrive of those that see to the slice `number`.

    Those are the chunks a, a+1, …, b. Nobody knows how many before all have looked, so each adds 1,
    a adds a on top, and b takes b + 1 off. The counter is 0 again when all have come and never
    before: without b it is above 0; with b but not a at most b - a - (b + 1) < 0; with both it is
    minus the number of those who are missing.
    """
    step = 1 + tl.where(number > earlier, chunk, 0) - tl.where(number < later, chunk + 1, 0)
    return arrive(counter, step, 0)


@triton.jit
def _runs(parts, s, begin, end, done, h, group, size, CHUNK: tl.constexpr, RUNS: tl.constexpr):
    """Sums [s, run, h] of `RUNS` runs, after the first `done`, of segments from begin to end."""
    t = done + tl.arange(0, RUNS)
    live = t[None, :] < _chunks(begin, end, CHUNK)[:, None]
    live = live[:, :, None] & (h < group)[None, None, :]
    run = ((s + begin // CHUNK)[:, None] + t[None, :])[:, :, None]
    place = parts + run * group + h[None, None, :]
    after = tl.load(place + size * group, mask=live, other=0.0, cache_modifier=".cg")
    return after - tl.load(place, mask=live, other=0.0, cache_modifier=".cg")


@triton.jit
def _chunks(begin, end, CHUNK: tl.constexpr):
    """In how many chunks the sorted pairs from begin to end lie."""
    return tl.where(end > begin, (end - 1) // CHUNK - begin // CHUNK + 1, 0)


@triton.jit
def _finish_hops(
    parts, offsets, hop_bias, s, h, group, buckets, size, first_head,
    CHUNK: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """Gradient of the columns s of the hop table."""
    ordinary = s < buckets - 1
    begin = tl.where(ordinary, tl.minimum(s, 255), 255)
    end = tl.where(s < buckets - 2, tl.minimum(s + 1, 255), tl.where(ordinary, 255, 256))
    begin = tl.load(offsets + begin)
    end = tl.where(s < buckets, tl.load(offsets + end), begin)
    total = tl.zeros((s.shape[0], RUNS, h.shape[0]), tl.float32)
    for done in range(0, tl.max(_chunks(begin, end, CHUNK), 0), RUNS):
        total += _runs(parts, s, begin, end, done, h, group, size, CHUNK, RUNS)
    place = hop_bias + (first_head + h)[None, :] * buckets + s[:, None]
    tl.store(place, tl.sum(total, 1), mask=(s < buckets)[:, None] & (h < group)[None, :])


@triton.jit
def _segment(segments, lengths, c, cells):
    """Where the sorted pairs of the cells c begin and end, and the cells' lengths."""
    known = (c >= 0) & (c < cells)
    begin = tl.load(segments + c, mask=known, other=0, cache_modifier=".cg")
    end = tl.load(segments + cells + c, mask=known, other=0, cache_modifier=".cg")
    return begin, end, tl.load(lengths + c, mask=known, other=0.0)


@triton.jit
def _finish_cells(
    parts, segments, lengths, rows, g, h, group, cells, size, first_head, heads,
    CHUNK: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """Gradient of the rows g of the radial table, from the cells on both sides of knot g."""
    step = 2 * size * group
    right, right_end, right_length = _segment(segments, lengths, g, cells)
    left, left_end, left_length = _segment(segments, lengths, g - 1, cells)
    value = tl.zeros((g.shape[0], RUNS, h.shape[0]), tl.float32)
    slope = value
    chunks = tl.maximum(_chunks(right, right_end, CHUNK), _chunks(left, left_end, CHUNK))
    for done in range(0, tl.max(chunks, 0), RUNS):
        value += _runs(parts, g, right, right_end, done, h, group, size, CHUNK, RUNS)
        x = _runs(parts + step, g, right, right_end, done, h, group, size, CHUNK, RUNS)
        slope += x * right_length[:, None, None]
        end_parts = parts + 2 * step
        value += _runs(end_parts, g - 1, left, left_end, done, h, group, size, CHUNK, RUNS)
        x = _runs(end_parts + step, g - 1, left, left_end, done, h, group, size, CHUNK, RUNS)
        slope += x * left_length[:, None, None]
    place = rows + g[:, None] * (2 * heads) + (first_head + h)[None, :]
    stored = (g <= cells)[:, None] & (h < group)[None, :]
    tl.store(place, tl.sum(value, 1), mask=stored)
    tl.store(place + heads, tl.sum(slope, 1), mask=stored)


@triton.jit
def _sum_hops(
    column, chunk, columns, ds, sums: HopSums, group, pairs, buckets, size, first_head,
    build: tl.constexpr,
):  # fmt: skip
    """Share of a chunk of pairs in the hop table's gradient, and the slices it completes."""
    order, keys, offsets, parts, hop_bias, counters = sums
    CHUNK: tl.constexpr = build.CHUNK
    COLUMN: tl.constexpr = build.COLUMN
    ENTRIES: tl.constexpr = build.HOP_ENTRIES
    RUNS: tl.constexpr = build.HOP_RUNS
    h = column * COLUMN + tl.arange(0, COLUMN)
    _add_up_hops(ds, order, keys, parts, chunk, h, group, pairs, buckets, size, CHUNK)
    t = chunk.to(tl.int64) * CHUNK
    end = tl.minimum(t + CHUNK, pairs)
    first, last, earlier, later = _slices(
        _hop_column(keys, t - 1, pairs, buckets),
        _hop_column(keys, t, pairs, buckets),
        _hop_column(keys, end - 1, pairs, buckets),
        _hop_column(keys, end, pairs, buckets),
        buckets, 0, ENTRIES,
    )  # fmt: skip
    for number in range(first, last + 1):
        if _completes(counters + number * columns + column, number, chunk, earlier, later):
            s = number * ENTRIES + tl.arange(0, ENTRIES)
            _finish_hops(
                parts, offsets, hop_bias, s, h, group, buckets, size, first_head, CHUNK, RUNS
            )


@triton.jit
def _sum_cells(
    column, chunk, columns, ds, sums: CellSums, fits, group, pairs, cells, size, first_head, heads,
    build: tl.constexpr,
):  # fmt: skip
    """The same for the radial table, whose gradient is 0 where it does not fit."""
    order, spot, parts, segments, lengths, rows, counters = sums
    CHUNK: tl.constexpr = build.CHUNK
    COLUMN: tl.constexpr = build.COLUMN
    ENTRIES: tl.constexpr = build.ENTRIES
    RUNS: tl.constexpr = build.RUNS
    h = column * COLUMN + tl.arange(0, COLUMN)
    if tl.load(fits) != 0:
        _add_up_cells(ds, order, spot, parts, segments, chunk, h, group, pairs, cells, size, CHUNK)
    t = chunk.to(tl.int64) * CHUNK
    end = tl.minimum(t + CHUNK, pairs)
    first, last, earlier, later = _slices(
        _cell_column(order, spot, t - 1, pairs),
        _cell_column(order, spot, t, pairs),
        _cell_column(order, spot, end - 1, pairs),
        _cell_column(order, spot, end, pairs),
        cells + 1, 1, ENTRIES,
    )  # fmt: skip
    for number in range(first, last + 1):
        if _completes(counters + number * columns + column, number, chunk, earlier, later):
            g = number * ENTRIES + tl.arange(0, ENTRIES)
            _finish_cells(
                parts, segments, lengths, rows, g, h, group, cells, size, first_head, heads,
                CHUNK, RUNS,
            )  # fmt: skip


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def add_up(
    ds, hop_sums: HopSums, cell_sums: CellSums, layer_sums: LayerSums, function: Function,
    columns, group, pairs, buckets, cells, hop_programs, cell_programs, hop_size, cell_size,
    first_head, programs, slices, size, sum_build: tl.constexpr, build: tl.constexpr,
):  # fmt: skip
    """Gradients of the hop table ``[H, S]``, of the radial table's rows ``[C + 1, 2, H]``, and of
    the radial function's parameters, added to what they are if `ADD`, from dL/dlogits ``ds [pairs,
    group]``.

    First come programs for the hop table, a chunk of pairs and `COLUMN` heads each, then likewise
    for the radial table; the last are for the exact Φ3d: `add_parts`. Of those two kinds, one
    writes 0 or returns at once: whether the table fits stands on the device. The counters of all
    slices are 0, by the launch before.
    """
    program = tl.program_id(0)
    if program < hop_programs:
        if hop_sums.parts is not None:
            _sum_hops(
                program % columns, program // columns, columns, ds, hop_sums,
                group, pairs, buckets, hop_size, first_head, sum_build,
            )  # fmt: skip
    elif program < hop_programs + cell_programs:
        if cell_sums.parts is not None:
            program -= hop_programs
            _sum_cells(
                program % columns, program // columns, columns, ds, cell_sums, layer_sums.fits,
                group, pairs, cells, cell_size, first_head, function.heads, sum_build,
            )  # fmt: skip
    else:
        if layer_sums.parts is not None:
            u, fits, parts, layers, counters = layer_sums
            program -= hop_programs + cell_programs
            rest = program // programs
            turn = Turn(program % programs, rest % slices, rest // slices, programs, slices)
            add_parts(
                turn, ds, u, fits, function, parts, pairs, first_head, group, size, False, build
            )
            finish_parts(
                turn, counters, parts, fits, layers, pairs, function, size, sum_build.ADD, build
            )
