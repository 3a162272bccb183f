"""Our kernels on a GPU against what else PyTorch offers: what ``make gpu-bench`` runs.

    python benchmarks/gpu.py --out build/gpu-bench --seconds 360

First it asks whether every configuration is right (`buckets.py`), then how fast ours is and kernel
by kernel against the model (`layer_model.py`), then the rivals (`gpu_rivals.py`). Each part is a
process of its own whose rows are kept as they come, so that whatever ends one part early, or fails
in one rival, loses no other figure. In the folder:

- ``buckets.csv``: a row a configuration, right or wrong;
- ``coattention.csv``, ``shortest_paths.csv``: a row a rival and workload (`gpu_timing.py`);
- ``kernels.csv``: a row a kernel, measured and predicted;
- ``bench.log``: what all parts print.

No part starts that has no time left, and what was not done is named. Run again with the same
folder, only what these very sources have no row for is run.

Molecules come from ``data/nci.npz``. Ours takes them packed, the rivals padded to the longest. The
floor is the larger of bytes, each tensor once, over the measured copy bandwidth and of instructions
over the issue rate; `of_floor` is floor / time. A wrong answer of ours is timed all the same, its
row says so, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bench_coattention as harness
import buckets
import gpu_rivals
import gpu_timing
import layer_model
import measurements
import molecules
import torch
from gpu_timing import Limits
from pieces import Log, Outcome, Piece, python, run, stop_when_told
from torch import Tensor

import collamo_kernels as ck
from collamo_kernels.testing import (
    Case,
    Inputs,
    assert_all_accurate,
    attend,
    make_inputs,
    with_gradients,
)

SECONDS = 360.0  # with building, seven minutes
PART_SECONDS = 75.0  # of one part at most
WARM_SECONDS = 100.0  # of compiling ahead and of the check, all side by side
ROUNDS = 30
OURS, RIVALS, WARM, PATHS = "ours", "rivals", "compile", "shortest_paths"  # kinds of parts


@dataclasses.dataclass(frozen=True)
class Workload:
    """One shape of call: `count` stored molecules, or `count` random graphs of `atoms` atoms."""

    name: str
    heads: int
    width: int
    count: int = 256
    atoms: int | None = None
    rivals: tuple[str, ...] = ("SDPA", "FlexAttention", "eager", "torch.compile")
    goals: dict[str, float] = dataclasses.field(default_factory=dict)  # forward + backward, times

    def timed(self, backward: bool) -> str:
        """Name it with what is timed."""
        return f"{self.name}, {BOTH if backward else 'forward'}"

    def small(self) -> Workload:
        """Return the same on two heads of two molecules, to see that everything runs."""
        size = {"heads": 2, "count": 2, "atoms": self.atoms and 40}
        return dataclasses.replace(self, name=f"{self.name}, small", **size)


MODEL_GOALS = {"eager": 50, "torch.compile": 10, "FlexAttention": 3}
WORKLOADS = (
    Workload("256 molecules, H=32, d=24", 32, 24, goals=MODEL_GOALS),
    Workload("256 molecules, H=8, d=64", 8, 64, goals=MODEL_GOALS),
    Workload(
        *("256 molecules, H=64, d=8 (Uni-Mol)", 64, 8),
        rivals=("SDPA", "FlexAttention"),
        goals={"SDPA": 3, "FlexAttention": 3},
    ),
    Workload(
        *("8 graphs of 512 atoms, H=32, d=32", 32, 32, 8, 512),
        rivals=("SDPA", "FlexAttention"),
        goals={"SDPA": 3, "FlexAttention": 3},
    ),
)
LEAST_MEMORY = 20  # times less than eager, the goal
WITH_GRADIENTS, BOTH = "forward with gradients", "forward + backward"
HOST_GOALS = {WITH_GRADIENTS: 250, BOTH: 500}  # µs of the processor
HOPS_COUNT = 4096  # molecules of the shortest_paths workload


def sizes_of(workload: Workload) -> tuple[int, ...]:
    """Return the atoms of each molecule."""
    if workload.atoms:
        return (workload.atoms,) * workload.count
    return tuple(molecules.stored(workload.count).ptr.diff().tolist())


def inputs_of(workload: Workload, dtype: torch.dtype, device: str) -> Inputs:
    """Real graphs and conformers (or random graphs); q, k, v and the tables are drawn."""
    size = {"hop_buckets": 64, "gaussians": 128, "head": "mlp"}
    case = Case(workload.name, sizes_of(workload), workload.heads, workload.width, **size)
    inputs = make_inputs(case, dtype, device)
    if workload.atoms:
        return inputs
    batch = molecules.stored(workload.count)
    relations = ck.Relations.from_graphs(*batch[1:], layout="packed").to(device)
    x = relations.coordinates.requires_grad_()
    return dataclasses.replace(inputs, relations=dataclasses.replace(relations, coordinates=x))


# --- parts, each in a process of its own ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where a part runs, and how thoroughly."""

    device: str = "cuda"
    backend: str = "triton"  # by name: none may stand in for it
    dtype: torch.dtype = torch.bfloat16
    gpu: Limits | None = None
    rounds: int = ROUNDS
    compiler: Callable = gpu_rivals.compiled
    deadline: float = float("inf")  # of time.monotonic: no rival starts later


