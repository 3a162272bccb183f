"""Triton kernels of a radial function: its table, and the exact Φ3d where a table is too coarse.

`layers` is one tensor with the parameters of `radial.op` one after the other: centre and width
``[K]``, weight ``[J, K]``, bias ``[J]`` and, of an MLP head (J hidden units, `MLP`), weight2
``[H, J]``, bias2 ``[H]``. Of a linear head J = H. `reach` is how far molecules go, [] Å. Tables of
several functions are made and differentiated by the same launches: their tensors follow each other.

Gaussians are taken `CHUNK` and units of the first layer `SLICE` at a time, so that any number of
them fits the registers. Programs write sums of their own, which the next launch adds up in order:
no atomics, the same bits every time.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

BATCH_NUMBERS = ("pairs", "first_head", "group", "programs")  # see `coattention.triton.kernels`
ROOT_HALF = tl.constexpr(0.7071067811865476)
BELL = tl.constexpr(0.3989422804014327)  # 1/√(2π)
# As `radial.op` has them: of GELU's derivatives, and where a Gaussian's turn back.
GELU_1, GELU_2 = tl.constexpr(1.1290), tl.constexpr(0.7979)
GELU_3, GELU_4, GELU_5 = tl.constexpr(0.7788), tl.constexpr(1.5958), tl.constexpr(2.8426)
MOST_CELLS = tl.constexpr(65536)  # of a block: more than any table has, and 128 of them an int32


class Function(NamedTuple):
    """A radial function: its parameters, and its numbers of Gaussians (K), units (J) and heads."""

    layers: Tensor | None
    count: int
    units: int
    heads: int


class Table(NamedTuple):
    """What `tabulate` writes: see `radial.triton.op.FixedTable`."""

    rows: Tensor
    slope_rows: Tensor | None
    knots: Tensor
    lengths: Tensor
    first_knot: Tensor
    geometry: Tensor
    fits: Tensor
    errors: Tensor


class Turn(NamedTuple):
    """Which share of a gradient of the parameters a program works out: see `add_parts`."""

    program: tl.tensor
    part: tl.tensor  # units
    chunk: tl.tensor  # Gaussians
    programs: tl.tensor
    slices: tl.tensor  # of the units


class Build(NamedTuple):
    """What is compiled into a kernel of a radial function."""

    MLP: bool
    PLACES: int  # knots, blocks or pairs at a time
    CHUNK: int  # Gaussians at a time
    SLICE: int  # units of the first layer at a time
    HEADS: int  # a power of two


@triton.jit
def _matrix(weight, row, column, rows, columns):
    """[row, column] of a matrix stored row by row, 0 outside."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(weight + row[:, None] * columns + column[None, :], mask=mask, other=0.0)


# --- the function and its derivatives -------------------------------------------------------------


@triton.jit
def _bells(u, layers, k, count):
    """z, ψ ``[p, k]`` and 1/s ``[k]``; ψ is 0 beyond the last Gaussian and where u is ∞."""
    there = k < count
    width = tl.load(layers + count + k, mask=there, other=1.0)
    z = (u[:, None] - tl.load(layers + k, mask=there, other=0.0)[None, :]) / width[None, :]
    far = (u == float("inf"))[:, None] | (there == 0)[None, :]
    z = tl.where(far, 0.0, z)
    return z, tl.where(far, 0.0, tl.exp(-0.5 * z * z)), 1.0 / width


@triton.jit
def _first_layer(u, function: Function, j, ORDERS: tl.constexpr, CHUNK: tl.constexpr):
    """W ψ + b of the units j and its first ORDERS - 1 derivatives by u, ``[p, j]`` each."""
    layers, count, units, _heads = function
    a0 = tl.zeros((u.shape[0], j.shape[0]), tl.float32)
    a1 = a0
    a2 = a0
    for begin in range(0, count, CHUNK):
        k = begin + tl.arange(0, CHUNK)
        z, psi, inverse_width = _bells(u, layers, k, count)
        weight = tl.trans(_matrix(layers + 2 * count, j, k, units, count))  # [k, j]
        a0 += tl.dot(psi, weight, input_precision="ieee")
        if ORDERS > 1:
            a1 += tl.dot(-z * inverse_width[None, :] * psi, weight, input_precision="ieee")
        if ORDERS > 2:
            bent = (z * z - 1.0) * (inverse_width * inverse_width)[None, :] * psi
            a2 += tl.dot(bent, weight, input_precision="ieee")
    bias = tl.load(layers + 2 * count + units * count + j, mask=j < units, other=0.0)
    return a0 + bias[None, :], a1, a2


