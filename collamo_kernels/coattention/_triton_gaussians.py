"""Triton kernels of the exact Φ3d: Gaussians and head at every pair, in registers.

They are for radial functions too narrow for a table. Whether that is so stands on the device:
where the table fits, a program returns at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROOT_HALF = tl.constexpr(0.7071067811865476)
BELL = tl.constexpr(0.3989422804014327)  # 1/√(2π)


@triton.jit
def _gaussians(u, centre, width, k, count):
    """z, ψ ``[p, k]`` and 1/s ``[k]``; ψ is 0 beyond the last Gaussian and where u is ∞."""
    there = k < count
    inverse = 1.0 / tl.load(width + k, mask=there, other=1.0)
    z = (u[:, None] - tl.load(centre + k, mask=there, other=0.0)[None, :]) * inverse[None, :]
    far = (u == float("inf"))[:, None] | (there == 0)[None, :]
    z = tl.where(far, 0.0, z)
    return z, tl.where(far, 0.0, tl.exp(-0.5 * z * z)), inverse


@triton.jit
def _matrix(weight, row, column, rows, columns):
    """[row, column] of a matrix stored row by row, 0 outside."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(weight + row[:, None] * columns + column[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=("pairs",))
def evaluate(
    u, fits, centre, width, first, first_bias, last, last_bias, phi, pairs, count, heads,
    PAIRS: tl.constexpr, GAUSSIANS: tl.constexpr, SLICE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """``phi [H, pairs]`` = W₂ GELU(W₁ψ + b₁) + b₂, or Wψ + b where there is no W₁; 0 where u = ∞.

    The hidden units are taken `SLICE` at a time: all of W₁ would not fit the registers.
    """
    if tl.load(fits) != 0:
        return
    k = tl.arange(0, GAUSSIANS)
    h = tl.arange(0, HEADS)
    bias = tl.load(last_bias + h, mask=h < heads, other=0.0)
    for start in range(tl.program_id(0) * PAIRS, pairs, tl.num_programs(0) * PAIRS):
        p = start + tl.arange(0, PAIRS)
        x = tl.load(u + p, mask=p < pairs, other=float("inf"))
        _, psi, _ = _gaussians(x, centre, width, k, count)  # [p, k]
        out = tl.zeros((PAIRS, HEADS), tl.float32) + bias[None, :]
        if first is not None:
            for begin in range(0, count, SLICE):
                j = begin + tl.arange(0, SLICE)
                a = _hidden(psi, first, first_bias, j, k, count)
                hidden = 0.5 * a * (1.0 + tl.erf(a * ROOT_HALF))
                weight = _matrix(last, h, j, heads, count)
                out += tl.dot(hidden, tl.trans(weight), input_precision="ieee")
        else:
            weight = _matrix(last, h, k, heads, count)
            out += tl.dot(psi, tl.trans(weight), input_precision="ieee")
        out = tl.where((x == float("inf"))[:, None], 0.0, out)
        place = phi + h[None, :].to(tl.int64) * pairs + p[:, None]
        tl.store(place, out, mask=(p < pairs)[:, None] & (h < heads)[None, :])


@triton.jit
def _hidden(psi, first, first_bias, j, k, count):
    """W₁ψ + b₁ of the hidden units j, [p, j]."""
    weight = _matrix(first, j, k, count, count)
    a = tl.dot(psi, tl.trans(weight), input_precision="ieee")
    return a + tl.load(first_bias + j, mask=j < count, other=0.0)[None, :]


@triton.jit(do_not_specialize=("pairs",))
def differentiate(
    dphi, u, fits, centre, width, first, first_bias, last, du, parts, pairs, count, heads, size,
    PAIRS: tl.constexpr, GAUSSIANS: tl.constexpr, SLICE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """``du [slices, pairs]`` and, one row of ``parts`` each, the sums over pairs.

    Programs of axis 1 take `SLICE` hidden units each, or, where there is no W₁, all Gaussians at
    once; all they do is linear in that share. A row holds dμ, ds ``[K]``, db₂ ``[H]`` (in the
    first slice; 0 in the others), dW₂ ``[H, SLICE]``, db₁ ``[SLICE]``, dW₁ ``[SLICE, K]``.
    """
    k = tl.arange(0, GAUSSIANS)
    h = tl.arange(0, HEADS)
    unit = tl.arange(0, SLICE)
    part = tl.program_id(1)
    j = part * SLICE + unit
    of_centre = tl.zeros((GAUSSIANS,), tl.float32)
    of_width = of_centre
    of_last_bias = tl.zeros((HEADS,), tl.float32)
    of_last = tl.zeros((HEADS, SLICE), tl.float32)
    of_first_bias = tl.zeros((SLICE,), tl.float32)
    of_first = tl.zeros((SLICE, GAUSSIANS), tl.float32)
    begin = tl.program_id(0) * PAIRS
    if tl.load(fits) != 0:
        begin = pairs  # the sums are 0, and nothing is read
    for start in range(begin, pairs, tl.num_programs(0) * PAIRS):
        p = start + tl.arange(0, PAIRS)
        x = tl.load(u + p, mask=p < pairs, other=float("inf"))
        z, psi, inverse = _gaussians(x, centre, width, k, count)  # [p, k]
        shown = (p < pairs)[:, None] & (h < heads)[None, :] & (x != float("inf"))[:, None]
        place = dphi + h[None, :].to(tl.int64) * pairs + p[:, None]
        g = tl.load(place, mask=shown, other=0.0)  # [p, h]
        of_last_bias += tl.sum(g, 0)
        dpsi = tl.dot(g, _matrix(last, h, j, heads, count), input_precision="ieee")
        if first is not None:
            a = _hidden(psi, first, first_bias, j, k, count)
            below = 0.5 * (1.0 + tl.erf(a * ROOT_HALF))
            da = dpsi * (below + a * BELL * tl.exp(-0.5 * a * a))
            of_first_bias += tl.sum(da, 0)
            of_first += tl.dot(tl.trans(da), psi, input_precision="ieee")
            of_last += tl.dot(tl.trans(g), a * below, input_precision="ieee")
            dpsi = tl.dot(da, _matrix(first, j, k, count, count), input_precision="ieee")
        else:
            of_last += tl.dot(tl.trans(g), psi, input_precision="ieee")
        pulled = dpsi * psi * z * inverse[None, :]
        of_centre += tl.sum(pulled, 0)
        of_width += tl.sum(pulled * z, 0)
        if du is not None:
            tl.store(du + part.to(tl.int64) * pairs + p, -tl.sum(pulled, 1), mask=p < pairs)
    row = parts + (tl.program_id(0) * tl.num_programs(1) + part) * size
    tl.store(row + k, of_centre, mask=k < count)
    tl.store(row + count + k, of_width, mask=k < count)
    row += 2 * count
    tl.store(row + h, tl.where(part == 0, of_last_bias, 0.0), mask=h < heads)
    row += heads
    tl.store(row + h[:, None] * SLICE + unit[None, :], of_last, mask=(h < heads)[:, None])
    if first is not None:
        row += heads * SLICE
        tl.store(row + unit, of_first_bias)
        row += SLICE
        place = row + unit[:, None] * count + k[None, :]
        tl.store(place, of_first, mask=(k < count)[None, :])