Rows = Iterator[tuple[str, list[dict]]]  # tables and rows


def our_rows(workload: Workload, at: Setting) -> Rows:
    """Whether ours is right, how fast it is, and its kernels against the model."""
    inputs = inputs_of(workload, at.dtype, at.device)
    wrong = mistake(inputs, at.backend)
    for backward in (False, True):
        call = harness.ours_of(inputs, backward, at.backend)
        floor = None
        if at.gpu is not None:
            floor = max(layer_model.floors_us(shape_of(workload), backward, at.gpu.machine()))
        name = workload.timed(backward)
        for row in (rows := gpu_timing.compared(name, call, {}, at.rounds, floor)):
            row["right"] = "no" if wrong else "yes"
            row["note"] = "; ".join(filter(None, (wrong, row["note"])))
        yield "coattention", rows
    yield "coattention", [host_row(workload, inputs, at)]
    yield "kernels", kernel_rows(workload, call)


def host_row(workload: Workload, inputs: Inputs, at: Setting) -> dict:
    """Return what a forward pass that gradients follow takes of the processor."""
    us = gpu_timing.host_us(lambda: attend(inputs, "packed", backend=at.backend), at.rounds)
    name = f"{workload.name}, {WITH_GRADIENTS}"
    return {"workload": name, "rival": "ours", "host_us": f"{us:.4g}", "rounds": at.rounds}


def mistake(inputs: Inputs, backend: str) -> str:
    """Return what is wrong with our result and gradients; "" where all of them are right."""
    yardstick, exact = harness.expected(inputs)
    try:
        ours = with_gradients(lambda x: attend(x, "packed", backend=backend), inputs)
        assert_all_accurate(ours, yardstick, exact)
    except AssertionError as error:
        return f"wrong: {str(error).splitlines()[0]}"
    except Exception as error:  # backward may fail where forward runs
        return gpu_rivals.failure(error)
    return ""


def kernel_rows(workload: Workload, call: Callable) -> list[dict]:
    """Return what each kernel of forward and backward takes, and what the model said."""
    launches = layer_model.stored_figures(workload.name)
    predicted = layer_model.by_kernel(layer_model.layer(launches, shape_of(workload)))
    name, rows = workload.timed(True), []
    for kernel, (count, us) in gpu_timing.kernel_us(call).items():
        row = {"workload": name, "kernel": kernel, "launches": f"{count:g}"}
        row["median_us"] = f"{us:.4g}"
        if kernel in predicted:
            row["predicted_us"] = f"{predicted.pop(kernel):.4g}"
        rows.append(row)
    for kernel, us in predicted.items():
        row = {"workload": name, "kernel": kernel, "predicted_us": f"{us:.4g}"}
        rows.append(row | {"note": "not seen under this name"})
    return rows


def shape_of(workload: Workload) -> layer_model.Shape:
    """Return what the model must know of a workload."""
    return layer_model.Shape(sizes_of(workload), workload.heads, workload.width)


