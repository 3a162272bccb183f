"""The attention's Triton kernels. The launcher owns shapes and strides: `_triton_launch.py`.

Everything about a pair that no head changes is worked out once, by `locate`: the cell of the radial
table and the place in it. The attention then reads 16 bytes of coefficients per pair and head.

Atoms are numbered through the batch by ``atom_start [B + 1]``, pairs by ``pair_start [B + 1]``, in
either layout; both are int64, because Σ N²·H passes 2³¹ at 65 M pairs of 32 heads. Inside a
molecule offsets are int32: with 64-bit ones the backward of one tile took 238 registers, not 182.
A pointer that is None takes its term out of the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _alive(valid, start, i, n):
    """Whether the atoms i of a molecule are there and real."""
    alive = i < n
    if valid is not None:
        alive = tl.load(valid + start + i, mask=alive, other=0) != 0
    return alive


@triton.jit
def _polynomial(coefficients, cell, x):
    """c₀ + c₁x + c₂x² + c₃x³ of each cell: one 16-byte load per pair."""
    four = tl.arange(0, 4)
    address = coefficients + tl.expand_dims(cell * 4, 2) + four
    c = tl.load(address)  # [..., 4]
    pairs = tl.reshape(c, (cell.shape[0], cell.shape[1], 2, 2))
    even, odd = tl.split(pairs)
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0 + x * (c1 + x * (c2 + x * c3))


@triton.jit
def _add_terms(
    s, i, j, inside, n, hops, hop_row, buckets, cell, fraction, coefficients, bias, bias_i, bias_j
):
    """Logits plus Φ2d, Φ3d and the dense bias, -inf outside; pointers are those of the molecule."""
    at = i[:, None] * n + j[None, :]  # [i, j]
    if hops is not None:
        hop = tl.load(hops + at, mask=inside, other=0).to(tl.int32)
        column = tl.where(hop == 255, buckets - 1, tl.minimum(hop, buckets - 2))
        s += tl.load(hop_row + column)
    if cell is not None:
        c = tl.load(cell + at, mask=inside, other=-1)
        x = tl.load(fraction + at, mask=inside, other=0.0)
        s += tl.where(c >= 0, _polynomial(coefficients, tl.maximum(c, 0), x), 0.0)
    if bias is not None:
        place = bias + i.to(tl.int64)[:, None] * bias_i + j.to(tl.int64)[None, :] * bias_j
        s += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, s, float("-inf"))


@triton.jit
def _kept(seed, molecule, head, i, j, THRESHOLD: tl.constexpr):
    """Which weights dropout keeps: the stream that `op.dropout_factors` defines."""
    zero = tl.zeros((i.shape[0], j.shape[0]), tl.int32)
    word, _, _, _ = tl.philox(
        tl.load(seed),
        zero + j[None, :],
        zero + i[:, None],
        zero + head,
        zero + molecule.to(tl.int32),
    )
    return word.to(tl.uint32, bitcast=True).to(tl.int64) >= THRESHOLD


@triton.jit
def _bias_of(bias, pair, molecule, head, n, b, h, i, j, PACKED: tl.constexpr):
    """Where a molecule's and head's dense bias starts, and its stride over queries."""
    if PACKED:
        start, row = bias + pair * j + head * h, n * j
    else:
        start, row = bias + molecule * b + head * h, i
    return start, row


@triton.jit
def attend(
    q, k, v, out, lse, atom_start, pair_start, valid,
    hops, hop_bias, cell, fraction, coefficients, bias, seed,
    heads, width, blocks, buckets, cells, scale,
    q_b, q_h, q_t, out_b, out_h, out_t, bias_b, bias_h, bias_i, bias_j,
    THRESHOLD: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
    PACKED: tl.constexpr, SINGLE: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Result and log Σ exp of `BLOCK` queries of one molecule and head, against all its keys."""
    program = tl.program_id(0)
    head = program % heads
    molecule = (program // heads // blocks).to(tl.int64)
    start = tl.load(atom_start + molecule)
    n = (tl.load(atom_start + molecule + 1) - start).to(tl.int32)
    first = program // heads % blocks * BLOCK
    if first >= n:
        return
    pair = tl.load(pair_start + molecule)
    d = tl.arange(0, WIDTH)
    i = first + tl.arange(0, BLOCK)
    alive = _alive(valid, start, i, n)
    origin = start * q_t if PACKED else molecule * q_b
    origin += head * q_h
    rows = i[:, None] * q_t + d[None, :]
    x = tl.load(q + origin + rows, mask=alive[:, None] & (d < width)[None, :], other=0.0)  # [i, d]
    if hops is not None:
        hops += pair
        hop_bias += head * buckets
    if cell is not None:
        cell += pair
        fraction += pair
        coefficients += head.to(tl.int64) * cells * 4
    if bias is not None:
        bias, bias_i = _bias_of(
            bias, pair, molecule, head, n, bias_b, bias_h, bias_i, bias_j, PACKED
        )
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK, WIDTH), tl.float32)
    for next in range(0, BLOCK if SINGLE else n, BLOCK):
        j = next + tl.arange(0, BLOCK)
        real = _alive(valid, start, j, n)
        columns = j[:, None] * q_t + d[None, :]
        mask = real[:, None] & (d < width)[None, :]
        key = tl.load(k + origin + columns, mask=mask, other=0.0)  # [j, d]
        value = tl.load(v + origin + columns, mask=mask, other=0.0)
        s = tl.dot(x, tl.trans(key), input_precision=PRECISION) * scale  # [i, j]
        inside = alive[:, None] & real[None, :]
        s = _add_terms(
            s, i, j, inside, n, hops, hop_bias, buckets, cell, fraction, coefficients,
            bias, bias_i, bias_j,
        )  # fmt: skip
        larger = tl.maximum(most, tl.max(s, 1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # -inf - -inf is NaN
        p = tl.exp2((s - shift[:, None]) * LOG2E)
        fade = tl.exp2((most - shift) * LOG2E)
        total = total * fade + tl.sum(p, 1)
        if seed is not None:
            p = tl.where(_kept(seed, molecule, head, i, j, THRESHOLD), p, 0.0)
        mean = mean * fade[:, None]
        mean += tl.dot(p.to(value.dtype), value, input_precision=PRECISION)
        most = larger
    some = total > 0
    inverse = tl.where(some, KEPT / tl.where(some, total, 1.0), 0.0)
    out += (start * out_t if PACKED else molecule * out_b) + head * out_h
    place = i[:, None] * out_t + d[None, :]
    stored = (i < n)[:, None] & (d < width)[None, :]
    tl.store(out + place, (mean * inverse[:, None]).to(out.dtype.element_ty), mask=stored)
    log = tl.where(some, most + tl.log(tl.where(some, total, 1.0)), float("inf"))
    tl.store(lse + (start + i) * heads + head, log, mask=i < n)


@triton.jit
def differentiate(
    q, k, v, out, lse, grad, dq, dk, dv, ds_all, dbias, atom_start, pair_start, valid,
    hops, hop_bias, cell, fraction, coefficients, bias, seed,
    heads, first_head, group, width, buckets, cells, pairs, scale,
    q_b, q_h, q_t, out_b, out_h, out_t, bias_b, bias_h, bias_i, bias_j, dbias_b, dbias_h,
    THRESHOLD: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
    PACKED: tl.constexpr, SINGLE: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All gradients of one molecule and head, by one program: nobody else adds to them.

    A molecule of one tile gives dq straight away. Otherwise dq is float32 and this program adds to
    it, one tile of keys after the other.
    """
    program = tl.program_id(0)
    local = program % group
    head = first_head + local
    molecule = (program // group).to(tl.int64)
    start = tl.load(atom_start + molecule)
    n = (tl.load(atom_start + molecule + 1) - start).to(tl.int32)
    pair = tl.load(pair_start + molecule)
    d = tl.arange(0, WIDTH)
    origin = (start * q_t if PACKED else molecule * q_b) + head * q_h
    result = (start * out_t if PACKED else molecule * out_b) + head * out_h
    if hops is not None:
        hops += pair
        hop_bias += head * buckets
    if cell is not None:
        cell += pair
        fraction += pair
        coefficients += head.to(tl.int64) * cells * 4
    if bias is not None:
        bias, bias_i = _bias_of(
            bias, pair, molecule, head, n, bias_b, bias_h, bias_i, bias_j, PACKED
        )
    if ds_all is not None:
        ds_all += local.to(tl.int64) * pairs + pair
    if dbias is not None:
        dbias += (pair if PACKED else molecule * dbias_b) + head * dbias_h
    for next in range(0, BLOCK if SINGLE else n, BLOCK):
        j = next + tl.arange(0, BLOCK)
        real = _alive(valid, start, j, n)
        columns = j[:, None] * q_t + d[None, :]
        mask = real[:, None] & (d < width)[None, :]
        key = tl.load(k + origin + columns, mask=mask, other=0.0)  # [j, d]
        value = tl.load(v + origin + columns, mask=mask, other=0.0)
        key_grad = tl.zeros((BLOCK, WIDTH), tl.float32)
        value_grad = tl.zeros((BLOCK, WIDTH), tl.float32)
        for first in range(0, BLOCK if SINGLE else n, BLOCK):
            i = first + tl.arange(0, BLOCK)
            alive = _alive(valid, start, i, n)
            rows = i[:, None] * q_t + d[None, :]
            shown = alive[:, None] & (d < width)[None, :]
            x = tl.load(q + origin + rows, mask=shown, other=0.0)  # [i, d]
            place = i[:, None] * out_t + d[None, :]
            g = tl.load(grad + result + place, mask=shown, other=0.0)
            s = tl.dot(x, tl.trans(key), input_precision=PRECISION) * scale  # [i, j]
            inside = alive[:, None] & real[None, :]
            s = _add_terms(
                s, i, j, inside, n, hops, hop_bias, buckets, cell, fraction, coefficients,
                bias, bias_i, bias_j,
            )  # fmt: skip
            log = tl.load(lse + (start + i) * heads + head, mask=alive, other=float("inf"))
            p = tl.exp2((s - log[:, None]) * LOG2E)
            dp = tl.dot(g, tl.trans(value), input_precision=PRECISION)
            used = p
            if seed is not None:
                kept = _kept(seed, molecule, head, i, j, THRESHOLD)
                used = tl.where(kept, p * KEPT, 0.0)
                dp = tl.where(kept, dp * KEPT, 0.0)
            value_grad += tl.dot(tl.trans(used.to(g.dtype)), g, input_precision=PRECISION)
            if SINGLE:  # from the very p and dp that are used, so that a row of ds adds up to 0
                delta = tl.sum(p * dp, 1)
            else:
                o = tl.load(out + result + place, mask=shown, other=0.0)
                delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
            ds = p * (dp - delta[:, None])
            at = i[:, None] * n + j[None, :]
            stored = (i < n)[:, None] & (j < n)[None, :]
            if ds_all is not None:
                tl.store(ds_all + at, ds, mask=stored)
            if dbias is not None:
                tl.store(dbias + at, ds.to(dbias.dtype.element_ty), mask=stored)
            ds = ds.to(key.dtype)
            key_grad += tl.dot(tl.trans(ds), x, input_precision=PRECISION)
            query_grad = tl.dot(ds, key, input_precision=PRECISION) * scale
            stored = (i < n)[:, None] & (d < width)[None, :]
            if not SINGLE:
                before = tl.load(dq + result + place, mask=stored & (next > 0), other=0.0)
                query_grad += before
            tl.store(dq + result + place, query_grad.to(dq.dtype.element_ty), mask=stored)
        if not SINGLE:
            tl.debug_barrier()  # the next tile of keys reads what other threads wrote to dq
        place = j[:, None] * out_t + d[None, :]
        stored = (j < n)[:, None] & (d < width)[None, :]
        tl.store(dk + result + place, (key_grad * scale).to(dk.dtype.element_ty), mask=stored)
        tl.store(dv + result + place, value_grad.to(dv.dtype.element_ty), mask=stored)


@triton.jit
def sum_segments(
    values, order, offsets, fraction, sums, segments, columns, pairs,
    MOMENTS: tl.constexpr, SLOTS: tl.constexpr,
    SEGMENTS: tl.constexpr, PAIRS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``sums[slot, s, m, c] = Σ values[c, order[p]]·fraction[order[p]]^m``, p in segment s.

    Each slot takes its share of every segment, so a segment of very many pairs (all atoms are 0 Å
    from themselves) does not keep one program busy. Every sum has a fixed order.
    """
    s = tl.program_id(0) * SEGMENTS + tl.arange(0, SEGMENTS)
    slot = tl.program_id(1)
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.load(offsets + s, mask=s < segments, other=0)
    end = tl.load(offsets + s + 1, mask=s < segments, other=0)
    share = tl.cdiv(end - begin, SLOTS)
    begin += slot * share
    length = tl.maximum(tl.minimum(begin + share, end) - begin, 0)
    m0 = tl.zeros((SEGMENTS, PAIRS, COLUMNS), tl.float32)
    m1 = m0
    m2 = m0
    m3 = m0
    for done in range(0, tl.max(length, 0), PAIRS):
        t = done + tl.arange(0, PAIRS)
        live = t[None, :] < length[:, None]
        p = tl.load(order + begin[:, None] + t[None, :], mask=live, other=0)  # [s, p]
        place = values + c.to(tl.int64)[None, None, :] * pairs + p[:, :, None]
        x = tl.load(place, mask=live[:, :, None] & (c < columns)[None, None, :], other=0.0)
        m0 += x
        if MOMENTS > 1:
            f = tl.load(fraction + p, mask=live, other=0.0)[:, :, None]
            m1 += x * f
            m2 += x * f * f
            m3 += x * f * f * f
    row = (slot * segments + s).to(tl.int64) * MOMENTS
    place = sums + row[:, None] * columns + c[None, :]
    stored = (s < segments)[:, None] & (c < columns)[None, :]
    tl.store(place, tl.sum(m0, 1), mask=stored)
    if MOMENTS > 1:
        tl.store(place + columns, tl.sum(m1, 1), mask=stored)
        tl.store(place + 2 * columns, tl.sum(m2, 1), mask=stored)
        tl.store(place + 3 * columns, tl.sum(m3, 1), mask=stored)


@triton.jit
def _placed(valid, has_3d, molecule, start, i, n):
    """Whether the atoms i are there, real, and of a molecule with a conformer."""
    if has_3d is not None:
        n *= tl.load(has_3d + molecule).to(tl.int32)
    return _alive(valid, start, i, n)


@triton.jit
def _positions(coordinates, start, i, there):
    """x, y, z of atoms; 0 where there is none, whatever stands in memory."""
    place = coordinates + (start + i) * 3
    x = tl.load(place, mask=there, other=0.0)
    y = tl.load(place + 1, mask=there, other=0.0)
    z = tl.load(place + 2, mask=there, other=0.0)
    return x, y, z


@triton.jit
def _affine(affine, pair_types, atom_types, start, pair, i, j, n, there, offset: tl.constexpr):
    """γ (offset 0) or β (offset 1) of each pair [i, j]."""
    if pair_types is not None:
        at = pair + i.to(tl.int64)[:, None] * n + j[None, :]
        kind = tl.load(pair_types + at, mask=there, other=0)
        value = tl.load(affine + 2 * kind + offset, mask=there, other=0.0)
    else:
        query = tl.load(atom_types + (start + i) * 2, mask=i < n, other=0)
        key = tl.load(atom_types + (start + j) * 2 + 1, mask=j < n, other=0)
        of_query = tl.load(affine + 2 * query + offset)
        of_key = tl.load(affine + 2 * key + offset)
        value = tl.where(there, of_query[:, None] + of_key[None, :], 0.0)
    return value


@triton.jit
def locate(
    coordinates, valid, has_3d, affine, pair_types, atom_types, atom_start, pair_start, first_knot,
    cell, fraction, blocks, table_blocks, first_block, per_block, BLOCK: tl.constexpr,
):  # fmt: skip
    """Cell of the radial table, and place in it, of each pair; cell -1 where it has no distance."""
    molecule = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.load(atom_start + molecule)
    n = (tl.load(atom_start + molecule + 1) - start).to(tl.int32)
    first = tl.program_id(0) % blocks * BLOCK
    if first >= n:
        return
    pair = tl.load(pair_start + molecule)
    i = first + tl.arange(0, BLOCK)
    alive = _placed(valid, has_3d, molecule, start, i, n)
    xi, yi, zi = _positions(coordinates, start, i, alive)
    for next in range(0, n, BLOCK):
        j = next + tl.arange(0, BLOCK)
        real = _placed(valid, has_3d, molecule, start, j, n)
        there = alive[:, None] & real[None, :]
        xj, yj, zj = _positions(coordinates, start, j, real)
        x, y, z = xi[:, None] - xj[None, :], yi[:, None] - yj[None, :], zi[:, None] - zj[None, :]
        u = tl.sqrt_rn(x * x + y * y + z * z)
        if affine is not None:
            gamma = _affine(affine, pair_types, atom_types, start, pair, i, j, n, there, 0)
            beta = _affine(affine, pair_types, atom_types, start, pair, i, j, n, there, 1)
            u = gamma * u + beta
        u = tl.where(there, u, 0.0)
        # A block's length is a power of two: u / block and what is left of it are exact.
        at = u * per_block
        number = tl.minimum(tl.maximum(tl.floor(at) - first_block, 0.0), table_blocks - 1.0)
        block = tl.where(u == u, number, 0.0).to(tl.int32)
        knot = tl.load(first_knot + block)
        count = (tl.load(first_knot + block + 1) - knot).to(tl.float32)
        along = (at - (number + first_block)) * count
        c = tl.minimum(tl.maximum(tl.floor(along), 0.0), count - 1.0)
        f = tl.minimum(tl.maximum(along - c, 0.0), 1.0)
        f = tl.where(u == u, f, u)  # NaN must be seen
        c = tl.where(u == u, c, 0.0).to(tl.int32)
        place = pair + i.to(tl.int64)[:, None] * n + j[None, :]
        stored = (i < n)[:, None] & (j < n)[None, :]
        tl.store(cell + place, tl.where(there, knot + c, -1), mask=stored)
        tl.store(fraction + place, f, mask=stored)


@triton.jit
def slope(
    ds, cell, fraction, coefficients, du, pairs, group, cells,
    ADD: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """``du[p] (+)= Σ_h ds[h, p]·dΦ3d_h/du``, by the table of the derivative."""
    p = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    c = tl.load(cell + p, mask=p < pairs, other=-1)[:, None]
    x = tl.load(fraction + p, mask=p < pairs, other=0.0)[:, None]
    total = tl.zeros((PAIRS, 1), tl.float32)
    if ADD:
        total = tl.load(du + p, mask=p < pairs, other=0.0)[:, None]
    for _ in range(group):
        value = _polynomial(coefficients, tl.maximum(c, 0), x)
        weight = tl.load(ds + p, mask=p < pairs, other=0.0)[:, None]
        total += tl.where(c >= 0, value * weight, 0.0)
        coefficients += cells * 4
        ds += pairs
    tl.store(du + p, tl.sum(total, 1), mask=p < pairs)


@triton.jit
def pull(
    coordinates, valid, has_3d, affine, pair_types, atom_types, atom_start, pair_start, du,
    dx, du_r, of_query, of_key, blocks, BLOCK: tl.constexpr,
):  # fmt: skip
    """From du of each pair to its atoms: gradients of coordinates, and the sums that γ, β need.

    ``du_r [pairs]`` is du·r; ``of_query [atoms, 2]`` holds Σ_j of du_ij·r and of du_ij, and
    ``of_key [atoms, 2]`` the same over du_ji. Both directions of a pair go to the row that this
    program owns.
    """
    molecule = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.load(atom_start + molecule)
    n = (tl.load(atom_start + molecule + 1) - start).to(tl.int32)
    first = tl.program_id(0) % blocks * BLOCK
    if first >= n:
        return
    pair = tl.load(pair_start + molecule)
    i = first + tl.arange(0, BLOCK)
    alive = _placed(valid, has_3d, molecule, start, i, n)
    xi, yi, zi = _positions(coordinates, start, i, alive)
    dx0 = tl.zeros((BLOCK,), tl.float32)
    dx1, dx2, query_r, query, key_r, key = dx0, dx0, dx0, dx0, dx0, dx0
    for next in range(0, n, BLOCK):
        j = next + tl.arange(0, BLOCK)
        real = _placed(valid, has_3d, molecule, start, j, n)
        there = alive[:, None] & real[None, :]
        xj, yj, zj = _positions(coordinates, start, j, real)
        x, y, z = xi[:, None] - xj[None, :], yi[:, None] - yj[None, :], zi[:, None] - zj[None, :]
        r = tl.sqrt_rn(x * x + y * y + z * z)
        place = pair + i.to(tl.int64)[:, None] * n + j[None, :]
        back = pair + j.to(tl.int64)[None, :] * n + i[:, None]
        forth = tl.load(du + place, mask=there, other=0.0)
        away = tl.load(du + back, mask=there, other=0.0)
        if affine is not None:
            stored = (i < n)[:, None] & (j < n)[None, :]
            tl.store(du_r + place, forth * r, mask=stored)
            query_r += tl.sum(forth * r, 1)
            query += tl.sum(forth, 1)
            key_r += tl.sum(away * r, 1)
            key += tl.sum(away, 1)
            gamma = _affine(affine, pair_types, atom_types, start, pair, i, j, n, there, 0)
            if pair_types is not None:
                kind = tl.load(pair_types + back, mask=there, other=0)
                other = tl.load(affine + 2 * kind, mask=there, other=0.0)
            else:
                other = tl.trans(
                    _affine(
                        affine, pair_types, atom_types, start, pair, j, i, n, tl.trans(there), 0
                    )
                )
            forth *= gamma
            away *= other
        pull = tl.where(r > 0, (forth + away) / tl.where(r > 0, r, 1.0), 0.0)
        pull = tl.where(there, pull, 0.0)
        dx0 += tl.sum(pull * x, 1)
        dx1 += tl.sum(pull * y, 1)
        dx2 += tl.sum(pull * z, 1)
    stored = i < n
    place = dx + (start + i) * 3
    tl.store(place, dx0, mask=stored)
    tl.store(place + 1, dx1, mask=stored)
    tl.store(place + 2, dx2, mask=stored)
    if affine is not None:
        tl.store(of_query + (start + i) * 2, query_r, mask=stored)
        tl.store(of_query + (start + i) * 2 + 1, query, mask=stored)
        tl.store(of_key + (start + i) * 2, key_r, mask=stored)
        tl.store(of_key + (start + i) * 2 + 1, key, mask=stored)
