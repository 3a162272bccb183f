"""What a layer should take of an H200, kernel by kernel: derived, for a first measurement to judge.

    python benchmarks/layer_model.py

prints the tables of docs/performance.md. From the shape of a call and what the compiler says of
each kernel (``data/layer_sm90.csv``, made by `compiled_layer`) follow the bytes it moves, the
instructions it issues and the warps a multiprocessor holds. A kernel then takes the longest of

- **bytes**: every tensor it is given, once, over the copy bandwidth;
- **issue**: warp instructions over one a scheduler and cycle, the floor of any code like this;
- **latency**: the same where too few warps are there to fill the cycles: one of them issues every
  `CYCLES` cycles only, and waits `WAIT` cycles for every load.

and the gap between two launches on top. Not counted: what misses the caches, uneven programs,
branches that are not taken but stand in the code. All of it is derived; nothing here was measured.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

FIGURES = Path(__file__).parent / "data" / "layer_sm90.csv"
COLUMNS = ("workload", "pass", "kernel", "programs", "warps", "registers", "shared", "bytes")
COLUMNS += ("above", "tile", "tiles", "instructions", "loops")

# Cycles between two instructions of one warp, and what a load of global memory adds. Dependent
# arithmetic takes 4 cycles, of which a compiler hides some; the L2 cache takes over 200, and four
# loads under way share them. Both are our guess, and the first thing that a measurement tells.
CYCLES, WAIT = 2.5, 50
AT_ONCE = 40  # instructions of a program that finds nothing to do
# Thread instructions that cannot be saved, per pair and head. Forward: a look-up of the hop table
# and one of a cell's four coefficients, three multiply-adds for the cubic, two to scale and add up,
# two for the maximum, a multiply-add and an exponential, one for the sum, half a conversion, half
# a store. Backward: all of it again but the maximum, five for dL/dlogits, four moments of the
# radial table, a sum of the hop table, conversions.
FORWARD_INSTRUCTIONS = 13
BACKWARD_INSTRUCTIONS = 24
PYTORCH = "PyTorch"  # stands for its own small kernels, `programs` of them
PYTORCH_US = 1.5  # of one, without the gap


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a GPU can do, its multiprocessors being of compute capability 9.0."""

    bandwidth: float = 4.3e12  # bytes/s of a large copy, read and written (seen on an H200)
    processors: int = 132
    clock: float = 1.98e9  # Hz, the highest (seen on an H200)
    gap_us: float = 1.0  # between two kernels of a CUDA graph (our guess)
    schedulers: int = 4  # of a multiprocessor
    warps: int = 64
    blocks: int = 32
    registers: int = 65536
    shared: int = 233472  # bytes, of which each program takes 1,024 beside its own


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a layer is called with."""

    sizes: tuple[int, ...]  # atoms of each molecule
    heads: int
    width: int
    bytes_each: int = 2  # of a number of q, k and v
    gaussians: int = 128
    units: int = 128  # of the radial function's hidden layer; 0 where it is linear


class Block(NamedTuple):
    """Instructions of a thread, and how many are matrix products and loads of global memory."""

    instructions: float
    products: float
    loads: float


class Code(NamedTuple):
    """What is outside of loops, and in each but in no loop inside it, by where it begins."""

    outside: Block
    loops: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Figures:
    """One launch: what the compiler and the launcher say of it."""

    backward: bool
    kernel: str
    programs: int
    warps: int
    registers: int
    shared: int
    bytes: int
    above: int  # of the attention: atoms that a molecule must have more of,
    tile: int  # atoms of a tile (0: another kernel),
    tiles: int  # and tiles that a molecule may have (0: any number)
    code: Code


@dataclasses.dataclass(frozen=True)
class Time:
    """Derived µs of a launch, what bounds it, and how full a multiprocessor is."""

    kernel: str
    bytes_us: float
    issue_us: float
    latency_us: float
    gap_us: float
    resident: int  # programs a multiprocessor holds at a time

    @property
    def us(self) -> float:
        """The prediction."""
        return self.gap_us + max(self.bytes_us, self.issue_us, self.latency_us)

    @property
    def least_us(self) -> float:
        """What this code cannot fall below, whatever hides its latency."""
        return max(self.bytes_us, self.issue_us)

    @property
    def bound(self) -> str:
        """Which of the three is the longest."""
        times = {"bytes": self.bytes_us, "issue": self.issue_us, "latency": self.latency_us}
        return max(times, key=lambda name: times[name])


# --- instructions ---------------------------------------------------------------------------------

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)
_JUMP = re.compile(r"\bBRA(?:\.\w+)*\s.*?0x([0-9a-f]+)")


def code_of(sass: str) -> Code:
    """Read machine code: a loop is what lies before a jump backwards and behind its target."""
    lines = [(int(place, 16), text) for place, text in _INSTRUCTION.findall(sass)]
    lines = [(place, text) for place, text in lines if not text.startswith("NOP")]
    jumps = ((place, _JUMP.search(text)) for place, text in lines)
    targets = [(int(jump[1], 16), place) for place, jump in jumps if jump]
    spans = sorted((first, -last) for first, last in targets if first < last)  # outer ones first
    bodies: dict[tuple[int, int] | None, list[str]] = {span: [] for span in spans} | {None: []}
    for place, text in lines:
        inside = [(first, last) for first, last in spans if first <= place <= -last]
        innermost = min(inside, key=lambda span: -span[1] - span[0], default=None)
        bodies[innermost].append(text)
    return Code(_block(bodies[None]), tuple(_block(bodies[span]) for span in spans))


def _block(lines: list[str]) -> Block:
    products = sum("MMA" in line for line in lines)
    return Block(len(lines), products, sum("LDG" in line for line in lines))


class Work(NamedTuple):
    """Programs that do not return at once, as a share, and how often each loop of theirs runs."""

    share: float = 1.0
    trips: tuple[float, ...] = ()


def attention_work(figures: Figures, shape: Shape) -> Work:
    """Of molecules that the launch takes, tile by tile: the mean of its programs."""
    most = figures.tiles * figures.tile or max(shape.sizes, default=0)
    every = [math.ceil(n / figures.tile) for n in shape.sizes]
    pairs = zip(shape.sizes, every, strict=True)
    tiles = [t for n, t in pairs if figures.above < n <= most]
    if not tiles:
        return Work(0.0)
    squares = sum(t * t for t in tiles)
    if figures.tiles:  # a program a molecule
        return Work(len(tiles) / len(every), (0, sum(tiles) / len(tiles), squares / len(tiles)))
    keys = squares / sum(tiles)
    trips = (keys,) if figures.kernel == "attend" else (0, keys)  # the first sets memory to 0
    return Work(sum(tiles) / sum(every), trips)


def units_and_chunks(shape: Shape, slice: int, chunk: int) -> Work:
    """Slices of the hidden layer, and chunks of Gaussians for each."""
    slices = max(1, shape.units // slice)
    return Work(1.0, (slices, slices * math.ceil(shape.gaussians / chunk)))


def steps(shape: Shape, steps: int = 16) -> Work:
    """Half of the programs go through one loop, half through the other, pair by pair."""
    return Work(1.0, (steps / 2, steps / 2))


def sums_of_parts(shape: Shape) -> Work:
    """The gradient of the table: 2,048 knots in 32 parts of tiles of 16, 32 Gaussians at a time."""
    tiles = 2048 / 16 / 32
    return Work(1.0, (tiles, tiles * math.ceil(shape.gaussians / 32)))


def without_exact(shape: Shape) -> Work:
    """The table is fine enough, so that no loop of the exact Φ3d runs."""
    return Work(1.0, (0,) * 9)


def nothing(shape: Shape) -> Work:
    """Likewise of a kernel that has nothing else to do."""
    return Work(0.0)


# What is missing here runs every loop once.
WORK: dict[str, Callable[[Shape], Work]] = {
    "survey": lambda shape: units_and_chunks(shape, slice=64, chunk=32),
    "tabulate": lambda shape: units_and_chunks(shape, slice=32, chunk=64),
    "locate": without_exact,
    **dict.fromkeys(("evaluate", "pull_back", "add_exact"), nothing),
    "add_up": steps,
    # One program of twenty adds up the runs of a hop, in some 27 turns, the others three of a cell.
    "finish": lambda shape: Work(1.0, (1.5, 3, *(0,) * 6)),
    "differentiate": sums_of_parts,
    "collect": lambda shape: Work(1.0, (1, 8, 0, 0, 0, 0)),  # 32 rows, four at a time
}


def work_of(figures: Figures, shape: Shape) -> Work:
    """Return which programs of a launch do something, and what."""
    if figures.tile:
        return attention_work(figures, shape)
    return WORK.get(figures.kernel, lambda shape: Work())(shape)


def executed(figures: Figures, work: Work) -> Block:
    """What one warp of a program that does something runs, on average."""
    pairs = itertools.zip_longest(figures.code.loops, work.trips, fillvalue=None)
    counts = [(loop, 1 if n is None else n) for loop, n in pairs if loop is not None]
    counts.append((figures.code.outside, 1))
    return Block(*(sum(n * block[field] for block, n in counts) for field in range(3)))


# --- times ----------------------------------------------------------------------------------------


def resident(figures: Figures, machine: Machine) -> int:
    """Programs that one multiprocessor holds at a time."""
    by_warp = 256 * math.ceil(figures.registers * 32 / 256)  # registers come in 256s a warp
    limits = machine.registers // (by_warp * figures.warps), machine.warps // figures.warps
    return max(1, min(*limits, machine.blocks, machine.shared // (figures.shared + 1024)))


def time_of(figures: Figures, shape: Shape, machine: Machine) -> Time:
    """Derive the time of one launch."""
    if figures.kernel == PYTORCH:
        gaps = figures.programs * machine.gap_us
        us = figures.programs * PYTORCH_US
        return Time(PYTORCH, us, us, us, gaps, 0)
    here = resident(figures, machine)
    work, cycle_us = work_of(figures, shape), 1e6 / machine.clock
    each, programs = executed(figures, work), figures.programs * work.share
    warps = figures.warps * (programs * each.instructions + (figures.programs - programs) * AT_ONCE)
    issue = warps * cycle_us / (machine.processors * machine.schedulers)
    there = max(1, min(here, math.ceil(programs / machine.processors)))
    rounds = max(min(1.0, programs), programs / (there * machine.processors))
    side_by_side = there * figures.warps / machine.schedulers  # warps of a scheduler
    alone = CYCLES * each.instructions + WAIT * each.loads  # cycles of one warp
    latency = rounds * max(alone, side_by_side * each.instructions) * cycle_us
    moved = 1e6 * work.share * figures.bytes / machine.bandwidth
    return Time(figures.kernel, moved, issue, latency, machine.gap_us, here)


def layer(launches: Iterable[Figures], shape: Shape, machine: Machine | None = None) -> list[Time]:
    """Derive the time of every launch of a layer, in order."""
    return [time_of(figures, shape, machine or Machine()) for figures in launches]


def floors_us(shape: Shape, backward: bool, machine: Machine) -> tuple[float, float]:
    """Return µs of the fewest bytes, each tensor once, and of the fewest instructions."""
    atoms, pairs = sum(shape.sizes), sum(n * n for n in shape.sizes)
    tensors = atoms * shape.heads * shape.width * shape.bytes_each
    read_once = pairs + 12 * atoms  # hops and coordinates
    rows = 4 * atoms * shape.heads  # what the softmax keeps
    # Forward: q, k, v in, the result out. Backward: those and its cotangent in, three out.
    moved = 4 * tensors + read_once + (8 * tensors + read_once + rows if backward else 0)
    each = FORWARD_INSTRUCTIONS + (BACKWARD_INSTRUCTIONS if backward else 0)
    rate = 32 * machine.schedulers * machine.processors * machine.clock
    return 1e6 * moved / machine.bandwidth, 1e6 * each * pairs * shape.heads / rate


def by_kernel(times: Iterable[Time]) -> dict[str, float]:
    """Sum the predictions of launches of one name, µs, gaps left out as a profiler does."""
    sums: dict[str, float] = {}
    for time in times:
        sums[time.kernel] = sums.get(time.kernel, 0.0) + time.us - time.gap_us
    return sums


def stored_figures(workload: str, path: Path = FIGURES) -> list[Figures]:
    """Return the launches of a workload as they were compiled last; none of one that was not."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["workload"] == workload]
    numbers = COLUMNS[3:-2]
    return [
        Figures(
            row["pass"] == "backward",
            row["kernel"],
            *(int(row[name]) for name in numbers),
            Code(*_blocks(row["instructions"]), _blocks(row["loops"])),
        )
        for row in rows
    ]