def rival_rows(workload: Workload, at: Setting, done: frozenset[tuple[str, str]]) -> Rows:
    """Check and time rival by rival, but for what is `done`: (workload, rival).

    A rival's ratio is to ours in the same turns. Those of forward + backward, which the goals are
    about, come first.
    """
    inputs = inputs_of(workload, at.dtype, at.device)
    yardstick, exact = (answer["out"] for answer in harness.expected(inputs))
    for backward, name in itertools.product((True, False), workload.rivals):
        timed = workload.timed(backward)
        if any(where == timed and rival.startswith(name) for where, rival in done):
            continue
        rivals: dict[str, Callable | str] = {name: NOT_RUN}
        if time.monotonic() <= at.deadline:
            try:
                calls = gpu_rivals.rivals_of(inputs, backward, (name,), at.compiler)
                rivals = gpu_rivals.checked(calls, yardstick, exact)
            except Exception as error:  # no memory for its inputs, say
                rivals = {name: gpu_rivals.failure(error)}
        ours = harness.ours_of(inputs, backward, at.backend)
        for variant, rival in rivals.items():
            yield "coattention", beside_ours(timed, ours, variant, rival, at.rounds)
        del rivals
        if at.device == "cuda":
            torch.cuda.empty_cache()


NOT_RUN, NOT_MEASURED = "not run: the time was up", "not measured"


def beside_ours(
    workload: str, ours: Callable, name: str, rival: Callable | str, rounds: int
) -> list[dict]:
    """Time a rival and ours in turns; the rival's row, or one with the reason why not."""
    try:
        rows = gpu_timing.compared(workload, ours, {name: rival}, rounds)
    except Exception as error:  # it ran once, but not again
        return [{"workload": workload, "rival": name, "note": gpu_rivals.failure(error)}]
    return [row for row in rows if row["rival"] == name]


def compile_ahead(workload: Workload, at: Setting) -> None:
    """Run everything once, so that what it compiles is on disk when it is timed.

    On workloads side by side: compiling keeps one processor of many busy.
    """
    inputs = inputs_of(workload, at.dtype, at.device)
    for backward in (True, False):
        harness.ours_of(inputs, backward, at.backend)()
        for name in workload.rivals:
            if name in ("eager", "SDPA") or time.monotonic() > at.deadline:
                continue  # nothing to compile
            try:
                for call in gpu_rivals.rivals_of(inputs, backward, (name,), at.compiler).values():
                    call()
            except Exception as error:  # its row will say so
                print(f"{name}: {gpu_rivals.failure(error)}", flush=True)
            torch.cuda.empty_cache()


def hops_rows(
    count: int, device: str, gpu: Limits | None = None, rounds: int = ROUNDS
) -> list[dict]:
    """Check and time `shortest_paths` of stored molecules on the device, packed."""
    batch = molecules.stored(count)
    edges, ptr = batch.edges.to(device), batch.ptr.to(device)
    answer = ck.shortest_paths(batch.edges, batch.ptr, layout="packed")
    search = torch.ops.collamo_kernels.shortest_paths

    def ours() -> Tensor:
        capturing = device == "cuda" and torch.cuda.is_current_stream_capturing()
        if capturing:  # then the size must be known
            return search(edges, ptr, True, len(answer))
        return ck.shortest_paths(edges, ptr, layout="packed", backend=device)

    right = torch.equal(ours().cpu(), answer)
    rivals = {"SciPy, on the CPU": scipy_rival(batch, answer)}
    launch = 0.0 if gpu is None else gpu.graph_launch_us
    floor = None if gpu is None else launch + 1e6 * len(answer) / gpu.bandwidth
    mean = batch.ptr.diff().double().mean()
    workload = f"{count} stored molecules (mean {mean:.1f} atoms)"
    timed = {name: call for name, call in rivals.items() if not callable(call)}
    rows = gpu_timing.compared(workload, ours, timed, rounds, floor, memory=False)
    rows[0]["right"] = "yes" if right else "no"
    for name, call in rivals.items():
        if callable(call):  # seconds, and nothing on the GPU: once is enough
            us, ratio = gpu_timing.wall(call), float(rows[0]["median_us"])
            rows.append({"workload": workload, "rival": name, "rounds": 1, "note": ""})
            rows[-1] |= {"median_us": f"{us:.4g}", "ratio": f"{us / ratio:.3g}"}
    return rows


