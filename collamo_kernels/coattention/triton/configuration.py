"""Tile, warps and stages of every Triton kernel: a fixed table, never tuned at run time.

A bucket is chosen by a molecule's size: 32 and 64 atoms fit one tile, "2 x 32" is two tiles of 32 a
side, 128 two of 64, and "loop" takes any number in tiles of 32. One tile of 128 was compiled and
left out: what its pairs need does not fit the registers, and a thread spilled 536 bytes and more.
In the buckets of two tiles the backward is one program a molecule and head that goes over both
halves; forward, the loop's tiles take as few instructions a pair and less padding.

Where the molecules of a batch differ in size, each of its `size_classes` is a launch of its own, in
which the programs of all other molecules return at once: nobody has to know how many of each there
are. Backward a molecule of 32 atoms takes half of the loop's instructions in one tile, and one of
64 little more than half in two.

Left out too: programs that take 4 or 8 heads of a tile one after the other, what a pair has in
common for all of them loaded once. They take a third fewer instructions, and registers for less
than half of the warps that hide the latency of the same gathers from the radial table; docs/log.md
has the counts. And tables in shared memory: one head's is 32 KB and more, of which a tile's pairs
read 16.

Registers decide the warps: as few as spill nothing on sm_90, because a pair then takes the fewest
instructions. `benchmarks/tune_coattention.py` tells what each choice takes of sm_80 and sm_90, and
how long it lasts where there is a GPU. What spills is listed in ``tests/kernels/test_triton.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

WIDTHS = (16, 32, 64, 128)  # a head is padded to one of these inside the tile
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LOOP: Literal["loop"] = "loop"
TWO_OF_32: Literal["2 x 32"] = "2 x 32"  # where no tile of 64 is to be had
Bucket = int | Literal["loop", "2 x 32"]


@dataclass(frozen=True)
class Configuration:
    """How a kernel is compiled: atoms a tile, warps, tiles of a molecule (None: any number)."""

    block: int
    num_warps: int
    tiles: int | None

    def listed(self, packed: bool) -> bool:
        """Whether tiles are those of `Relations.tiles`, not the same number for each molecule."""
        return packed and self.tiles is None


@dataclass(frozen=True)
class SizeClass:
    """The molecules of one launch: those of more than `above` atoms that its bucket holds."""

    bucket: Bucket
    above: int


def buckets(width: int, dtype: torch.dtype) -> tuple[Bucket, ...]:
    """Return the buckets that are compiled for heads padded to `width`."""
    halves = (TWO_OF_32,) if _in_one_tile(width, dtype) else ()
    return (*_tiled_buckets(width, dtype), *halves, LOOP)


def _tiled_buckets(width: int, dtype: torch.dtype) -> tuple[int, ...]:
    if dtype == torch.float32:
        return (32,) if width == 128 else (32, 64)
    return (32, 64) if width == 128 else (32, 64, 128)


def size_classes(
    longest: int, mean: float, width: int, dtype: torch.dtype,
    refused: frozenset[Bucket] = frozenset(),
) -> tuple[SizeClass, ...]:  # fmt: skip
    """Return the launches that take all molecules of a batch, the smallest molecules first.

    Molecules of one size, as padded ones are, are a launch. Else those of up to 32 atoms are one,
    those of up to 64, and the rest; but where the mean molecule has 64 atoms there are few of the
    former, and all go with the largest. A tile of 64 would be mostly padding where large molecules
    are few. A bucket that is `refused`, see `trust`, is not taken.
    """
    shipped = [x for x in buckets(width, dtype) if x not in refused]
    up_to_64: list[Bucket] = [x for x in (64, TWO_OF_32) if x in shipped]
    if longest > 64:
        largest: Bucket = 128 if longest <= 128 and mean >= 64 and 128 in shipped else LOOP
    elif longest > 32 or 32 not in shipped:
        largest = next(iter(up_to_64), LOOP)
    else:
        largest = 32
    smaller: list[tuple[int, Bucket]] = []  # atoms at most, and their bucket
    mixed = mean < min(longest, 64)
    if mixed and longest > 32 and 32 in shipped:
        smaller.append((32, 32))
    if mixed and longest > 64 and up_to_64:
        smaller.append((64, up_to_64[0]))
    above = [0, *(atoms for atoms, _ in smaller)]
    taken = [*(bucket for _, bucket in smaller), largest]
    return tuple(SizeClass(*x) for x in zip(taken, above, strict=True))


def padded_width(width: int) -> int:
    """Return the width of a head inside the tile."""
    return next(size for size in WIDTHS if width <= size)


def forward(bucket: Bucket, width: int, dtype: torch.dtype) -> Configuration:
    """Return the configuration of `attend`."""
    if bucket == 64 and _in_one_tile(width, dtype):
        return Configuration(64, 4, 1)
    # Above one tile the loop takes fewer instructions a pair, and pads less, than tiles of 64.
    if bucket != 32 and dtype == torch.float32:
        return Configuration(16, 2 if width < 128 else 4, None)
    # A tile of 32 rows has work for two warps: of four, two do again what the others do.
    if bucket == 32:
        return Configuration(32, 8 if width == 128 and dtype == torch.float32 else 2, 1)
    return Configuration(32, 2 if width < 128 else 4, None)


def backward(bucket: Bucket, width: int, dtype: torch.dtype) -> Configuration:
    """Return the configuration of `differentiate` and `differentiate_tile`."""
    if bucket == 64 and _in_one_tile(width, dtype):
        return Configuration(64, 4, 1)
    if bucket == TWO_OF_32:
        return Configuration(32, 2 if width < 64 else 4, 2)
    if bucket == 64:
        return Configuration(32, 4 if width == 16 else 8, 2)
    if bucket == 128:
        return Configuration(64, 8, 2)
    if bucket == 32:
        wide = 64 if dtype == torch.float32 else 128
        return Configuration(32, 2 if width < wide else 4 if width == wide else 16, 1)
    if dtype == torch.float32:
        # With tiles of 32, Triton 3.6, which unrolls IEEE products, spills up to 432 bytes.
        return Configuration(16, 2 if width < 128 else 4, None)
    return Configuration(32, 2 if width < 64 else 4 if width < 128 else 8, None)


def _in_one_tile(width: int, dtype: torch.dtype) -> bool:
    """Whether a tile of 64 atoms fits the registers."""
    return width < 128 and dtype != torch.float32


@dataclass(frozen=True)
class Pairs:
    """Blocks of the kernels on pairs (`pairs`)."""

    atoms: int = 32  # a side of a block of pairs of one molecule
    atoms_warps: int = 8  # with 4, `pull` spills 24 bytes on sm_80
    pairs: int = 512  # of `locate`
    cells: int = 32  # of the table that a program of `locate` turns into polynomials
    heads: int = 8
    sums: int = 512  # of a program of `add_up`: rows of sorted pairs times heads
    columns: int = 32  # heads of it, at most
    steps: int = 16  # sorted pairs of a row
    entries: int = 2  # rows of the radial table that a program of `finish` sums
    runs: int = 32  # of each at a time
    hop_entries: int = 1  # columns of the hop table likewise: few, of many pairs each
    hop_runs: int = 128
    warps: int = 4


@dataclass(frozen=True)
class Radial:
    """Blocks of the radial function (`radial.triton.kernels`)."""

    blocks: int = 2  # of a table's range that a program of `survey` looks at
    survey_chunk: int = 32  # Gaussians at a time
    survey_slice: int = 64  # units of the first layer at a time
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
