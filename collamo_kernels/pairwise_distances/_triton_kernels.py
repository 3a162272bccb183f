"""Distances and their gradient in Triton. A program owns what it writes: no atomics."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _real(valid, atom, within):
    """1 for the real atoms among `atom`, which `within` says are in the molecule at all."""
    real = within
    if valid is not None:
        real = within & (tl.load(valid + atom, mask=within, other=0) != 0)
    return real


@triton.jit
def _place(coordinates, atom, real):
    """x, y and z of the atoms, 0 where they are not real, whatever stands there."""
    x = tl.load(coordinates + 3 * atom, mask=real, other=0.0)
    y = tl.load(coordinates + 3 * atom + 1, mask=real, other=0.0)
    z = tl.load(coordinates + 3 * atom + 2, mask=real, other=0.0)
    return x, y, z


@triton.jit
def measure(coordinates, valid, distances, atoms, BLOCK: tl.constexpr):
    """r_ij = |x_i - x_j| of one tile of pairs; 0 where one of them is padding."""
    tiles = tl.cdiv(atoms, BLOCK)
    first = (tl.program_id(0) // tiles).to(tl.int64) * atoms  # of the molecule's atoms
    i = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real_i = _real(valid, first + i, i < atoms)  # [i]
    real_j = _real(valid, first + j, j < atoms)  # [j]
    x_i, y_i, z_i = _place(coordinates, first + i, real_i)
    x_j, y_j, z_j = _place(coordinates, first + j, real_j)
    dx = x_i[:, None] - x_j[None, :]  # [i, j]
    dy = y_i[:, None] - y_j[None, :]
    dz = z_i[:, None] - z_j[None, :]
    distance = tl.sqrt_rn(dx * dx + dy * dy + dz * dz)
    distance = tl.where(real_i[:, None] & real_j[None, :], distance, 0.0)
    at = (first + i)[:, None] * atoms + j[None, :]
    tl.store(distances + at, distance, mask=(i < atoms)[:, None] & (j < atoms)[None, :])


@triton.jit
def pull(coordinates, valid, grad, gradient, atoms, BLOCK: tl.constexpr):
    """Σ_j (grad_ij + grad_ji)·(x_i - x_j)/r_ij for a tile of atoms i, tile after tile of j."""
    tiles = tl.cdiv(atoms, BLOCK)
    first = (tl.program_id(0) // tiles).to(tl.int64) * atoms  # of the molecule's atoms
    i = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    real_i = _real(valid, first + i, i < atoms)  # [i]
    x_i, y_i, z_i = _place(coordinates, first + i, real_i)
    sum_x = tl.zeros([BLOCK], tl.float32)
    sum_y = tl.zeros([BLOCK], tl.float32)
    sum_z = tl.zeros([BLOCK], tl.float32)
    for start in range(0, atoms, BLOCK):
        j = start + tl.arange(0, BLOCK)
        real_j = _real(valid, first + j, j < atoms)  # [j]
        x_j, y_j, z_j = _place(coordinates, first + j, real_j)
        dx = x_i[:, None] - x_j[None, :]  # [i, j]
        dy = y_i[:, None] - y_j[None, :]
        dz = z_i[:, None] - z_j[None, :]
        squared = dx * dx + dy * dy + dz * dz
        pulls = real_i[:, None] & real_j[None, :] & (squared > 0)
        along = (first + i)[:, None] * atoms + j[None, :]
        across = (first + j)[None, :] * atoms + i[:, None]
        total = tl.load(grad + along, mask=pulls, other=0.0)
        total += tl.load(grad + across, mask=pulls, other=0.0)
        weight = tl.div_rn(total, tl.sqrt_rn(tl.where(pulls, squared, 1.0)))
        sum_x += tl.sum(weight * dx, 1)
        sum_y += tl.sum(weight * dy, 1)
        sum_z += tl.sum(weight * dz, 1)
    at = 3 * (first + i)
    tl.store(gradient + at, sum_x, mask=i < atoms)
    tl.store(gradient + at + 1, sum_y, mask=i < atoms)
    tl.store(gradient + at + 2, sum_z, mask=i < atoms)