@triton.jit
def _gelu(a):
    """The normal distribution Φ(a), GELU'(a) and GELU''(a)."""
    below = 0.5 * (1.0 + tl.erf(a * ROOT_HALF))
    bell = BELL * tl.exp(-0.5 * a * a)
    return below, below + a * bell, (2.0 - a * a) * bell


@triton.jit
def _evaluate(u, function: Function, h, ORDERS: tl.constexpr, build: tl.constexpr):
    """Φ3d of the heads h and its first ORDERS - 1 derivatives by u, ``[p, h]`` each."""
    if build.MLP:
        layers, count, units, heads = function
        last = layers + 2 * count + units * count + units
        y0 = tl.zeros((u.shape[0], h.shape[0]), tl.float32)
        y0 += tl.load(last + heads * units + h, mask=h < heads, other=0.0)[None, :]
        y1 = tl.zeros((u.shape[0], h.shape[0]), tl.float32)
        y2 = y1
        for begin in range(0, units, build.SLICE):
            j = begin + tl.arange(0, build.SLICE)
            a0, a1, a2 = _first_layer(u, function, j, ORDERS, build.CHUNK)
            below, slope, curvature = _gelu(a0)
            weight = tl.trans(_matrix(last, h, j, heads, units))  # [j, h]
            y0 += tl.dot(a0 * below, weight, input_precision="ieee")
            if ORDERS > 1:
                y1 += tl.dot(slope * a1, weight, input_precision="ieee")
            if ORDERS > 2:
                bent = slope * a2 + curvature * a1 * a1
                y2 += tl.dot(bent, weight, input_precision="ieee")
    else:
        y0, y1, y2 = _first_layer(u, function, h, ORDERS, build.CHUNK)
    return y0, y1, y2


@triton.jit
def _of_function(number, function: Function, MLP: tl.constexpr):
    """One of several functions whose parameters follow each other."""
    layers, count, units, heads = function
    length = 2 * count + units * count + units
    if MLP:
        length += heads * units + heads
    return Function(layers + number * length, count, units, heads)


# --- how fine a table must be ---------------------------------------------------------------------


@triton.jit
def _up_to_a_power_of_two(x):
    """The least power of two that is not below x ≥ 1, by its bits; at most `MOST_CELLS`."""
    bits = (tl.where(x < MOST_CELLS, x, 1.0).to(tl.int32, bitcast=True) + 0x7FFFFF) >> 23
    return tl.where(x < MOST_CELLS, 1 << (bits - 127), MOST_CELLS)


@triton.jit
def _grid(reach, affine, types, TERMS: tl.constexpr):
    """Number of the first block, the length of a block (a power of two), and whether u is finite.

    u is γ·r + β, r from 0 to reach; or r itself. See `radial._blocks_on_device`.
    """
    high = tl.load(reach)
    low = 0.0 * high
    if affine is not None:
        far = high
        t = tl.arange(0, 128)
        lowest = tl.full((128,), float("inf"), tl.float32)
        highest = tl.full((128,), float("-inf"), tl.float32)
        for begin in range(0, types, 128):
            there = begin + t < types
            gamma = tl.load(affine + 2 * (begin + t), mask=there, other=0.0)
            beta = tl.load(affine + 2 * (begin + t) + 1, mask=there, other=0.0)
            end = gamma * far + beta
            lowest = tl.minimum(lowest, tl.where(there, tl.minimum(beta, end), float("inf")))
            highest = tl.maximum(highest, tl.where(there, tl.maximum(beta, end), float("-inf")))
        low = TERMS * tl.min(lowest, 0)
        high = TERMS * tl.max(highest, 0)
    finite = (tl.abs(low) < 1e30) & (tl.abs(high) < 1e30)
    span = tl.where(finite, high - low, 1.0)
    bits = tl.math.div_rn(tl.maximum(span, 1e-3), 127.0).to(tl.int32, bitcast=True)
    block = (((bits >> 23) + 1) << 23).to(tl.float32, bitcast=True)
    return tl.floor(tl.where(finite, low, 0.0) / block), block, finite


