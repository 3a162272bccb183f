"""Our kernels on a GPU against what else PyTorch offers, every answer checked before it is timed.

    python benchmarks/gpu.py

is what ``make gpu-bench`` runs, in at most eight minutes. Each part is a process of its own
(``python benchmarks/gpu.py PART SECONDS``) whose rows are kept as they come: whatever ends one part
early, or fails in one rival, loses no other figure. Molecules come from ``data/nci.npz``. Ours
takes them packed, the rivals padded to the longest. The radial function counts for ours, the eager
rival and its compilation, because it trains; SDPA and FlexAttention are handed it ready-built. SDPA
is pinned to EFFICIENT_ATTENTION, because the cuDNN backend returns NaN gradients for some lengths
there.

Times are medians of CUDA events, µs, rivals in turns, the L2 cache overwritten before each call;
`graph_us` is the replay of a CUDA graph, without the host. The floor is the larger of bytes, each
tensor once, over the measured copy bandwidth and of instructions over the issue rate; `of_floor` is
floor / time. Rows are added to ``results/<gpu>/coattention.csv`` and ``shortest_paths.csv``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bench_coattention as harness
import measurements
import molecules
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

import collamo_kernels as ck
from collamo_kernels.testing import Case, Inputs, make_inputs

BUDGET = 380  # s, shared by the parts; a rival whose turn comes later is not run
GRACE = 60  # s that a part may take beyond its share, for the rival that is running
ROUNDS = 30
WARMUP = 3
CACHE = 256 << 20  # bytes written before each timed call, several times the L2
MIB = 1 << 20

# Thread instructions that cannot be saved, per pair and head. Forward: a look-up of the hop table
# and one of a cell's four coefficients, three multiply-adds for the cubic, two to scale and add up,
# two for the maximum, a multiply-add and an exponential, one for the sum, half a conversion, half
# a store. Backward: all of it again but the maximum, five for dL/dlogits, four moments of the
# radial table, a sum of the hop table, conversions.
FORWARD_INSTRUCTIONS = 13
BACKWARD_INSTRUCTIONS = 24


@dataclasses.dataclass(frozen=True)
class Workload:
    """One shape of call: `count` stored molecules, or `count` random graphs of `atoms` atoms."""

    name: str
    heads: int
    width: int
    count: int = 256
    atoms: int | None = None
    rivals: tuple[str, ...] = ("eager", "FlexAttention", "SDPA", "torch.compile")
    goals: dict[str, float] = dataclasses.field(default_factory=dict)  # forward + backward, times


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
HOPS_COUNT = 4096  # molecules of the shortest_paths workload


def inputs_of(workload: Workload, dtype: torch.dtype, device: str) -> Inputs:
    """Real graphs and conformers (or random graphs); q, k, v and the tables are drawn."""
    batch = None if workload.atoms else molecules.stored(workload.count)
    sizes = batch.ptr.diff().tolist() if batch else [workload.atoms] * workload.count
    size = {"hop_buckets": 64, "gaussians": 128, "head": "mlp"}
    case = Case(workload.name, tuple(sizes), workload.heads, workload.width, **size)
    inputs = make_inputs(case, dtype, device)
    if batch is None:
        return inputs
    relations = ck.Relations.from_graphs(*batch[1:], layout="packed").to(device)
    x = relations.coordinates.requires_grad_()
    return dataclasses.replace(inputs, relations=dataclasses.replace(relations, coordinates=x))


# --- what a GPU can do ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Limits:
    """Measured bandwidth (bytes/s, read and written), µs of a launch, and instructions/s."""

    bandwidth: float
    launch_us: float
    graph_launch_us: float
    instructions: float


def limits() -> Limits:
    """Measure this GPU; the issue rate is a warp instruction per scheduler and cycle."""
    source = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    target, one = torch.empty_like(source), torch.zeros(1, device="cuda")
    copies = {"copy": lambda: target.copy_(source), "launch": one.zero_}
    copies["graph"] = captured(one.zero_)
    us = {name: statistics.median(values) for name, values in time_all(copies, 20).items()}
    schedulers = 4 * torch.cuda.get_device_properties(0).multi_processor_count
    rate = schedulers * 32 * clock_hz()
    return Limits(2 * source.numel() / (us["copy"] * 1e-6), us["launch"], us["graph"], rate)


def clock_hz() -> float:
    """Return the highest clock of the multiprocessors; infinite, with a warning, if unknown."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return 1e6 * float(answer.split()[0])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        print(f"warning: no clock from nvidia-smi, so floors count bytes alone: {error}")
        return float("inf")