def scipy_rival(batch: molecules.Batch, answer: Tensor) -> Callable | str:
    """SciPy's search of every molecule, or why it is not run."""
    try:
        import bench_shortest_paths as others
    except ImportError as error:
        return f"not run: {error}"
    borders = torch.searchsorted(batch.edges[0].contiguous(), batch.ptr)  # molecule by molecule
    matrices = [
        others.sparse((batch.edges[:, first:last] - start).numpy(), int(stop - start))
        for (first, last), (start, stop) in zip(
            itertools.pairwise(borders.tolist()),
            itertools.pairwise(batch.ptr.tolist()),
            strict=True,
        )
    ]
    assert torch.equal(others.packed(others.by_scipy(matrices)), answer)
    return lambda: others.by_scipy(matrices)


def measure(part: str, options: argparse.Namespace) -> Rows:
    """Yield the rows of one part, measured here."""
    kind, _, name = part.partition(" of ")
    workload = next((each for each in workloads(options) if each.name == name), WORKLOADS[0])
    rounds, deadline = 1 if options.small else ROUNDS, time.monotonic() + options.seconds
    at = Setting(rounds=rounds, deadline=deadline)
    if kind == WARM:
        compile_ahead(workload, at)
        return
    gpu = gpu_timing.limits()
    print(
        f"copy {gpu.bandwidth / 1e12:.2f} TB/s, launch {gpu.launch_us:.1f} µs, in a graph "
        f"{gpu.graph_launch_us:.1f} µs, {gpu.processors} processors, {gpu.clock / 1e9:.2f} GHz",
        flush=True,
    )
    at = dataclasses.replace(at, gpu=gpu)
    if kind == PATHS:
        count = 9 if options.small else HOPS_COUNT
        yield PATHS, hops_rows(count, at.device, gpu, at.rounds)
    elif kind == OURS:
        yield from our_rows(workload, at)
    else:
        done = finished(options.out, torch.cuda.get_device_name())
        yield from rival_rows(workload, at, done)


def workloads(options: argparse.Namespace) -> list[Workload]:
    """Return what is measured."""
    return [each.small() if options.small else each for each in WORKLOADS]


def finished(folder: Path, gpu: str) -> frozenset[tuple[str, str]]:
    """Return what an earlier run of these sources settled: (workload, rival)."""
    rows = measurements.rows_of_these_sources(folder, "coattention", gpu)
    return frozenset((row["workload"], row["rival"]) for row in rows if row["note"] != NOT_RUN)


# --- the run --------------------------------------------------------------------------------------


def part(name: str, options: argparse.Namespace, seconds: float = PART_SECONDS) -> Piece:
    """The process that measures a part and hands its rows over."""
    seconds = options.seconds if options.small else seconds  # small where it is tried, and slow
    # The rival that is running then has a third of the time to end.
    arguments = ["--part", name, "--out", str(options.out), "--seconds", f"{0.67 * seconds:.0f}"]
    arguments += ["--small"] * options.small
    return Piece(name, python("benchmarks/gpu.py", *arguments), seconds=seconds)


def parts(options: argparse.Namespace, gpu: str) -> tuple[list[Piece], list[Piece]]:
    """What runs side by side before anything is timed, and what runs alone after it.

    What has its rows already is left out.
    """
    checked = measurements.rows_of_these_sources(options.out, "buckets", gpu)
    widths = {int(row["width"]) for row in checked}
    done = finished(options.out, gpu)
    ours, rivals, ahead = [], [], []
    for workload in workloads(options):
        timed = {workload.timed(backward) for backward in (False, True)}
        needed = [part(f"{OURS} of {workload.name}", options)]
        if {(name, "ours") for name in timed} <= done:
            needed = []
        ours += needed
        begun = {(name, x) for name, y in done for x in workload.rivals if y.startswith(x)}
        if not {(name, rival) for name in timed for rival in workload.rivals} <= begun:
            needed.append(part(f"{RIVALS} of {workload.name}", options))
            rivals.append(needed[-1])
        if needed:
            ahead.append(part(f"{WARM} of {workload.name}", options, WARM_SECONDS))
    hops = measurements.rows_of_these_sources(options.out, PATHS, gpu)
    alone = ours + ([] if hops else [part(PATHS, options)]) + rivals
    every = buckets.pieces(("bfloat16",), seconds=WARM_SECONDS)
    wanted = [piece for piece in every if int(piece.name.split()[2]) not in widths]
    return wanted + ahead, alone