@triton.jit
def _turned(bound, z, place: tl.constexpr, peak: tl.constexpr):
    return tl.maximum(bound, tl.where(z < place, peak, 0.0))


@triton.jit
def _bell_bounds(z, inverse_width):
    """`radial.op._bell_derivative_bounds` of the orders 1 to 5, in units of u."""
    q = z * z
    bell = tl.exp(-0.5 * q)
    first = _turned(z * bell, z, 1.0, 0.60654)
    second = _turned(tl.abs(q - 1.0) * bell, z, 1.73206, 0.44627)
    third = _turned(tl.abs((q - 3.0) * z) * bell, z, 0.74197, 1.38012)
    third = _turned(third, z, 2.33442, 0.37490)
    fourth = _turned(tl.abs((q - 6.0) * q + 3.0) * bell, z, 1.35563, 1.85488)
    fourth = _turned(fourth, z, 2.85698, 0.34873)
    fifth = _turned(tl.abs(((q - 10.0) * q + 15.0) * z) * bell, z, 0.61671, 5.78306)
    fifth = _turned(fifth, z, 1.88918, 2.52212)
    fifth = _turned(fifth, z, 3.32426, 0.35248)
    two = inverse_width * inverse_width
    three, four = two * inverse_width, two * two
    return first * inverse_width, second * two, third * three, fourth * four, fifth * two * three


@triton.jit
def _product(x, weight):
    """``Σ_k x [m, k] · weight [j, k]``."""
    return tl.dot(x, tl.trans(weight), input_precision="ieee")


@triton.jit
def _largest(x):
    """Over axis 1; ∞ where there is a NaN, which must be seen."""
    return tl.max(tl.where(x == x, tl.abs(x), float("inf")), 1)


@triton.jit
def _first_bounds(
    centre, block, function: Function, j, SLOPES: tl.constexpr, build: tl.constexpr
):  # fmt: skip
    """Wψ + b of the units j at some centres and its derivative ``[m, j]``; bounds of five more.

    The last result is the largest bound of ``|ψ⁗|``, ``[m]``. What is not needed is 0.
    """
    layers, count, units, _heads = function
    a0 = tl.zeros((centre.shape[0], j.shape[0]), tl.float32)
    a1, b1, b2, b3, b4, b5 = a0, a0, a0, a0, a0, a0
    gaussian = tl.zeros((centre.shape[0],), tl.float32)
    for begin in range(0, count, build.CHUNK):
        k = begin + tl.arange(0, build.CHUNK)
        z, psi, inverse_width = _bells(centre, layers, k, count)
        weight = _matrix(layers + 2 * count, j, k, units, count)  # [j, k]
        a0 += _product(psi, weight)
        if SLOPES:
            a1 += _product(-z * inverse_width[None, :] * psi, weight)
        weight = tl.abs(weight)  # 0 beyond the last Gaussian, and so is every product
        away = tl.abs(z) - 0.5 * block * inverse_width[None, :]
        away = tl.where(away > 0.0, away, tl.where(away == away, 0.0, away))  # NaN stays
        x1, x2, x3, x4, x5 = _bell_bounds(away, inverse_width[None, :])
        b4 += _product(x4, weight)
        if SLOPES:
            b5 += _product(x5, weight)
        if build.MLP:
            b1 += _product(x1, weight)
            b2 += _product(x2, weight)
            b3 += _product(x3, weight)
        gaussian = tl.maximum(gaussian, _largest(tl.where((k < count)[None, :], x4, 0.0)))
    bias = tl.load(layers + 2 * count + units * count + j, mask=j < units, other=0.0)
    return a0 + bias[None, :], a1, b1, b2, b3, b4, b5, gaussian


