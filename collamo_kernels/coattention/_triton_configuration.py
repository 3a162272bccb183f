"""Tile, warps and stages of every Triton kernel: a fixed table, never tuned at run time.

A bucket is chosen by the largest molecule: 32 and 64 atoms fit one tile, "loop" takes any number
in smaller tiles. A batch of real molecules (mean 26 atoms, largest 100) loops: with one tile of 128
for everybody 96 % of the pairs would be padding.

Registers decide the warps. For sm_80 and sm_90 the kernels of one tile spill nothing and the loops
at most 48 bytes a thread; half the warps spill 100 to 300 bytes in the tile of 64, and a float32
head of 128 in that tile spills 9,000.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

WIDTHS = (16, 32, 64, 128)  # a head is padded to one of these inside the tile
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PAIR_BLOCK = 32  # atoms by atoms, in the kernels that work on pairs alone
PAIR_WARPS = 8  # of these; with 4, `pull` spills 24 bytes on sm_80


@dataclass(frozen=True)
class Configuration:
    """How a kernel is compiled: atoms a tile, warps, and whether a molecule is one tile."""

    block: int
    num_warps: int
    single: bool


def buckets(width: int, dtype: torch.dtype) -> tuple[int | str, ...]:
    """Return the buckets that are compiled for heads padded to `width`."""
    if dtype == torch.float32 or width == 128:
        return 32, "loop"
    return 32, 64, "loop"


def bucket(max_seqlen: int, width: int, dtype: torch.dtype) -> int | str:
    """Return the smallest tile that holds the largest molecule, or "loop"."""
    sizes = buckets(width, dtype)[:-1]
    return next((size for size in sizes if max_seqlen <= size), "loop")


def padded_width(width: int) -> int:
    """Return the width of a head inside the tile."""
    return next(size for size in WIDTHS if width <= size)


def forward(of: int | str, width: int, dtype: torch.dtype) -> Configuration:
    """Return the configuration of `attend`."""
    if of == 64:
        return Configuration(64, 8, True)
    wide = 64 if of == 32 else 32  # beyond this the accumulator needs the registers of more warps
    warps = 2 if width < wide else 4 if width <= wide else 8
    return Configuration(32, warps, of == 32)


def backward(of: int | str, width: int, dtype: torch.dtype) -> Configuration:
    """Return the configuration of `differentiate`."""
    if of == 64 and width == 16:
        return Configuration(64, 8, True)
    if of == 32:
        warps = 16 if dtype == torch.float32 and width == 128 else 8 if width >= 64 else 4
        return Configuration(32, warps, True)
    if width == 128:  # a float32 head of 128 spills 2,600 bytes in tiles of 32, 32 in tiles of 16
        return Configuration(16, 8 if dtype == torch.float32 else 4, False)
    return Configuration(32, 8, False)  # a tile of 64 spills 88 to 296 bytes on sm_80 from width 32


@dataclass(frozen=True)
class SegmentTile:
    """Tile of `sum_segments`: segments by pairs by heads."""

    segments: int
    pairs: int
    columns: int


def segments(columns: int) -> SegmentTile:
    """Return the tile that sums over pairs for so many heads."""
    return SegmentTile(16, 8, max(8, min(16, 1 << (columns - 1).bit_length())))