def _blocks(words: str) -> tuple[Block, ...]:
    return tuple(Block(*map(int, word.split("/"))) for word in words.split())


def table(times: list[Time], launches: list[Figures], shape: Shape) -> str:
    """Write what docs/performance.md shows of a layer."""
    lines = [
        "| kernel | programs × warps | registers, resident | bytes | issue | predicted | bound |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    rows = list(zip(times, launches, strict=True))
    for backward, name in ((False, "forward"), (True, "backward")):
        part = [(time, figures) for time, figures in rows if figures.backward == backward]
        for time, figures in part:
            size = f"{figures.programs:,} × {figures.warps} | {figures.registers}, {time.resident}"
            if time.kernel == PYTORCH:
                size = f"{figures.programs} launches | "
            lines.append(
                f"| `{time.kernel}` | {size} | {time.bytes_us:.1f} | {time.issue_us:.1f} "
                f"| {time.us:.0f} | {time.bound} |"
            )
        sums = [sum(getattr(time, x) for time, _ in part) for x in ("bytes_us", "issue_us", "us")]
        cells = f"| {sums[0]:.0f} | {sums[1]:.0f} | **{sums[2]:.0f}** | |"
        lines.append(f"| **{name}** | | {cells}")
    for backward, name in ((False, "forward"), (True, "forward + backward")):
        bytes_us, issue_us = floors_us(shape, backward, Machine())
        cells = f"| {bytes_us:.1f} | {issue_us:.1f} | {max(bytes_us, issue_us):.0f} | |"
        lines.append(f"| floor, {name} | | {cells}")
    return "\n".join(lines)


def summary(workload: str, shape: Shape) -> str:
    """Write a line of the table of all workloads."""
    launches = stored_figures(workload)
    pairs = list(zip(layer(launches, shape), launches, strict=True))
    cells = []
    for backward in (False, True):
        part = [time for time, figures in pairs if backward or not figures.backward]
        cells.append(sum(time.us for time in part))
        cells.append(cells[-1] / max(floors_us(shape, backward, Machine())))
    return f"| {workload} | {cells[0]:.0f} | {cells[1]:.1f} × | {cells[2]:.0f} | {cells[3]:.1f} × |"


def main() -> None:
    """Print the tables of all workloads."""
    import gpu

    for workload in gpu.WORKLOADS:
        launches = stored_figures(workload.name)
        if launches:
            print(f"\n{workload.name}\n")
            shape = gpu.shape_of(workload)
            print(table(layer(launches, shape), launches, shape))


if __name__ == "__main__":
    sys.exit(main())