@triton.jit
def _gelu_bounds(b1, b2, b3, b4, b5):
    """`radial.op._gelu_chain_bounds` of the orders 4 and 5."""
    q = b1 * b1
    fourth = GELU_1 * b4 + GELU_2 * (3.0 * b2 * b2 + 4.0 * b1 * b3)
    fourth += q * (6.0 * GELU_3 * b2 + GELU_4 * q)
    fifth = GELU_1 * b5 + GELU_2 * (10.0 * b2 * b3 + 5.0 * b1 * b4)
    fifth += GELU_3 * (15.0 * b1 * b2 * b2 + 10.0 * q * b3)
    return fourth, fifth + q * b1 * (10.0 * GELU_4 * b2 + GELU_5 * q)


@triton.jit
def survey(
    reach, affine, types, function: Function, survey,
    TERMS: tl.constexpr, SLOPES: tl.constexpr, TABLE_BLOCKS: tl.constexpr, build: tl.constexpr,
):  # fmt: skip
    """What `radial.op.derivative_bounds` says of `PLACES` blocks of u, and Φ3d at their centres.

    ``survey [functions, 5, TABLE_BLOCKS]``: the largest ``|Φ⁗|`` and, for `SLOPES`, ``|Φ⁽⁵⁾|`` that
    the parameters allow, ``|ψ⁗|`` likewise, and ``|Φ|``, ``|Φ'|`` of the centre.
    """
    number = tl.program_id(1)
    survey += number * (5 * TABLE_BLOCKS)
    function = _of_function(number, function, build.MLP)
    PLACES: tl.constexpr = build.PLACES
    HEADS: tl.constexpr = build.HEADS
    MLP: tl.constexpr = build.MLP
    layers, count, units, heads = function
    first, block, _finite = _grid(reach, affine, types, TERMS)
    m = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    centre = (first + m.to(tl.float32) + 0.5) * block
    h = tl.arange(0, HEADS)
    y0 = tl.zeros((PLACES, HEADS), tl.float32)
    y1, bound4, bound5 = y0, y0, y0
    top4 = tl.zeros((PLACES,), tl.float32)
    top5, top0, top1, gaussian = top4, top4, top4, top4
    last = layers + 2 * count + units * count + units
    if MLP:
        y0 += tl.load(last + heads * units + h, mask=h < heads, other=0.0)[None, :]
    for begin in range(0, units, build.SLICE):
        j = begin + tl.arange(0, build.SLICE)
        a0, a1, b1, b2, b3, b4, b5, gaussian = _first_bounds(
            centre, block, function, j, SLOPES, build
        )
        if MLP:
            below, slope, _curvature = _gelu(a0)
            weight = _matrix(last, h, j, heads, units)  # [h, j]
            y0 += _product(a0 * below, weight)
            y1 += _product(slope * a1, weight)
            fourth, fifth = _gelu_bounds(b1, b2, b3, b4, b5)
            bound4 += _product(fourth, tl.abs(weight))
            bound5 += _product(fifth, tl.abs(weight))
        else:
            top4 = tl.maximum(top4, _largest(b4))
            top5 = tl.maximum(top5, _largest(b5))
            top0 = tl.maximum(top0, _largest(a0))
            top1 = tl.maximum(top1, _largest(a1))
    if MLP:
        top4, top5, top0, top1 = _largest(bound4), _largest(bound5), _largest(y0), _largest(y1)
    if SLOPES == 0:
        top5 = tl.zeros((PLACES,), tl.float32)
    tl.store(survey + m, top4)
    tl.store(survey + TABLE_BLOCKS + m, top5)
    tl.store(survey + 2 * TABLE_BLOCKS + m, gaussian)
    tl.store(survey + 3 * TABLE_BLOCKS + m, top0)
    tl.store(survey + 4 * TABLE_BLOCKS + m, top1)