def measure_all(
    gpu: str, options: argparse.Namespace, before: list[Piece], alone: list[Piece]
) -> int:
    """Run part after part, print rows and verdicts; 1 if something is wrong or was not done."""
    deadline, log = time.monotonic() + options.seconds, Log(options.out / "bench.log")
    take = measurements.listener(options.out, gpu, show)

    def one(piece: Piece) -> Outcome:
        outcome = run(piece, deadline, log, take)
        print(f"{outcome.seconds:4.0f} s  {piece.name}: {outcome.summary}", flush=True)
        return outcome

    with ThreadPoolExecutor(max(1, len(before))) as pool:
        outcomes = list(pool.map(one, before))
    for line in buckets.avoid_wrong(options.out, gpu):
        print(line, flush=True)
    outcomes += [one(piece) for piece in alone]
    return conclude(outcomes, options, gpu)


def conclude(outcomes: list[Outcome], options: argparse.Namespace, gpu: str) -> int:
    """Print what follows from all rows, what was not done and what is wrong."""
    folder = options.out
    read = functools.partial(measurements.rows_of_these_sources, folder, gpu=gpu)
    attention, hops, checked = (read(table=x) for x in ("coattention", PATHS, "buckets"))
    for workload in workloads(options):
        rows = [x for x in attention if x["workload"].startswith(f"{workload.name}, f")]
        print(*attention_verdicts(workload, rows), sep="\n")
    print(*hop_verdicts(hops), sep="\n")
    failed = [x for x in outcomes if x.code not in (0, None) and not x.piece.name.startswith(WARM)]
    late = [outcome.piece.name for outcome in outcomes if outcome.code is None]
    late += [f"{row['rival']} of {row['workload']}" for row in attention if row["note"] == NOT_RUN]
    wrong = [f"{x['rival']} of {x['workload']}" for x in attention + hops if x["right"] == "no"]
    for row in checked:
        if row["right"] == "no":
            doubted = ", as doubted, and not taken" if row["doubted"] == "yes" else ""
            wrong += [] if doubted else [row["bucket"]]
            where = f"{row['dtype']}, width {row['width']}, {row['bucket']}"
            print(f"{where}: wrong{doubted}: {row['note']}")
    for words, names in (("failed", [x.piece.name for x in failed]), ("not run", late)):
        if names:
            print(f"{words}: {'; '.join(names)}")
    if wrong:
        print(f"WRONG: {'; '.join(wrong)}")
    print(f"to keep these rows: {sys.executable} benchmarks/measurements.py {folder}")
    return int(bool(failed or late or wrong))


def show(table: str, rows: list[dict]) -> None:
    """Print rows as they come."""
    keys = {
        "buckets": ("dtype", "width", "bucket", "doubted", "right", "note"),
        "kernels": ("kernel", "launches", "median_us", "predicted_us", "note"),
    }
    if table in keys:
        for row in rows:
            print("  ", *(str(row.get(key, "")) for key in keys[table]), flush=True)
        return
    for workload in dict.fromkeys(row["workload"] for row in rows):
        print(workload)
    for row in rows:
        names = ("median_us", "graph_us", "host_us", "ratio", "graph_ratio")
        cells = (row.get(key, "") for key in (*names, "floor_us", "of_floor", "peak_mib"))
        line = "  {:<34}{:>9} µs {:>9} graph {:>8} host {:>6} x {:>6} x graph  floor {:>7} µs ({})"
        print((line + " {} MiB {}").format(row["rival"], *cells, row.get("note", "")), flush=True)