def floor_us(inputs: Inputs, backward: bool, gpu: Limits) -> float:
    """The larger of bytes over bandwidth and instructions over issue rate."""
    relations = inputs.relations
    tensors = inputs.q.numel() * inputs.q.element_size()
    read_once = relations.num_pairs + 12 * relations.num_atoms  # hops and coordinates
    lse = 4 * inputs.q.shape[0] * inputs.q.shape[1]
    # Forward: q, k, v in, the result out. Backward: those and its cotangent in, three out.
    bytes_moved = 4 * tensors + read_once + (8 * tensors + read_once + lse if backward else 0)
    each = FORWARD_INSTRUCTIONS + (BACKWARD_INSTRUCTIONS if backward else 0)
    instructions = each * relations.num_pairs * inputs.q.shape[1]
    return 1e6 * max(bytes_moved / gpu.bandwidth, instructions / gpu.instructions)


# --- rivals ---------------------------------------------------------------------------------------


def compiled(function: Callable) -> Callable:
    """Compile for these shapes alone.

    Dynamo forgets what it compiled before: otherwise new shapes would be taken as variable, and
    after eight versions of a function it would run uncompiled.
    """
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def aligned(bias: Tensor) -> Tensor:
    """Lay rows 16 numbers apart, as SDPA wants them; it would copy another bias at every call."""
    n = bias.shape[-1]
    return F.pad(bias, (0, -n % 16))[..., :n]


def rivals_of(
    inputs: Inputs, backward: bool, names: tuple[str, ...], compiler: Callable = compiled
) -> dict[str, Callable]:
    """Return the rivals by name: functions without arguments, each with an attribute `packed`."""
    padded, place = harness.Padded(inputs), inputs.layout
    q, k, v, relations = padded.q, padded.k, padded.v, padded.relations
    on_gpu = q.device.type == "cuda"
    ready = aligned(padded.bias().to(q.dtype)).requires_grad_(backward)

    def timed(forward: Callable, tensors: tuple[Tensor, ...]) -> Callable:
        def run() -> Tensor:
            with torch.set_grad_enabled(backward):
                out = forward()
            if backward:
                harness.backwards(out, tensors, padded.cotangent)
            return out

        run.packed = lambda: place.pack(run().detach().transpose(1, 2))
        return run

    def eagerly(function: Callable) -> Callable:
        arguments = (q, k, v, relations, padded.hop_bias, padded.radial)
        return timed(lambda: function(*arguments), padded.learned())

    def sdpa() -> Tensor:
        pinned = sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if on_gpu else contextlib.nullcontext()
        with pinned:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=ready)

    rivals = {}
    if "eager" in names:
        rivals["eager"] = eagerly(eager)
    if "torch.compile" in names:
        rivals["torch.compile"] = eagerly(compiler(eager))
    if "SDPA" in names:
        rivals["SDPA, bias ready-built"] = timed(sdpa, (q, k, v, ready))
    if "FlexAttention" in names:
        for name, options in FLEX.items():
            forward, tensors = flexible(padded, backward, options, compiler)
            rivals[name] = timed(forward, tensors)
    return rivals


# For queries shorter than 128 the default may choose its decoding kernel.
FLEX = {
    "FlexAttention": {},
    "FlexAttention, no decoding kernel": {"FORCE_USE_FLEX_ATTENTION": True},
}