@triton.jit
def _cells(survey, block, finite, size, limit, slack, share, TABLE_BLOCKS: tl.constexpr):
    """Cells of each block, 1 where they would be too many, whether they are not, and the errors.

    As `GaussianRadial._cells` has it; `limit` is 384 times the tolerance.
    """
    m = tl.arange(0, TABLE_BLOCKS)
    bound4 = tl.load(survey + m)
    bound5 = tl.load(survey + TABLE_BLOCKS + m)
    scale0 = tl.maximum(tl.max(tl.load(survey + 3 * TABLE_BLOCKS + m), 0), 1.0) * slack
    scale1 = tl.maximum(tl.max(tl.load(survey + 4 * TABLE_BLOCKS + m), 0), 1.0) * slack
    worst = tl.maximum(bound4 / scale0, bound5 / scale1)
    worst = tl.maximum(worst, tl.load(survey + 2 * TABLE_BLOCKS + m) / share)
    worst = tl.where(scale0 + scale1 < float("inf"), worst, float("inf"))  # a NaN somewhere
    cells = _up_to_a_power_of_two(tl.maximum(tl.sqrt(tl.sqrt(worst / limit)) * block, 1.0))
    fits = finite & (tl.sum(cells, 0) < size)
    h = block / cells
    h = h * h
    error0 = tl.max(bound4 * h * h, 0) / 384.0
    error1 = tl.max(bound5 * h * h, 0) / 384.0
    return tl.where(fits, cells, 1), fits, error0, error1


@triton.jit
def _of_table(
    number, table: Table, size, heads, SLOPES: tl.constexpr, TABLE_BLOCKS: tl.constexpr
):  # fmt: skip
    """One of several tables whose tensors follow each other, as `launch.empty_table` has them."""
    rows, slope_rows, knots, lengths, first_knot, geometry, fits, errors = table
    if SLOPES:
        slope_rows += number * size * (2 * heads)
    return Table(
        rows + number * size * (2 * heads),
        slope_rows,
        knots + number * size,
        lengths + number * size,
        first_knot + number * (TABLE_BLOCKS + 4),
        geometry + 4 * number,
        fits + 4 * number,
        errors + 4 * number,
    )


@triton.jit
def tabulate(
    reach, affine, types, function: Function, survey, table: Table, size, limit, slack, share,
    TERMS: tl.constexpr, SLOPES: tl.constexpr, TABLE_BLOCKS: tl.constexpr, build: tl.constexpr,
):  # fmt: skip
    """`PLACES` rows of a `RadialTable` of fixed size; what is one number in it, by program 0.

    Rows to spare are 0, and their knots are the end of the grid.
    """
    PLACES: tl.constexpr = build.PLACES
    HEADS: tl.constexpr = build.HEADS
    number = tl.program_id(1)
    survey += number * (5 * TABLE_BLOCKS)
    function = _of_function(number, function, build.MLP)
    table = _of_table(number, table, size, function.heads, SLOPES, TABLE_BLOCKS)
    first, block, finite = _grid(reach, affine, types, TERMS)
    cells, enough, error0, error1 = _cells(
        survey, block, finite, size, limit, slack, share, TABLE_BLOCKS
    )
    after = tl.cumsum(cells, 0)
    total = tl.sum(cells, 0)
    m = tl.arange(0, TABLE_BLOCKS)
    if tl.program_id(0) == 0:
        tl.store(table.first_knot + 1 + m, after)
        tl.store(table.first_knot, 0)
        tl.store(table.geometry, first)
        tl.store(table.geometry + 1, 1.0 / block)
        tl.store(table.fits, enough.to(tl.int32))
        tl.store(table.errors, error0)
        if SLOPES:
            tl.store(table.errors + 1, error1)
    g = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    before = after - cells
    inside = (g[:, None] >= before[None, :]) & (g[:, None] < after[None, :])  # [g, m]
    start = tl.sum(tl.where(inside, m[None, :], 0), 1)
    along = g - tl.sum(tl.where(inside, before[None, :], 0), 1)
    of_block = tl.maximum(tl.sum(tl.where(inside, cells[None, :], 0), 1), 1)
    length = block / of_block.to(tl.float32)
    u = (first + start.to(tl.float32)) * block + along.to(tl.float32) * length
    u = tl.where(g < total, u, (first + TABLE_BLOCKS) * block)
    tl.store(table.knots + g, u, mask=g < size)
    tl.store(table.lengths + g, length, mask=g < size)
    heads = function.heads
    h = tl.arange(0, HEADS)
    y0 = tl.zeros((PLACES, HEADS), tl.float32)
    y1, y2 = y0, y0
    if tl.program_id(0) * PLACES <= total:
        y0, y1, y2 = _evaluate(u, function, h, 3 if SLOPES else 2, build)
        used = (g <= total)[:, None]
        y0 = tl.where(used, y0, 0.0)
        y1 = tl.where(used, y1, 0.0)
        y2 = tl.where(used, y2, 0.0)
    place = g[:, None] * (2 * heads) + h[None, :]
    mask = (g < size)[:, None] & (h < heads)[None, :]
    tl.store(table.rows + place, y0, mask=mask)
    tl.store(table.rows + place + heads, y1, mask=mask)
    if SLOPES:
        tl.store(table.slope_rows + place, y1, mask=mask)
        tl.store(table.slope_rows + place + heads, y2, mask=mask)


