"""Calls timed in turns in one process, by medians: what slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from collamo.benchmark.workloads import Workload

ROUNDS, FEWEST = 21, 3
SECONDS = 3.0  # of one contender in all; then the others go on without it
SHORT = 0.1  # s; what is faster is called once unmeasured first, as the others left cold caches


def measure(workload: Workload, rounds: int = ROUNDS, seconds: float = SECONDS) -> list[dict]:
    """Time ours and its rivals in turns; return a row each, ours first.

    A row has workload, rival, median_ms, ratio (the rival's time over ours) and rounds, or the
    reason why a rival did not run as its note.
    """
    rivals = {name: call for name, call in workload.rivals.items() if callable(call)}
    times = in_turns({"ours": workload.ours, **rivals}, rounds, seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    rows: list[dict] = [
        {
            "workload": workload.name,
            "rival": name,
            "median_ms": f"{1e3 * value:.4g}",
            "ratio": f"{value / median['ours']:.3g}",
            "rounds": len(times[name]),
            "note": "",
        }
        for name, value in median.items()
    ]
    rows += [
        {"workload": workload.name, "rival": name, "note": reason}
        for name, reason in workload.rivals.items()
        if not callable(reason)
    ]
    return rows


def in_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Return the times [s] of each call, at most `rounds`, no more once they add up to `seconds`.

    Each is measured `FEWEST` times at least.
    """
    first = {name: _time(call) for name, call in calls.items()}  # unmeasured: it warms up
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if len(times[name]) >= FEWEST and sum(times[name]) >= seconds:
                continue
            if first[name] < SHORT:
                call()
            times[name].append(_time(call))
    return times


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