def flexible(
    padded: harness.Padded, backward: bool, options: dict, compiler: Callable
) -> tuple[Callable, tuple[Tensor, ...]]:
    """Hop table looked up in the tile, Φ3d ready-built; heads of less than 16 padded with zeros."""
    hops, valid = padded.relations.hops, padded.relations.valid
    last = padded.hop_bias.shape[1] - 1
    column = torch.where(hops == 255, last, hops.int().clamp(max=last - 1)).int()
    with torch.no_grad():
        phi = harness.radial_term(padded.relations, padded.radial).to(padded.q.dtype).contiguous()
    phi.requires_grad_(backward)
    table = padded.hop_bias.detach().clone().requires_grad_(backward)
    width = padded.q.shape[-1]
    wide = [F.pad(x.detach(), (0, max(0, 16 - width))) for x in (padded.q, padded.k, padded.v)]
    wide = [x.requires_grad_(backward) for x in wide]

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        biased = s + table[h, column[b, i, j]] + phi[b, h, i, j]
        return torch.where(valid[b, j], biased, -float("inf"))

    attend = compiler(flex_attention)

    def forward() -> Tensor:
        extra = {"kernel_options": options} if options else {}
        return attend(*wide, score_mod=score, scale=width**-0.5, **extra)[..., :width]

    return forward, (*wide, table, phi)


def eager(q, k, v, relations, hop_bias, radial) -> Tensor:
    """The attention as one would write it, matrix products in q's type."""
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    for term in (harness.hop_term(relations, hop_bias), harness.radial_term(relations, radial)):
        logits = logits + term.to(logits.dtype)
    allowed = harness.valid_pairs(relations.valid)[:, None]
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(-1) @ v


def checked(
    rivals: dict[str, Callable], answer: Tensor, exact: Tensor
) -> dict[str, Callable | str]:
    """Run each rival once; put the reason in the place of one that cannot run or is wrong."""
    calls: dict[str, Callable | str] = {}
    for name, rival in rivals.items():
        try:
            calls[name] = harness.checked({name: rival}, answer, exact)[name]
        except AssertionError as error:
            calls[name] = f"not timed, wrong answer: {str(error).splitlines()[0]}"
    return calls


# --- timing ---------------------------------------------------------------------------------------