# --- the exact function at every pair -------------------------------------------------------------


@triton.jit
def evaluate_from(
    program, programs, u, function: Function, phi, pairs, first_head, group, build: tl.constexpr
):  # fmt: skip
    """Every `programs`-th tile of ``phi [group, pairs]``: see `evaluate`."""
    PLACES: tl.constexpr = build.PLACES
    h = tl.arange(0, build.HEADS)
    local = h - first_head
    for start in range(program * PLACES, pairs, programs * PLACES):
        p = start + tl.arange(0, PLACES)
        x = tl.load(u + p, mask=p < pairs, other=float("inf"))
        y, _slope, _curvature = _evaluate(x, function, h, 1, build)
        y = tl.where((x == float("inf"))[:, None], 0.0, y)
        place = phi + local[None, :].to(tl.int64) * pairs + p[:, None]
        tl.store(place, y, mask=(p < pairs)[:, None] & ((local >= 0) & (local < group))[None, :])


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def evaluate(
    u, fits, function: Function, phi, pairs, first_head, group, build: tl.constexpr
):  # fmt: skip
    """``phi [group, pairs]`` = Φ3d of the heads from `first_head` on; 0 where u = ∞.

    Where the table fits, which stands on the device, nothing is written.
    """
    if tl.load(fits) == 0:
        program, programs = tl.program_id(0), tl.num_programs(0)
        evaluate_from(program, programs, u, function, phi, pairs, first_head, group, build)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def pull_back(
    ds, u, fits, function: Function, du, pairs, first_head, group, build: tl.constexpr
):  # fmt: skip
    """``du[p] += Σ_h ds[p, h]·dΦ3d_h/du`` over the same heads, likewise."""
    if tl.load(fits) != 0:
        return
    PLACES: tl.constexpr = build.PLACES
    h = tl.arange(0, build.HEADS)
    local = h - first_head
    for start in range(tl.program_id(0) * PLACES, pairs, tl.num_programs(0) * PLACES):
        p = start + tl.arange(0, PLACES)
        x = tl.load(u + p, mask=p < pairs, other=float("inf"))
        _y, slope, _curvature = _evaluate(x, function, h, 2, build)
        shown = (x != float("inf"))[:, None] & ((local >= 0) & (local < group))[None, :]
        place = ds + p[:, None].to(tl.int64) * group + local[None, :]
        g = tl.load(place, mask=shown, other=0.0).to(tl.float32)
        before = tl.load(du + p, mask=p < pairs, other=0.0)
        tl.store(du + p, before + tl.sum(g * slope, 1), mask=p < pairs)


# --- gradients of the parameters ------------------------------------------------------------------


@triton.jit
def _places(known, pairs, TABLE: tl.constexpr):
    """How many of the u count: the knots of a table that are used; all where no table fits."""
    if TABLE:
        places = tl.minimum(tl.load(known) + 1, pairs)  # the last of `first_knot`
    else:
        places = tl.where(tl.load(known) != 0, 0, pairs)
    return places


