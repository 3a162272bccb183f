"""The attention's Triton kernels: forward and backward, for molecules of one tile or of many.

The launcher owns shapes and strides: `launch.py`. What a pair needs is worked out before,
once for all heads, by `pairs.locate`: the column of the hop table, the cell of the radial
table and the place in it. The attention then reads those 8 bytes, 4 of the one table and 16 of the
other, per pair and head.

Two rules about the source decide half of a kernel's instructions. What is added to the logits is
loaded before the product: the compiler spreads layouts from the last load backwards, and rows
(which are no tiles) take the first that reaches them; the other way round, softmax is worked out
in the loads' layout too, with ten times the shuffles. And a pair's numbers are loaded as [i, j, 1]
(`_one_each`).

A molecule's atoms and pairs begin at int64 offsets, because Σ N²·H passes 2³¹ at 65 M pairs of 32
heads. Inside a molecule offsets are int32: with 64-bit ones the backward of one tile took 238
registers, not 182. A pointer that is None takes its term out of the compiled kernel. No number that
changes with the batch is specialised, so that a new N never compiles anything.

Arguments come as named tuples. Numbers of a batch are listed one by one: neither Triton 3.6 nor 3.9
heeds ``do_not_specialize`` inside a tuple (`native_specialize_impl` of ``(16, 5, 1)`` gives
divisible by 16, plain, and compiled in), so in one they would compile a kernel for each batch.
Tensors, which are specialised anyway, are in tuples, and what is compiled in is one constexpr: both
versions make of them the very instructions that they make of parameters listed one by one, if the
order is the same, and their launchers flatten them (`annotate_arguments` of 3.9, `format_of` of
3.6). A field of that constexpr is a plain number to 3.6: give it a name of its own (``HEADS:
tl.constexpr = build.HEADS``) before it goes into a shape.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
CLEARED = tl.constexpr(256)  # words set to 0 at a time
SIGN = tl.constexpr(-(2**31))
TILE = tl.constexpr(32)  # atoms an entry of `Relations.tiles` stands for


class Projections(NamedTuple):
    """Queries, keys and values, all with the same strides."""

    q: Tensor
    k: Tensor
    v: Tensor


class Results(NamedTuple):
    """What `attend` writes: the result, and of each row its largest logit and 1 / Σ exp."""

    out: Tensor
    row_max: Tensor  # [atoms, H]
    inverse_sum: Tensor  # [atoms, H]
    logits: Tensor | None = None  # [H, pairs], packed only; may be the dense bias itself


class Gradients(NamedTuple):
    """dL/dout, and what the backward kernels write."""

    grad: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    ds: Tensor | None  # [pairs, group]: dL/dlogits, those of a pair side by side
    dbias: Tensor | None
    dsink: Tensor | None  # [atoms, H]: what each row sends back
    cleared: Tensor | None  # int32: words of `table_gradients.add_up`'s segments, set to 0
    dlogits: Tensor | None = None  # [H, pairs]: what other readers of the logits send back to them


class Places(NamedTuple):
    """Where molecules begin, and which atoms are real."""

    cu_seqlens: Tensor | None
    pair_start: Tensor | None
    tiles: Tensor | None
    valid: Tensor | None


class Terms(NamedTuple):
    """What is added to the logits, and the seed of dropout; None leaves a term out."""

    hops: Tensor | None
    hop_bias: Tensor | None
    spot: Tensor | None
    coefficients: Tensor | None
    phi: Tensor | None
    fits: Tensor | None
    bias: Tensor | None
    sink: Tensor | None  # [H]: one more logit of each row, of a value that is 0
    seed: Tensor | None
    dropout_p: Tensor | None  # [1] float64, with a seed


class Position(NamedTuple):
    """Where a program is: its molecule's first atom, atoms and first pair; its head in a group."""

    molecule: tl.tensor
    start: tl.tensor
    n: tl.tensor
    pair: tl.tensor
    pairs: tl.tensor  # of the batch
    head: tl.tensor
    local: tl.tensor


