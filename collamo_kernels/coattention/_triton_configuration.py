"""Tile, warps and stages of every Triton kernel: a fixed table, never tuned at run time.

A bucket is chosen by the largest molecule: 32 and 64 atoms fit one tile, "loop" takes any number in
tiles of 32. A tile of 128 was compiled and left out: its logits, cells, fractions and coefficients
are seven times 16,384 numbers where a processor has 65,536 registers, and a thread spilled 216 to
448 bytes forward, 728 to 1,896 backward.

Registers decide the warps. `benchmarks/tune_coattention.py` tells what each choice takes of sm_80
and sm_90, and how long it lasts where there is a GPU. A molecule in one tile spills nothing on
sm_90; on sm_80 the backward of a tile of 64 with heads of 64 does, 72 bytes a thread. The loops
spill at most 48.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

WIDTHS = (16, 32, 64, 128)  # a head is padded to one of these inside the tile
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LOOP = "loop"


@dataclass(frozen=True)
class Configuration:
    """How a kernel is compiled: atoms a tile, warps, and whether a molecule is one tile."""

    block: int
    num_warps: int
    single: bool


def buckets(width: int, dtype: torch.dtype) -> tuple[int | str, ...]:
    """Return the buckets that are compiled for heads padded to `width`."""
    return (32, LOOP) if dtype == torch.float32 or width == 128 else (32, 64, LOOP)


def bucket(longest: int, mean: float, width: int, dtype: torch.dtype) -> int | str:
    """Return the smallest tile that holds the largest molecule, or "loop".

    One tile of 64 for every molecule is mostly padding where they differ much (real ones have 26
    atoms on average), so it is taken where the mean molecule fills half of its side.
    """
    for size in buckets(width, dtype)[:-1]:
        if longest <= size:
            return size if size == 32 or 2 * mean >= size else LOOP
    return LOOP


def padded_width(width: int) -> int:
    """Return the width of a head inside the tile."""
    return next(size for size in WIDTHS if width <= size)


def forward(of: int | str, width: int, dtype: torch.dtype) -> Configuration:
    """Return the configuration of `attend`."""
    if of == 64:
        return Configuration(64, 8, True)
    if of == LOOP and dtype == torch.float32:
        return _float32_loop(width)
    wide = 64 if of == 32 else 32  # beyond this the accumulator needs the registers of more warps
    warps = 2 if width < wide else 4 if width <= wide else 8
    return Configuration(32, warps, of == 32)


def backward(of: int | str, width: int, dtype: torch.dtype) -> Configuration:
    """Return the configuration of `differentiate` and `differentiate_tiles`."""
    if of == 64:
        return Configuration(64, 8, True)
    if of == 32:
        wide = 32 if dtype == torch.float32 else 64
        warps = 4 if width < wide else 8 if width < 128 or dtype != torch.float32 else 16
        return Configuration(32, warps, True)
    if dtype == torch.float32:
        return _float32_loop(width)
    return Configuration(32, 4 if width < 64 else 8, False)


def _float32_loop(width: int) -> Configuration:
    # With tiles of 32, Triton 3.6, which unrolls IEEE products, spills up to 432 bytes a thread.
    return Configuration(16, 4 if width < 64 else 8, False)


@dataclass(frozen=True)
class Pairs:
    """Blocks of the kernels on pairs (`_triton_pairs`)."""

    atoms: int = 32  # a side of a block of pairs of one molecule
    atoms_warps: int = 8  # with 4, `pull` spills 24 bytes on sm_80
    pairs: int = 512  # of `locate`
    cells: int = 32  # of the table that a program of `locate` turns into polynomials
    heads: int = 8
    chunk: int = 256  # sorted pairs that `add_up` sums at a time
    entries: int = 16  # rows of the radial table that the last program to have a share sums
    runs: int = 4  # at a time
    hop_entries: int = 4  # columns of the hop table likewise: few, of many pairs each
    hop_runs: int = 32
    warps: int = 4


@dataclass(frozen=True)
class Radial:
    """Blocks of the radial function (`_triton_radial`)."""

    blocks: int = 1  # of a table's range that a program of `survey` looks at
    places: int = 16  # knots or pairs at a time
    chunk: int = 64  # Gaussians at a time
    table_chunk: int = 32  # of the table's gradient: with 64 a thread spills 32 bytes
    slice: int = 32  # units of the first layer at a time
    programs: int = 512  # at most, of what goes over all pairs
    parts: int = 32  # at most, whatever the GPU: sums are the same bits everywhere
    entries: int = 128  # of a gradient that a program of `collect` adds up
    warps: int = 8
    survey_warps: int = 4


PAIRS = Pairs()
RADIAL = Radial()
