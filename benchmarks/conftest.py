"""How rivals are compared: in turns in one run, by medians, with the answers checked before.

A run ends with a table per operation, its rows beside the committed ones, and a picture of each in
build/bench.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import measurements
import pytest
import torch

from collamo.benchmark import compare as set_beside
from collamo.benchmark import rows_of_folder
from collamo.benchmark.pictures import picture
from collamo.cli.bench import show_table
from collamo.files import write_text

PICTURES = measurements.HERE.parent / "build" / "bench"
COMMITTED = pytest.StashKey[dict[str, tuple[str, list[dict]]]]()  # `committed` before this run
MEASURED = pytest.StashKey[dict[str, list[dict]]]()  # operation → rows of this run
SHORT = 0.1  # s; what is faster is called once unmeasured first, as the others left cold caches
LONG_ROUNDS = 5  # at most, of what is slower


def pytest_configure(config):
    """Read what is there before this run adds to it: of this kind of machine, else of another."""
    config.stash[COMMITTED], config.stash[MEASURED] = committed(measurements.HERE / "results"), {}


def committed(results):
    """Return operation → (machine, its rows), this kind of machine before any other."""
    here = results / measurements.machine()
    folders = sorted(path for path in results.iterdir() if path != here)
    if here.exists():
        folders.append(here)
    return {
        op: (folder.name, rows) for folder in folders for op, rows in rows_of_folder(folder).items()
    }


def pytest_terminal_summary(terminalreporter, config):
    """Show a table and draw a picture of each operation that was measured."""
    for op, rows in config.stash[MEASURED].items():
        machine, earlier = config.stash[COMMITTED].get(op, ("no machine yet", []))
        terminalreporter.section(f"{op} on {measurements.machine()}")
        terminalreporter.write_line(f"earlier runs: those of {machine}")
        show_table(op, set_beside(rows, earlier))
        drawn = picture(rows)
        if drawn is not None:
            PICTURES.mkdir(parents=True, exist_ok=True)
            write_text(PICTURES / f"{op}.svg", drawn)
            terminalreporter.write_line(str(PICTURES / f"{op}.svg"))


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
        rows = [{"threads": torch.get_num_threads(), **row} for row in rows]
        request.config.stash[MEASURED].setdefault(op, []).extend(rows)

    return run


def _time(call: Callable, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start