class Sizes(NamedTuple):
    """Numbers that a tile of weights takes."""

    heads: int
    buckets: int  # columns of the hop table
    cells: int  # of the radial table
    scale: float
    bias_strides: tuple  # over molecules, heads, queries and keys


class Build(NamedTuple):
    """What is compiled into a kernel of the attention."""

    PRECISION: str  # of float32 products
    ALIGN: int  # what strides over molecules, heads and atoms have in common
    PACKED: bool
    ROWS: bool  # a dense bias's keys lie side by side: `bias_j` is 1
    LISTED: bool
    SINGLE: bool
    BLOCK: int
    HEAD: int
    WIDTH: int


# Numbers of a batch: what may change from step to step. Strides over atoms (q_t, out_t) do not.
BATCH_NUMBERS = (
    *("above", "longest", "blocks", "pairs", "cells", "first_head", "group", "cleared_count"),
    *("q_b", "q_h", "out_b", "out_h"),
    *("bias_b", "bias_h", "bias_i", "bias_j", "dbias_b", "dbias_h"),
)


@triton.jit
def place_of(molecule, cu_seqlens, pair_start, longest, PACKED: tl.constexpr):
    """First atom of a molecule, its number of atoms, and its first pair."""
    if PACKED:
        start = tl.load(cu_seqlens + molecule).to(tl.int64)
        n = tl.load(cu_seqlens + molecule + 1) - tl.load(cu_seqlens + molecule)
        pair = tl.load(pair_start + molecule)
    else:
        start = molecule.to(tl.int64) * longest
        n = longest
        pair = start * longest
    return start, n, pair


