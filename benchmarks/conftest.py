"""How rivals are compared: in turns in one run, by medians, with the answers checked before."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import measurements
import pytest
import torch

SHORT = 0.1  # s; what is faster is called once unmeasured first, as the others left cold caches
LONG_ROUNDS = 5  # at most, of what is slower


@pytest.fixture
def threads(request):
    """Let torch use as many threads as the parameter says."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def compare(benchmark, request):
    """``compare(op, workload, ours, rivals, rounds)``: time all of them in turns and report.

    pytest-benchmark times `ours`; before each of its rounds every rival is timed once. A rival is
    a function, or the reason why it cannot run. The medians go to the screen and to
    ``results/<machine>/<op>.csv``; its column `ratio` is the rival's time over ours. The clock is
    that of ``@pytest.mark.benchmark(timer=…)``, else the wall's.
    """
    mark = request.node.get_closest_marker("benchmark")
    clock = mark.kwargs["timer"] if mark else time.perf_counter

    def run(
        op: str,
        workload: str,
        ours: Callable,
        rivals: dict[str, Callable | str],
        rounds: int,
        floor: float | None = None,
        extra_mib: dict[str, float] | None = None,
    ) -> None:
        times = {name: [] for name, rival in rivals.items() if callable(rival)}
        first = {name: _time(rivals[name], clock) for name in times}

        def rivals_first():
            for name in times:
                if first[name] < SHORT:
                    rivals[name]()
                elif len(times[name]) == LONG_ROUNDS:
                    continue
                times[name].append(_time(rivals[name], clock))
            ours()

        benchmark.pedantic(ours, setup=rivals_first, rounds=rounds)
        median = {name: statistics.median(values) for name, values in times.items()}
        our_median = benchmark.stats.stats.median
        notes = {
            "ours": ""
            if floor is None
            else f"floor {1e3 * floor:.2g} ms: {our_median / floor:.3g} x"
        }
        rows = [
            {
                "workload": workload,
                "rival": name,
                "median_ms": f"{1e3 * seconds:.4g}",
                "ratio": f"{seconds / our_median:.3g}",
                "rounds": len(times.get(name, range(rounds))),
                "extra_mib": (extra_mib or {}).get(name, ""),
                "note": notes.get(name, ""),
            }
            for name, seconds in {"ours": our_median, **median}.items()
        ]
        rows += [
            {"workload": workload, "rival": name, "note": reason}
            for name, reason in rivals.items()
            if not callable(reason)
        ]
        measurements.append(op, rows)
        _show(rows)

    return run


def _time(call: Callable, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def _show(rows: list[dict]) -> None:
    print(f"\n{rows[0]['workload']}, {torch.get_num_threads()} thread(s)")
    for row in rows:
        figures = (row.get(key, "") for key in ("median_ms", "ratio", "extra_mib"))
        print("  {:<28} {:>10} ms {:>8} x {:>8} MiB".format(row["rival"], *figures), row["note"])