@triton.jit
def _through_head(
    x, g0, g1, function: Function, h, j, dweight, dbias,
    TABLE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Cotangents of the first layer and its slope ``[p, j]``; the last layer's gradients so far."""
    layers, count, units, heads = function
    last = layers + 2 * count + units * count + units
    a0, a1, _a2 = _first_layer(x, function, j, 2 if TABLE else 1, CHUNK)
    below, slope, curvature = _gelu(a0)
    weight = _matrix(last, h, j, heads, units)  # [h, j]
    dbias += tl.sum(g0, 0)
    dweight += tl.dot(tl.trans(g0), a0 * below, input_precision="ieee")
    da0 = tl.dot(g0, weight, input_precision="ieee") * slope
    da1 = da0
    if TABLE:
        dweight += tl.dot(tl.trans(g1), slope * a1, input_precision="ieee")
        da1 = tl.dot(g1, weight, input_precision="ieee")
        da0 += da1 * curvature * a1
        da1 *= slope
    return da0, da1, dweight, dbias


@triton.jit
def _through_bells(
    x, da0, da1, function: Function, j, k, dcentre, dwidth, dweight, TABLE: tl.constexpr
):  # fmt: skip
    """Gradients so far of the Gaussians, times their widths, and of the first layer's weight."""
    layers, count, units, _heads = function
    z, psi, inverse_width = _bells(x, layers, k, count)
    weight = _matrix(layers + 2 * count, j, k, units, count)  # [j, k]
    dweight += tl.dot(tl.trans(da0), psi, input_precision="ieee")
    dz = -tl.dot(da0, weight, input_precision="ieee") * psi * z
    if TABLE:
        steep = -z * inverse_width[None, :] * psi
        dweight += tl.dot(tl.trans(da1), steep, input_precision="ieee")
        g1 = tl.dot(da1, weight, input_precision="ieee") * inverse_width[None, :] * psi
        dz += (z * z - 1.0) * g1
        dwidth += tl.sum(g1 * z, 0)
    dcentre -= tl.sum(dz, 0)
    dwidth -= tl.sum(dz * z, 0)
    return dcentre, dwidth, dweight


@triton.jit
def add_parts(
    turn: Turn, grad, u, known, function: Function, parts, pairs, first_head, group, size,
    TABLE: tl.constexpr, build: tl.constexpr,
):  # fmt: skip
    """Gradients of `layers` from every `programs`-th tile of places, a row of ``parts`` each.

    Cotangents are ``grad [places, 2, H]`` of a table's values and slopes (`TABLE`), or ``[pairs,
    group]`` of the exact Φ3d of some heads. A program takes `SLICE` units of the first layer (its
    `part` of `slices`) and `CHUNK` Gaussians; all it does is linear in that share. A row is like
    `layers`, but dμ and ds have a line per slice, ``[2, slices, K]``.
    """
    program, part, chunk, programs, slices = turn
    PLACES: tl.constexpr = build.PLACES
    HEADS: tl.constexpr = build.HEADS
    CHUNK: tl.constexpr = build.CHUNK
    SLICE: tl.constexpr = build.SLICE
    MLP: tl.constexpr = build.MLP
    layers, count, units, heads = function
    places = _places(known, pairs, TABLE)
    if program * PLACES < places:
        h = tl.arange(0, HEADS)
        j = part * SLICE + tl.arange(0, SLICE)
        k = chunk * CHUNK + tl.arange(0, CHUNK)
        dcentre = tl.zeros((CHUNK,), tl.float32)
        dwidth = dcentre
        dweight = tl.zeros((SLICE, CHUNK), tl.float32)
        dbias = tl.zeros((SLICE,), tl.float32)
        dlast = tl.zeros((HEADS, SLICE), tl.float32)
        dlast_bias = tl.zeros((HEADS,), tl.float32)
        for start in range(program * PLACES, places, programs * PLACES):
            p = start + tl.arange(0, PLACES)
            x = tl.load(u + p, mask=p < places, other=float("inf"))
            shown = (x != float("inf"))[:, None]
            out = h if MLP else j
            da0, da1 = _cotangents(grad, p, out, shown, first_head, group, heads, TABLE)
            if MLP:
                da0, da1, dlast, dlast_bias = _through_head(
                    x, da0, da1, function, h, j, dlast, dlast_bias, TABLE, CHUNK
                )
            dbias += tl.sum(da0, 0)
            dcentre, dwidth, dweight = _through_bells(
                x, da0, da1, function, j, k, dcentre, dwidth, dweight, TABLE
            )
        row = parts + program.to(tl.int64) * size
        inverse_width = 1.0 / tl.load(layers + count + k, mask=k < count, other=1.0)
        tl.store(row + part * count + k, dcentre * inverse_width, mask=k < count)
        tl.store(row + (slices + part) * count + k, dwidth * inverse_width, mask=k < count)
        row += 2 * slices * count
        _store_matrix(row, dweight, j, k, units, count)
        if chunk == 0:
            row += units * count
            tl.store(row + j, dbias, mask=j < units)
            if MLP:
                _store_matrix(row + units, dlast, h, j, heads, units)
                if part == 0:
                    row += units + heads * units
                    tl.store(row + h, dlast_bias, mask=h < heads)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def differentiate(
    grad, u, known, function: Function, parts, pairs, size, chunks, between, build: tl.constexpr
):  # fmt: skip
    """`add_parts` of tables: tiles of knots, slices of units, chunks of Gaussians of each."""
    number, heads = tl.program_id(2) // chunks, function.heads
    turn = Turn(
        tl.program_id(0), tl.program_id(1), tl.program_id(2) % chunks,
        tl.num_programs(0), tl.num_programs(1),
    )  # fmt: skip
    function = _of_function(number, function, build.MLP)
    grad += number * pairs * (2 * heads)
    u += number * pairs
    known += number * between
    parts += number * tl.num_programs(0) * size
    add_parts(turn, grad, u, known, function, parts, pairs, 0, heads, size, True, build)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def add_exact(
    ds, u, fits, function: Function, parts, pairs, first_head, group, size, build: tl.constexpr
):  # fmt: skip
    """`add_parts` of the exact Φ3d of some heads at every pair; nothing where the table fits."""
    turn = Turn(
        tl.program_id(0), tl.program_id(1), tl.program_id(2),
        tl.num_programs(0), tl.num_programs(1),
    )  # fmt: skip
    add_parts(turn, ds, u, fits, function, parts, pairs, first_head, group, size, False, build)


@triton.jit
def _store_matrix(to, x, row, column, rows, columns):
    """Write x [row, column] into a matrix stored row by row."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(to + row[:, None] * columns + column[None, :], x, mask=mask)


@triton.jit
def _cotangents(
    grad, p, h, shown, first_head, group, heads, TABLE: tl.constexpr
):  # fmt: skip
    """dL/dvalue and, of a table, dL/dslope ``[p, h]``; 0 of heads that are not there."""
    if TABLE:
        mask = shown & (h < heads)[None, :]
        place = grad + p[:, None] * (2 * heads) + h[None, :]
        g0 = tl.load(place, mask=mask, other=0.0)
        g1 = tl.load(place + heads, mask=mask, other=0.0)
    else:
        local = h - first_head
        mask = shown & ((local >= 0) & (local < group))[None, :]
        place = grad + p[:, None].to(tl.int64) * group + local[None, :]
        g0 = tl.load(place, mask=mask, other=0.0).to(tl.float32)
        g1 = g0
    return g0, g1


@triton.jit
def collect_entries(
    program, parts, known, out, pairs, programs, slices, count, size, length,
    TABLE: tl.constexpr, ADD: tl.constexpr, PLACES: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """`ENTRIES` of ``out [length]``, in the order of `layers`, (+)= the sum of rows of `add_parts`.

    Where that wrote none, because the table fits or because it does not, the sum is 0.
    """
    e = program * ENTRIES + tl.arange(0, ENTRIES)
    per_slice = e < 2 * count
    lines = tl.where(program * ENTRIES < 2 * count, slices, 1)
    total = tl.zeros((ENTRIES,), tl.float32)
    if ADD:
        total = tl.load(out + e, mask=e < length, other=0.0)
    for _ in range(0, tl.minimum(programs, tl.cdiv(_places(known, pairs, TABLE), PLACES))):
        for part in range(0, lines):
            place = (e // count * slices + part) * count + e % count
            place = tl.where(per_slice, place, e + 2 * count * (slices - 1))
            mask = (e < length) & (per_slice | (part == 0))
            total += tl.load(parts + place, mask=mask, other=0.0)
        parts += size
    tl.store(out + e, total, mask=e < length)


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def collect(
    parts, known, out, pairs, programs, slices, count, size, length, between,
    PLACES: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """The gradient of `layers` of each table from the rows of `differentiate`."""
    number = tl.program_id(1)
    parts += number * programs * size
    known += number * between
    out += number * length
    collect_entries(
        tl.program_id(0), parts, known, out, pairs, programs, slices, count, size, length,
        True, False, PLACES, ENTRIES,
    )  # fmt: skip