@triton.jit
def tile_of(tile, tiles, blocks, LISTED: tl.constexpr, BLOCK: tl.constexpr):
    """Molecule of a tile of atoms (-1: none), and the tile's first atom in it.

    Molecules have ``blocks`` tiles each, or, where they differ too much for that, those that are
    ``LISTED``: `Relations.tiles`.
    """
    if LISTED:
        entry = tiles + tile // (TILE // BLOCK) * 2
        molecule = tl.load(entry)
        first = tl.load(entry + 1) + tile % (TILE // BLOCK) * BLOCK
    else:
        molecule = tile // blocks
        first = tile % blocks * BLOCK
    return molecule, first


@triton.jit
def alive(valid, start, i, n):
    """Whether the atoms i of a molecule are there and real."""
    there = i < n
    if valid is not None:
        there = tl.load(valid + start + i, mask=there, other=0) != 0
    return there


@triton.jit
def hop_column(hop, buckets):
    """Column of a hop table: the last is for 255, unreachable; 256, padding, is behind it."""
    return tl.where(hop >= 255, buckets + hop - 256, tl.minimum(hop, buckets - 2))


@triton.jit
def fraction_of(spot):
    """How far through its cell of the radial table a pair is; `pairs.locate` says where."""
    return (spot >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def entry_of(spot):
    """Where the coefficients of a pair's cell begin, in the radial table of one head."""
    return spot.to(tl.int32) & 0x1FFFF


@triton.jit
def column_of(spot):
    """Column of the hop table."""
    return (spot.to(tl.uint32) >> 17).to(tl.int32)


@triton.jit
def polynomial(coefficients, entry, x):
    """c₀ + c₁x + c₂x² + c₃x³ of each pair [i, j], from its cell: one 16-byte load."""
    first = tl.multiple_of(tl.expand_dims(entry, 2), (4, 4, 4))  # so that one load is 16 bytes
    c = tl.load(coefficients + first + tl.arange(0, 4))  # [i, j, 4]
    even, odd = tl.split(tl.reshape(c, (entry.shape[0], entry.shape[1], 2, 2)))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0 + x * (c1 + x * (c2 + x * c3))


@triton.jit
def _one_each(place):
    """Load one number of each pair [i, j].

    As [i, j, 1]: a tile of keys may have the shape [i, j] too, and the compiler gives all loads of
    one shape one layout, for keys eight columns a thread. What a pair needs would have to cross
    shared memory.
    """
    return tl.reshape(tl.load(tl.expand_dims(place, 2)), place.shape)


@triton.jit
def _sum_terms(i, j, real, position: Position, terms: Terms, sizes: Sizes, build: tl.constexpr):
    """Φ2d + Φ3d + the dense bias of a molecule and head ``[i, j]``, -inf where no key is ``real``.

    Where the radial table does not fit, Φ3d of these heads was worked out for every pair and stands
    in ``phi [local, pairs]``. Summed apart and added to the logits once: logits added to term by
    term leave the layout of the matrix product, and softmax then takes ten times the shuffles.
    """
    molecule, _start, n, pair, pairs, head, local = position
    # Behind the last atom its own pairs are read: a mask would cost an instruction more for each.
    inside = tl.minimum(i, n - 1)[:, None] * n + tl.minimum(j, n - 1)[None, :]  # [i, j]
    head = head.to(tl.int64)
    total = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    if terms.spot is not None:
        spot = _one_each(terms.spot + pair + inside)
        if tl.load(terms.fits) != 0:
            head_cells = terms.coefficients + head * (sizes.cells + 1) * 4
            phi3d = polynomial(head_cells, entry_of(spot), fraction_of(spot))
        else:
            phi3d = _one_each(terms.phi + local.to(tl.int64) * pairs + pair + inside)
        total = phi3d
        if terms.hop_bias is not None:
            total += _one_each(terms.hop_bias + head * sizes.buckets + column_of(spot))
    elif terms.hops is not None:
        hop = _one_each(terms.hops + pair + inside).to(tl.int32)
        total = _one_each(terms.hop_bias + head * sizes.buckets + hop_column(hop, sizes.buckets))
    if terms.bias is not None:
        bias_b, bias_h, bias_i, bias_j = sizes.bias_strides
        if build.PACKED and build.ROWS:
            place = terms.bias + (head * bias_h + pair) + inside
        elif build.PACKED:
            place = terms.bias + head * bias_h + (pair + inside) * bias_j
        else:
            row = terms.bias + (molecule.to(tl.int64) * bias_b + head * bias_h)
            row += tl.minimum(i, n - 1)[:, None].to(tl.int64) * bias_i
            key = tl.minimum(j, n - 1)[None, :]
            place = row + (key if build.ROWS else key.to(tl.int64) * bias_j)
        total += _one_each(place).to(tl.float32)
    return tl.where(real[None, :], total, float("-inf"))


@triton.jit
def _store_logits(s, i, j, position: Position, logits):
    """Write the logits [i, j]."""
    if logits is not None:
        _molecule, _start, n, pair, pairs, head, _local = position
        # In place, another thread may have yet to read what this one is about to write.
        tl.debug_barrier()
        place = logits + (head.to(tl.int64) * pairs + pair) + (i[:, None] * n + j[None, :])
        tl.store(place, s, mask=(i < n)[:, None] & (j < n)[None, :])


@triton.jit
def _sent_back(i, j, position: Position, dlogits):
    """What the other readers of the logits [i, j] send back to them."""
    _molecule, _start, n, pair, pairs, head, _local = position
    inside = tl.minimum(i, n - 1)[:, None] * n + tl.minimum(j, n - 1)[None, :]
    sent = _one_each(dlogits + (head.to(tl.int64) * pairs + pair) + inside)
    return tl.where((i < n)[:, None] & (j < n)[None, :], sent, 0.0)


@triton.jit
def _growth(terms: Terms):
    """1 / (1 - p), what dropout multiplies the weights by that it keeps; only with a seed.

    p stands in memory: given as a number, each new one would compile a graph of its own. It is read
    where it is used: two more numbers that live as long as a program spill in the largest.
    """
    return tl.div_rn(1.0, (1.0 - tl.load(terms.dropout_p)).to(tl.float32))


@triton.jit
def _kept(terms: Terms, molecule, head, i, j):
    """Which weights dropout keeps: the stream that `dropout.dropout_factors` defines.

    Those whose 32 random bits reach p·2³², both taken as signed numbers, 2³¹ less.
    """
    p = tl.load(terms.dropout_p)
    threshold = ((p * 4294967296.0).to(tl.int64) - 2147483648).to(tl.int32)
    zero = tl.zeros((i.shape[0], j.shape[0]), tl.int32)
    word, _, _, _ = tl.philox(
        tl.load(terms.seed), zero + j[None, :], zero + i[:, None], zero + head, zero + molecule
    )
    return (word.to(tl.int32, bitcast=True) ^ SIGN) >= threshold


@triton.jit
def _origin(start, molecule, head, b, h, t, PACKED: tl.constexpr, ALIGN: tl.constexpr):
    """Where a molecule's rows of one head begin; ALIGN is what strides have in common."""
    if PACKED:
        origin = start * t + head.to(tl.int64) * h
    else:
        origin = molecule.to(tl.int64) * b + head.to(tl.int64) * h
    return tl.multiple_of(origin, ALIGN)


@triton.jit
def _rows(x, origin, atom, t, there, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Load the rows [atom, d] of one head; 0 where nobody is ``there``, and behind the head."""
    d = tl.arange(0, WIDTH)
    place = x + (origin + atom[:, None] * t + d[None, :])
    return tl.load(place, mask=there[:, None] & (d < HEAD)[None, :], other=0.0)


@triton.jit
def _store_rows(x, origin, atom, t, n, values, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Store the rows [atom, d] of one head, of the molecule's `n` atoms."""
    d = tl.arange(0, WIDTH)
    place = x + (origin + atom[:, None] * t + d[None, :])
    stored = (atom < n)[:, None] & (d < HEAD)[None, :]
    tl.store(place, values.to(x.dtype.element_ty), mask=stored)


@triton.jit
def _before_keys(sink, head, BLOCK: tl.constexpr):
    """Largest logit and Σ exp of rows that no key has met yet: those of the sink, if there is one.

    Its value is 0, so that it takes part in nothing else.
    """
    if sink is not None:
        top = tl.zeros((BLOCK,), tl.float32) + tl.load(sink + head)
        total = tl.full((BLOCK,), 1.0, tl.float32)
    else:
        top = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
    return top, total


@triton.jit
def _exponentials(s, top):
    """One step of the softmax: exp(s - m) [i, j], m [i], and exp(top - m) for the sums so far.

    m is the largest logit of a row, here or before (``top``).
    """
    m = tl.maximum(top, tl.max(s, 1))
    shift = tl.where(m == float("-inf"), 0.0, m)  # -inf - -inf is NaN
    p = tl.exp2(s * LOG2E - (shift * LOG2E)[:, None])
    return p, m, tl.exp2((top - shift) * LOG2E)


@triton.jit
def _reciprocal(total):
    """1 / Σ of each row; 0 where every key is excluded, and NaN where it is: that must be seen."""
    positive = total > 0
    one_over = tl.where(positive, 1.0 / tl.where(positive, total, 1.0), 0.0)
    return tl.where(total == total, one_over, total)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def attend(
    projections: Projections, results: Results, places: Places, terms: Terms,
    above, heads, first_head, group, longest, blocks, pairs, buckets, cells, scale,
    q_b, q_h, q_t, out_b, out_h, out_t, bias_b, bias_h, bias_i, bias_j, build: tl.constexpr,
):  # fmt: skip
    """Result of `BLOCK` queries of one molecule and one of `group` heads against all its keys.

    ``row_max`` and ``inverse_sum`` ``[atoms, H]`` are the largest logit of a row, the sink among
    them, and 1 / Σ exp(s - row_max). Together they give the weights again without the rounding of
    log Σ exp, which is larger than all else in them.
    """
    BLOCK: tl.constexpr = build.BLOCK
    SINGLE: tl.constexpr = build.SINGLE
    PACKED: tl.constexpr = build.PACKED
    HEAD: tl.constexpr = build.HEAD
    WIDTH: tl.constexpr = build.WIDTH
    local = tl.program_id(0) % group
    head = first_head + local
    tile = tl.program_id(0) // group
    molecule, first = tile_of(tile, places.tiles, blocks, build.LISTED, BLOCK)
    if molecule < 0:
        return
    start, n, pair = place_of(molecule, places.cu_seqlens, places.pair_start, longest, PACKED)
    if first >= n or n <= above or (SINGLE and n > BLOCK):  # or another launch takes it
        return
    if SINGLE:
        first = 0
    position = Position(molecule, start, n, pair, pairs, head, local)
    strides = bias_b, bias_h, bias_i, bias_j
    sizes = Sizes(heads, buckets, cells, scale, strides)
    i = first + tl.arange(0, BLOCK)
    query = alive(places.valid, start, i, n)
    origin = _origin(start, molecule, head, q_b, q_h, q_t, PACKED, build.ALIGN)
    x = _rows(projections.q, origin, i, q_t, query, HEAD, WIDTH)  # [i, d]
    top, total = _before_keys(terms.sink, head, BLOCK)
    mean = tl.zeros((BLOCK, WIDTH), tl.float32)
    for next in range(0, BLOCK if SINGLE else n, BLOCK):
        j = next + tl.arange(0, BLOCK)
        real = alive(places.valid, start, j, n)
        key = _rows(projections.k, origin, j, q_t, real, HEAD, WIDTH)  # [j, d]
        value = _rows(projections.v, origin, j, q_t, real, HEAD, WIDTH)
        added = _sum_terms(i, j, real, position, terms, sizes, build)  # [i, j]
        s = tl.dot(x, tl.trans(key), input_precision=build.PRECISION) * scale + added  # [i, j]
        _store_logits(s, i, j, position, results.logits)
        p, top, fade = _exponentials(s, top)
        if terms.sink is not None or not SINGLE:
            total *= fade
        if not SINGLE:
            mean *= fade[:, None]
        total += tl.sum(p, 1)
        if terms.seed is not None:
            p = tl.where(_kept(terms, molecule, head, i, j), p, 0.0)
        mean += tl.dot(p.to(value.dtype), value, input_precision=build.PRECISION)
    total = tl.where(query, total, 0.0)
    one_over = _reciprocal(total)
    factor = one_over
    if terms.seed is not None:
        factor = one_over * _growth(terms)
    result = tl.where(query[:, None], mean * factor[:, None], 0.0)
    place = _origin(start, molecule, head, out_b, out_h, out_t, PACKED, build.ALIGN)
    _store_rows(results.out, place, i, out_t, n, result, HEAD, WIDTH)
    row = (start + i) * heads + head
    tl.store(results.row_max + row, tl.where(total > 0, top, 0.0), mask=i < n)
    tl.store(results.inverse_sum + row, one_over, mask=i < n)


@triton.jit
def _weights(
    x, g, key, value, i, j, query, real, position: Position, results: Results, terms: Terms,
    sizes: Sizes, build: tl.constexpr,
):  # fmt: skip
    """Weights before and after dropout, and dL/dweights before it: [i, j] each."""
    PRECISION: tl.constexpr = build.PRECISION
    added = _sum_terms(i, j, real, position, terms, sizes, build)
    s = tl.dot(x, tl.trans(key), input_precision=PRECISION) * sizes.scale + added  # [i, j]
    s = tl.where(query[:, None], s, float("-inf"))  # 0 · NaN of a key is NaN
    row = (position.start + i) * sizes.heads + position.head
    top = tl.load(results.row_max + row, mask=query, other=0.0)  # [i]
    one_over = tl.load(results.inverse_sum + row, mask=query, other=0.0)
    p = tl.exp2(s * LOG2E - (top * LOG2E)[:, None]) * one_over[:, None]
    dp = tl.dot(g, tl.trans(value), input_precision=PRECISION)
    used = p
    if terms.seed is not None:
        kept = _kept(terms, position.molecule, position.head, i, j)
        growth = _growth(terms)
        used = tl.where(kept, p * growth, 0.0)
        dp = tl.where(kept, dp * growth, 0.0)
    return p, used, dp


@triton.jit
def _delta(out, g, result, i, t, query, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Σ_d out·dL/dout of the queries [i], which is Σ_j of weight times dL/dweight."""
    o = _rows(out, result, i, t, query, HEAD, WIDTH)  # [i, d]
    return tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)


@triton.jit
def _store_pairs(
    ds, i, j, gradients: Gradients, dbias_b, dbias_h, group, position: Position,
    PACKED: tl.constexpr,
):  # fmt: skip
    """Write dL/dlogits [i, j]: for the gradients of tables, and as that of the dense bias."""
    molecule, _start, n, pair, _pairs, head, local = position
    inside = i[:, None] * n + j[None, :]
    stored = (i < n)[:, None] & (j < n)[None, :]
    if gradients.ds is not None:
        # A round has many heads or many pairs, never so many of both that this passes 2^31.
        place = gradients.ds + pair * group + local + inside * group
        tl.store(place, ds, mask=stored)
    if gradients.dbias is not None:
        dbias = gradients.dbias
        dbias += (pair if PACKED else molecule.to(tl.int64) * dbias_b) + head.to(tl.int64) * dbias_h
        tl.store(dbias + inside, ds.to(dbias.dtype.element_ty), mask=stored)


@triton.jit
def _store_sinks(delta, i, query, position: Position, results: Results, terms: Terms, heads, dsink):
    """Write what each query [i] sends back to the sink: the sink's weight times 0 - delta.

    A row each, [atoms, H], so that somebody else adds them up in a fixed order.
    """
    if dsink is not None:
        row = (position.start + i) * heads + position.head
        top = tl.load(results.row_max + row, mask=query, other=0.0)  # [i]
        one_over = tl.load(results.inverse_sum + row, mask=query, other=0.0)
        sink = tl.load(terms.sink + position.head)
        weight = tl.exp2((sink - top) * LOG2E) * one_over
        sent = tl.where(query, -weight * delta, 0.0)  # the sink of padding may be ∞
        tl.store(dsink + row, sent, mask=i < position.n)


@triton.jit
def _sink_rows(
    i, result, t, position: Position, results: Results, gradients: Gradients, places: Places,
    terms: Terms, heads, build: tl.constexpr,
):  # fmt: skip
    """The same for queries [i] whose delta is no longer at hand: keeping it would spill."""
    if gradients.dsink is not None:
        query = alive(places.valid, position.start, i, position.n)
        g = _rows(gradients.grad, result, i, t, query, build.HEAD, build.WIDTH)
        delta = _delta(results.out, g, result, i, t, query, build.HEAD, build.WIDTH)
        _store_sinks(delta, i, query, position, results, terms, heads, gradients.dsink)


@triton.jit
def _clear(cleared, cleared_count):
    """Set the words of the segments to 0, which `table_gradients.add_up`, launched next, fills."""
    if cleared is not None:
        first, step = tl.program_id(0) * CLEARED, tl.num_programs(0) * CLEARED
        for next in range(first, cleared_count, step):
            c = next + tl.arange(0, CLEARED)
            tl.store(cleared + c, tl.zeros((CLEARED,), tl.int32), mask=c < cleared_count)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def differentiate(
    projections: Projections, results: Results, gradients: Gradients, places: Places, terms: Terms,
    above, heads, first_head, group, longest, blocks, pairs, buckets, cells, cleared_count, scale,
    q_b, q_h, q_t, out_b, out_h, out_t, bias_b, bias_h, bias_i, bias_j, dbias_b, dbias_h,
    build: tl.constexpr,
):  # fmt: skip
    """Gradients of one molecule and head, of `BLOCK` atoms (`SINGLE`) or up to twice as many.

    One program: five products a tile of pairs, and nothing is added to what is in memory. Those of
    the queries stay in registers until the keys of both halves have passed.
    """
    BLOCK: tl.constexpr = build.BLOCK
    SINGLE: tl.constexpr = build.SINGLE
    PACKED: tl.constexpr = build.PACKED
    PRECISION: tl.constexpr = build.PRECISION
    HEAD: tl.constexpr = build.HEAD
    WIDTH: tl.constexpr = build.WIDTH
    _clear(gradients.cleared, cleared_count)
    local = tl.program_id(0) % group
    head = first_head + local
    molecule = tl.program_id(0) // group
    start, n, pair = place_of(molecule, places.cu_seqlens, places.pair_start, longest, PACKED)
    if n <= above or n > (BLOCK if SINGLE else 2 * BLOCK):  # or another launch takes it
        return
    origin = _origin(start, molecule, head, q_b, q_h, q_t, PACKED, build.ALIGN)
    result = _origin(start, molecule, head, out_b, out_h, out_t, PACKED, build.ALIGN)
    position = Position(molecule, start, n, pair, pairs, head, local)
    strides = bias_b, bias_h, bias_i, bias_j
    sizes = Sizes(heads, buckets, cells, scale, strides)
    atom = tl.arange(0, BLOCK)
    dq = tl.zeros((BLOCK, WIDTH), tl.float32)
    dq_later = tl.zeros((BLOCK, WIDTH), tl.float32)  # of the second half of the queries
    for next in range(0, BLOCK if SINGLE else n, BLOCK):
        j = next + atom
        real = alive(places.valid, start, j, n)
        key = _rows(projections.k, origin, j, q_t, real, HEAD, WIDTH)  # [j, d]
        value = _rows(projections.v, origin, j, q_t, real, HEAD, WIDTH)
        dk = tl.zeros((BLOCK, WIDTH), tl.float32)
        dv = tl.zeros((BLOCK, WIDTH), tl.float32)
        for half in range(0, BLOCK if SINGLE else n, BLOCK):
            i = half + atom
            query = alive(places.valid, start, i, n)
            x = _rows(projections.q, origin, i, q_t, query, HEAD, WIDTH)  # [i, d]
            g = _rows(gradients.grad, result, i, out_t, query, HEAD, WIDTH)
            if gradients.dlogits is not None:
                sent = _sent_back(i, j, position, gradients.dlogits)
            p, used, dp = _weights(
                x, g, key, value, i, j, query, real, position, results, terms, sizes, build
            )
            if SINGLE:
                # From the very p and dp that are used, so that a row of ds adds up to 0.
                delta = tl.sum(p * dp, 1)
            else:
                delta = _delta(results.out, g, result, i, out_t, query, HEAD, WIDTH)
            ds = p * (dp - delta[:, None])
            if gradients.dlogits is not None:
                ds += sent
            if SINGLE:
                _store_sinks(delta, i, query, position, results, terms, heads, gradients.dsink)
            _store_pairs(ds, i, j, gradients, dbias_b, dbias_h, group, position, PACKED)
            dv += tl.dot(tl.trans(used.to(g.dtype)), g, input_precision=PRECISION)
            dk += tl.dot(tl.trans(ds.to(x.dtype)), x, input_precision=PRECISION)
            if half == 0:
                dq += tl.dot(ds.to(key.dtype), key, input_precision=PRECISION)
            else:
                dq_later += tl.dot(ds.to(key.dtype), key, input_precision=PRECISION)
        _store_rows(gradients.dk, result, j, out_t, n, dk * scale, HEAD, WIDTH)
        _store_rows(gradients.dv, result, j, out_t, n, dv, HEAD, WIDTH)
    _store_rows(gradients.dq, result, atom, out_t, n, dq * scale, HEAD, WIDTH)
    if not SINGLE:
        _store_rows(gradients.dq, result, BLOCK + atom, out_t, n, dq_later * scale, HEAD, WIDTH)
        _sink_rows(atom, result, out_t, position, results, gradients, places, terms, heads, build)
        later = BLOCK + atom
        _sink_rows(later, result, out_t, position, results, gradients, places, terms, heads, build)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def differentiate_tile(
    projections: Projections, results: Results, gradients: Gradients, places: Places, terms: Terms,
    above, heads, first_head, group, longest, blocks, pairs, buckets, cells, cleared_count, scale,
    q_b, q_h, q_t, out_b, out_h, out_t, bias_b, bias_h, bias_i, bias_j, dbias_b, dbias_h,
    build: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of atoms and a head: as keys (program 0 of axis 1) or as queries.

    For molecules of any size. Each program owns what it writes. Working the weights out twice, for
    rows and for columns, takes seven products instead of five; one program for both would have to
    add to dq in memory, tile after tile.
    """
    BLOCK: tl.constexpr = build.BLOCK
    PACKED: tl.constexpr = build.PACKED
    PRECISION: tl.constexpr = build.PRECISION
    HEAD: tl.constexpr = build.HEAD
    WIDTH: tl.constexpr = build.WIDTH
    _clear(gradients.cleared, cleared_count)
    local = tl.program_id(0) % group
    head = first_head + local
    tile = tl.program_id(0) // group
    molecule, first = tile_of(tile, places.tiles, blocks, build.LISTED, BLOCK)
    if molecule < 0:
        return
    start, n, pair = place_of(molecule, places.cu_seqlens, places.pair_start, longest, PACKED)
    if first >= n or n <= above:  # or another launch takes it
        return
    as_keys = tl.program_id(1) == 0
    origin = _origin(start, molecule, head, q_b, q_h, q_t, PACKED, build.ALIGN)
    result = _origin(start, molecule, head, out_b, out_h, out_t, PACKED, build.ALIGN)
    position = Position(molecule, start, n, pair, pairs, head, local)
    strides = bias_b, bias_h, bias_i, bias_j
    sizes = Sizes(heads, buckets, cells, scale, strides)
    dk = tl.zeros((BLOCK, WIDTH), tl.float32)  # dq in a program for queries
    dv = tl.zeros((BLOCK, WIDTH), tl.float32)
    for next in range(0, n, BLOCK):
        i = tl.where(as_keys, next, first) + tl.arange(0, BLOCK)
        j = tl.where(as_keys, first, next) + tl.arange(0, BLOCK)
        query = alive(places.valid, start, i, n)
        real = alive(places.valid, start, j, n)
        x = _rows(projections.q, origin, i, q_t, query, HEAD, WIDTH)  # [i, d]
        g = _rows(gradients.grad, result, i, out_t, query, HEAD, WIDTH)
        key = _rows(projections.k, origin, j, q_t, real, HEAD, WIDTH)  # [j, d]
        value = _rows(projections.v, origin, j, q_t, real, HEAD, WIDTH)
        if gradients.dlogits is not None:
            sent = _sent_back(i, j, position, gradients.dlogits)
        p, used, dp = _weights(
            x, g, key, value, i, j, query, real, position, results, terms, sizes, build
        )
        delta = _delta(results.out, g, result, i, out_t, query, HEAD, WIDTH)
        ds = p * (dp - delta[:, None])
        if gradients.dlogits is not None:
            ds += sent
        if as_keys:
            _store_pairs(ds, i, j, gradients, dbias_b, dbias_h, group, position, PACKED)
            dv += tl.dot(tl.trans(used.to(g.dtype)), g, input_precision=PRECISION)
            dk += tl.dot(tl.trans(ds.to(x.dtype)), x, input_precision=PRECISION)
        else:
            dk += tl.dot(ds.to(key.dtype), key, input_precision=PRECISION)
    atom = first + tl.arange(0, BLOCK)
    if as_keys:
        _store_rows(gradients.dk, result, atom, out_t, n, dk * scale, HEAD, WIDTH)
        _store_rows(gradients.dv, result, atom, out_t, n, dv, HEAD, WIDTH)
    else:
        _store_rows(gradients.dq, result, atom, out_t, n, dk * scale, HEAD, WIDTH)
        _sink_rows(atom, result, out_t, position, results, gradients, places, terms, heads, build)
