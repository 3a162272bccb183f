"""Time on a GPU: by events, in a CUDA graph, of the host alone, kernel by kernel.

Medians in µs; who competes is called in turns, and the L2 cache is overwritten before each call.
`median_us` is what a caller waits for, from event to event, the host's work between launches
included. `graph_us` is the replay of a CUDA graph: the kernels and the gaps between them, without
the host. `host_us` is what Python and the launches take of the processor, the GPU's queue being
empty.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence

import layer_model
import torch

WARMUP = 3
CACHE = 256 << 20  # bytes written before each timed call, several times the L2
MIB = 1 << 20
PROFILED = 5  # calls


@dataclasses.dataclass(frozen=True)
class Limits:
    """Measured bandwidth (bytes/s, read and written), µs of a launch, and what the GPU says."""

    bandwidth: float
    launch_us: float
    graph_launch_us: float
    processors: int
    clock: float  # Hz

    def machine(self) -> layer_model.Machine:
        """Return it as the model takes it."""
        return layer_model.Machine(self.bandwidth, self.processors, self.clock)


def limits() -> Limits:
    """Measure this GPU."""
    source = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    target, one = torch.empty_like(source), torch.zeros(1, device="cuda")
    copies = {"copy": lambda: target.copy_(source), "launch": one.zero_}
    copies["graph"] = captured(one.zero_)
    us = {name: statistics.median(values) for name, values in time_all(copies, 20).items()}
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    bandwidth = 2 * source.numel() / (us["copy"] * 1e-6)
    return Limits(bandwidth, us["launch"], us["graph"], processors, clock_hz())


def clock_hz() -> float:
    """Return the highest clock of the multiprocessors; infinite, with a warning, if unknown."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return 1e6 * float(answer.split()[0])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        print(f"warning: no clock from nvidia-smi, so floors count bytes alone: {error}")
        return float("inf")


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
            us = _events(call) if on_gpu else wall(call)
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


def wall(call: Callable) -> float:
    """Return µs by the clock."""
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


def host_us(call: Callable, rounds: int) -> float:
    """Return µs of the processor until the call returns, nothing else being under way."""
    times = []
    for turn in range(WARMUP + rounds):
        _synchronize()
        us = wall(call)
        if turn >= WARMUP:
            times.append(us)
    _synchronize()
    return statistics.median(times)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def kernel_us(call: Callable) -> dict[str, tuple[float, float]]:
    """Return launches and µs a call of every kernel, as the profiler sees them on the GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED):
            call()
        _synchronize()
    return sum_up(profile.events())


def sum_up(events: Sequence, calls: int = PROFILED) -> dict[str, tuple[float, float]]:
    """Sum the events on the GPU by their names: launches and µs a call, the longest first."""
    launches, us = collections.Counter[str](), collections.Counter[str]()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            launches[event.name] += 1
            us[event.name] += event.time_range.elapsed_us()
    return {name: (launches[name] / calls, time / calls) for name, time in us.most_common()}


def compared(
    workload: str,
    ours: Callable,
    rivals: dict[str, Callable | str],
    rounds: int,
    floor: float | None = None,
    memory: bool = True,
) -> list[dict]:
    """Time ours and the rivals in turns; one row each, of the columns of `measurements`.

    Ratios are a rival's time over ours: of what callers wait for, and of the graphs.
    """
    calls = {"ours": ours, **{name: call for name, call in rivals.items() if callable(call)}}
    times = time_all(calls, rounds)
    replays, reasons = try_captured(calls) if torch.cuda.is_available() else ({}, {})
    graphs = {name: statistics.median(us) for name, us in time_all(replays, rounds).items()}
    median = {name: statistics.median(us) for name, us in times.items()}
    rows = []
    for name, us in median.items():
        row = {"workload": workload, "rival": name, "rounds": rounds, "note": reasons.get(name, "")}
        row |= {"median_us": f"{us:.4g}", "ratio": f"{us / median['ours']:.3g}"}
        row["host_us"] = f"{host_us(calls[name], rounds):.4g}"
        if name in graphs:
            row["graph_us"] = f"{graphs[name]:.4g}"
            if "ours" in graphs:
                row["graph_ratio"] = f"{graphs[name] / graphs['ours']:.3g}"
        if memory and (peak := peak_mib(calls[name])) != "":
            row["peak_mib"] = f"{peak:.4g}"
        if floor is not None and name == "ours":
            best = min(us, graphs.get(name, us))
            row |= {"floor_us": f"{floor:.4g}", "of_floor": f"{floor / best:.3g}"}
        rows.append(row)
    absent = {name: reason for name, reason in rivals.items() if not callable(reason)}
    return rows + [{"workload": workload, "rival": x, "note": y} for x, y in absent.items()]