# --- verdicts -------------------------------------------------------------------------------------


def attention_verdicts(workload: Workload, rows: list[dict]) -> list[str]:
    """Compare the rows of a workload with its goals, a line each."""
    lines = []
    both = {row["rival"]: row for row in rows if row["workload"].endswith(BOTH)}
    for rival, goal in workload.goals.items():
        timed = [row for name, row in both.items() if name.startswith(rival)]
        lines.append(f"{workload.name}: {verdict(timed, goal)} {rival}")
    mib = {name: float(row["peak_mib"]) for name, row in both.items() if row.get("peak_mib")}
    if "eager" in workload.goals:
        ours = next((row for row in rows if row["rival"] == "ours"), {})  # the first is forward
        lines.append(f"{workload.name}, forward: {_times_floor(ours, 2)}")
        ratio = mib["eager"] / mib["ours"] if mib.keys() >= {"eager", "ours"} else None
        less = f"{_verdict([ratio] if ratio else [], LEAST_MEMORY)} less memory than eager"
        lines.append(f"{workload.name}: {less}")
    for name, most in HOST_GOALS.items():
        us = [x["host_us"] for x in rows if x["rival"] == "ours" and x["workload"].endswith(name)]
        host = f"{'met' if float(us[0]) <= most else 'MISSED'}: {us[0]} µs" if us else NOT_MEASURED
        lines.append(f"{workload.name}, {name}: {host} of the host (goal {most} µs)")
    return lines


def hop_verdicts(rows: list[dict]) -> list[str]:
    """Compare the rows of `shortest_paths` with its goals, a line each."""
    if not rows:
        return ["shortest_paths: not measured"]
    workload = rows[0]["workload"]
    return [
        f"{workload}: {_times_floor(rows[0], 3)}",
        f"{workload}: {verdict(rows[1:], 500)} SciPy",
    ]


def verdict(rows: list[dict], goal: float) -> str:
    """Say both ratios of the fastest variant of a rival; a goal is met where both meet it."""
    ratios = [
        min((float(row[key]) for row in rows if row.get(key)), default=None)
        for key in ("ratio", "graph_ratio")
    ]
    names = ("as called", "in a graph")
    known = [f"{x:.3g} x {name}" for x, name in zip(ratios, names, strict=True) if x is not None]
    if not known:
        return f"{NOT_MEASURED} (goal {goal:g} x)"
    return _verdict([x for x in ratios if x is not None], goal, ", ".join(known))


def _verdict(ratios: list[float], goal: float, words: str = "") -> str:
    if not ratios:
        return f"{NOT_MEASURED} (goal {goal:g} x)"
    words = words or f"{min(ratios):.3g} x"
    return f"{'met' if min(ratios) >= goal else 'MISSED'}: {words} (goal {goal:g} x)"


def _times_floor(ours: dict, most: float) -> str:
    if not ours.get("of_floor"):
        return f"not measured against the floor (goal at most {most:g} x)"
    times = 1 / float(ours["of_floor"])
    return f"{'met' if times <= most else 'MISSED'}: {times:.3g} x the floor (goal {most:g} x)"


def main(arguments: list[str] | None = None) -> int:
    """Measure everything, keep the rows, and say which goals are met; or measure one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = measurements.HERE.parent / "build" / "gpu-bench"
    parser.add_argument("--out", type=lambda name: Path(name).resolve(), default=default)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--only", default="", help="parts whose names this regex finds")
    parser.add_argument("--part", help="measure this one here, and print its rows")
    parser.add_argument("--small", action="store_true", help="on two heads of two molecules")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: no NVIDIA GPU answers (torch.cuda.is_available() is False)", file=sys.stderr)
        return 1
    if options.part:
        for table, rows in measure(options.part, options):
            measurements.tell(table, rows)
        return 0
    stop_when_told()
    gpu = torch.cuda.get_device_name()
    before, alone = (
        [piece for piece in pieces if re.search(options.only, piece.name)]
        for pieces in parts(options, gpu)
    )
    return measure_all(gpu, options, before, alone)


if __name__ == "__main__":
    sys.exit(main())