def time_all(calls: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Time the calls in turns; µs of every round."""
    times = {name: [] for name in calls}
    on_gpu = torch.cuda.is_available()
    cache = torch.empty(
        CACHE if on_gpu else 1, dtype=torch.uint8, device="cuda" if on_gpu else None
    )
    for turn in range(WARMUP + rounds):
        for name, call in calls.items():
            cache.zero_()
            us = _events(call) if on_gpu else _wall(call)
            if turn >= WARMUP:
                times[name].append(us)
    return times


def _events(call: Callable) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return 1000 * start.elapsed_time(stop)


def _wall(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start)


def captured(call: Callable) -> Callable:
    """Capture the call in a CUDA graph and return its replay."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def try_captured(calls: dict[str, Callable]) -> tuple[dict[str, Callable], dict[str, str]]:
    """Return the replays of those that can be captured, and why others cannot."""
    replays, reasons = {}, {}
    for name, call in calls.items():
        if name in ("eager", "torch.compile"):
            reasons[name] = "no CUDA graph: it asks the device how many pairs there are"
            continue
        try:
            replays[name] = captured(call)
        except Exception as error:  # whatever a rival does that a graph forbids
            lines = str(error).strip().splitlines() or [""]
            reasons[name] = f"no CUDA graph: {type(error).__name__}: {lines[0][:60]}"
    return replays, reasons


def peak_mib(call: Callable) -> float | str:
    """MiB that one call allocates at most, beside what stands already; "" without a GPU."""
    if not torch.cuda.is_available():
        return ""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def compared(
    workload: str,
    ours: Callable,
    rivals: dict[str, Callable | str],
    rounds: int,
    floor: float | None,
    memory: bool = True,
) -> list[dict]:
    """Time ours and the rivals in turns; one row each, of the columns of `measurements`."""
    calls = {"ours": ours, **{name: call for name, call in rivals.items() if callable(call)}}
    times = time_all(calls, rounds)
    replays, reasons = try_captured(calls) if torch.cuda.is_available() else ({}, {})
    graphs = {name: statistics.median(us) for name, us in time_all(replays, rounds).items()}
    median = {name: statistics.median(us) for name, us in times.items()}
    rows = []
    for name, us in median.items():
        row = {"workload": workload, "rival": name, "rounds": rounds, "note": reasons.get(name, "")}
        row |= {"median_us": f"{us:.4g}", "ratio": f"{us / median['ours']:.3g}"}
        row["graph_us"] = f"{graphs[name]:.4g}" if name in graphs else ""
        row["peak_mib"] = f"{peak:.4g}" if memory and (peak := peak_mib(calls[name])) != "" else ""
        if floor is not None and name == "ours":
            best = min(us, graphs.get(name, us))
            row |= {"floor_us": f"{floor:.4g}", "of_floor": f"{floor / best:.3g}"}
        rows.append(row)
    reasons = {name: reason for name, reason in rivals.items() if not callable(reason)}
    return rows + [{"workload": workload, "rival": x, "note": y} for x, y in reasons.items()]


# --- the report -----------------------------------------------------------------------------------


def attention_rows(
    workload: Workload,
    dtype: torch.dtype,
    device: str,
    gpu: Limits | None = None,
    compiler: Callable = compiled,
    rounds: int = ROUNDS,
    deadline: float = float("inf"),
) -> Iterator[list[dict]]:
    """Check and time one workload: ours, forward and forward + backward, then rival by rival.

    A rival's ratio is to ours in the same turns. Those of forward + backward, which the goals are
    about, come first.
    """
    inputs = inputs_of(workload, dtype, device)
    backend = {"cuda": "triton", "cpu": "cpu"}[device]  # by name: none may stand in for it
    yardstick, exact = (answer["out"] for answer in harness.answers(inputs, backend))
    names = {False: f"{workload.name}, forward", True: f"{workload.name}, forward + backward"}
    ours = {backward: harness.ours_of(inputs, backward, backend) for backward in names}
    for backward, timed in names.items():
        floor = None if gpu is None else floor_us(inputs, backward, gpu)
        yield compared(timed, ours[backward], {}, rounds, floor)
    for backward, name in itertools.product((True, False), workload.rivals):
        rivals = {name: "not run: the time was up"}
        if time.monotonic() <= deadline:
            try:
                rivals = rivals_of(inputs, backward, (name,), compiler)
                rivals = checked(rivals, yardstick, exact)
            except Exception as error:  # no memory for its inputs, say
                rivals = {name: failure(error)}
        for variant, rival in rivals.items():
            yield beside_ours(names[backward], ours[backward], variant, rival, rounds)
        del rivals
        torch.cuda.empty_cache()


def beside_ours(
    workload: str, ours: Callable, name: str, rival: Callable | str, rounds: int
) -> list[dict]:
    """Time a rival and ours in turns; the rival's row, or one with the reason why not."""
    try:
        rows = compared(workload, ours, {name: rival}, rounds, None)
    except Exception as error:  # it ran once, but not again
        return [{"workload": workload, "rival": name, "note": failure(error)}]
    return [row for row in rows if row["rival"] == name]


def failure(error: Exception) -> str:
    """Put an error into a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"does not run: {type(error).__name__}: {lines[0][:80]}"


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

    assert torch.equal(ours().cpu(), answer)
    rivals = {"SciPy, on the CPU": scipy_rival(batch, answer)}
    launch = 0.0 if gpu is None else gpu.graph_launch_us
    floor = None if gpu is None else launch + 1e6 * len(answer) / gpu.bandwidth
    mean = batch.ptr.diff().double().mean()
    workload = f"{count} stored molecules (mean {mean:.1f} atoms)"
    timed = {name: call for name, call in rivals.items() if not callable(call)}
    rows = compared(workload, ours, timed, rounds, floor, memory=False)
    for name, call in rivals.items():
        if callable(call):  # seconds, and nothing on the GPU: once is enough
            us, ratio = _wall(call), float(rows[0]["median_us"])
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


def show(rows: list[dict]) -> None:
    """Print a table."""
    for workload in dict.fromkeys(row["workload"] for row in rows):
        print(workload)
    for row in rows:
        keys = ("median_us", "graph_us", "ratio", "floor_us", "of_floor", "peak_mib")
        cells = (row.get(key, "") for key in keys)
        line = "  {:<34}{:>10} µs {:>10} graph {:>7} x  floor {:>8} µs ({:>5}) {:>8} MiB {}"
        print(line.format(row["rival"], *cells, row["note"]), flush=True)


def attention_verdicts(workload: Workload, rows: list[dict]) -> list[str]:
    """Compare the rows of a workload with its goals, a line each."""
    lines = []
    both = {row["rival"]: row for row in rows if row["workload"].endswith("forward + backward")}
    for rival, goal in workload.goals.items():
        timed = [row for name, row in both.items() if name.startswith(rival) and "ratio" in row]
        ratio = min((float(row["ratio"]) for row in timed), default=None)
        lines.append(f"{workload.name}: {_verdict(ratio, goal)} {rival}")
    mib = {name: float(row["peak_mib"]) for name, row in both.items() if row.get("peak_mib")}
    if "eager" in workload.goals:
        ours = next(row for row in rows if row["rival"] == "ours")  # the first is forward
        lines.append(f"{workload.name}, forward: {_times_floor(ours, 2)}")
        ratio = mib["eager"] / mib["ours"] if mib.keys() >= {"eager", "ours"} else None
        lines.append(f"{workload.name}: {_verdict(ratio, LEAST_MEMORY)} less memory than eager")
    return lines


def hop_verdicts(rows: list[dict]) -> list[str]:
    """Compare the rows of `shortest_paths` with its goals, a line each."""
    scipy = next((float(row["ratio"]) for row in rows[1:] if "ratio" in row), None)
    workload = rows[0]["workload"]
    return [f"{workload}: {_times_floor(rows[0], 3)}", f"{workload}: {_verdict(scipy, 500)} SciPy"]


def _times_floor(ours: dict, most: float) -> str:
    if "of_floor" not in ours:
        return f"not measured against the floor (goal at most {most:g} x)"
    times = 1 / float(ours["of_floor"])
    return f"{'met' if times <= most else 'MISSED'}: {times:.3g} x the floor (goal {most:g} x)"


def _verdict(ratio: float | None, goal: float) -> str:
    if ratio is None:
        return f"not measured (goal {goal:g} x)"
    return f"{'met' if ratio >= goal else 'MISSED'}: {ratio:.3g} x (goal {goal:g} x)"


def draw(rows: list[dict], path: Path) -> str:
    """Draw the medians as bars, or return why not."""
    try:
        from matplotlib import pyplot
    except ImportError:
        return "no plot: matplotlib is not installed"
    timed = [row for row in rows if row.get("median_us")]
    if not timed:
        return "no plot: nothing was timed"
    workloads = list(dict.fromkeys(row["workload"] for row in timed))
    rivals = list(dict.fromkeys(row["rival"] for row in timed))
    figure, axes = pyplot.subplots(figsize=(10, 1.5 + 0.8 * len(workloads)), layout="constrained")
    for number, rival in enumerate(rivals):
        bars = [row for row in timed if row["rival"] == rival]
        places = [workloads.index(row["workload"]) + 0.8 * number / len(rivals) for row in bars]
        us = [float(row["median_us"]) for row in bars]
        axes.barh(places, us, 0.8 / len(rivals), label=rival, align="edge")
    axes.set_yticks([i + 0.4 for i in range(len(workloads))], workloads)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("µs, median")
    figure.legend(loc="outside lower center", ncols=3)  # inside it would lie on bars
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"plot: {path}"


# --- parts, each in a process of its own ----------------------------------------------------------

PATHS = "shortest_paths"
MARK = "rows: "  # before a line of rows on a part's standard output


def measure(part: str, seconds: float) -> Iterator[list[dict]]:
    """Yield the rows of one part, measured here; no rival starts after `seconds`."""
    deadline, gpu = time.monotonic() + seconds, limits()
    print(
        f"copy {gpu.bandwidth / 1e12:.2f} TB/s, launch {gpu.launch_us:.1f} µs, in a graph ", end=""
    )
    print(
        f"{gpu.graph_launch_us:.1f} µs, {gpu.instructions / 1e12:.1f} T instructions/s", flush=True
    )
    if part == PATHS:
        yield hops_rows(HOPS_COUNT, "cuda", gpu)
        return
    (workload,) = (each for each in WORKLOADS if each.name == part)
    yield from attention_rows(workload, torch.bfloat16, "cuda", gpu, deadline=deadline)


def collect(
    command: list[str], seconds: float, keep: Callable[[list[dict]], None]
) -> tuple[list[dict], str]:
    """Run a part, pass its rows to `keep` as they come; return all, and why it ended early."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    killer = threading.Timer(seconds, process.kill)
    killer.start()
    rows = []
    try:
        for line in process.stdout:
            if line.startswith(MARK):
                batch = json.loads(line.removeprefix(MARK))
                keep(batch)
                rows += batch
            else:
                print(line, end="", flush=True)
        code = process.wait()
    finally:
        killer.cancel()
    return rows, "" if code == 0 else f"ended early, with exit code {code}"


def part_command(part: str, seconds: float) -> list[str]:
    """The command that measures a part and prints its rows."""
    return [sys.executable, __file__, part, f"{seconds:.0f}"]


def main(arguments: list[str]) -> int:
    """Measure everything, keep the rows, and say which goals are met; or measure one part."""
    if not torch.cuda.is_available():
        print("error: no NVIDIA GPU answers (torch.cuda.is_available() is False)", file=sys.stderr)
        return 1
    if arguments:
        for rows in measure(arguments[0], float(arguments[1])):
            print(f"{MARK}{json.dumps(rows)}", flush=True)
        return 0
    return measure_all(torch.cuda.get_device_name())


def measure_all(gpu: str, budget: float = BUDGET, grace: float = GRACE) -> int:
    """Run part after part and print all verdicts; return 1 if a part ended early."""
    deadline = time.monotonic() + budget
    verdicts_on = {PATHS: hop_verdicts}
    verdicts_on |= {x.name: functools.partial(attention_verdicts, x) for x in WORKLOADS}
    attention, verdicts, failed = [], [], False
    for number, (part, verdicts_of_part) in enumerate(verdicts_on.items()):
        share = max(0.0, deadline - time.monotonic()) / (len(verdicts_on) - number)
        print(f"\n{part}: {share:.0f} s, on {gpu}", flush=True)
        file = PATHS if part == PATHS else "coattention"

        def keep(rows: list[dict], file: str = file) -> None:
            measurements.append_gpu(gpu, file, rows)
            show(rows)

        rows, reason = collect(part_command(part, share), share + grace, keep)
        verdicts += verdicts_of_part(rows) if rows else []
        if reason:
            failed = True
            verdicts.append(f"{part}: {reason}")
            print(verdicts[-1], flush=True)
        attention += [] if part == PATHS else rows
    print("", *verdicts, sep="\n", flush=True)
    print(draw(attention, measurements.gpu_path(gpu, "coattention").with_suffix(".png")))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
