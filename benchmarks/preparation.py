"""`collamo prepare` on a file: rows a second and the memory of all its processes together.

    python benchmarks/preparation.py moses_train.csv.gz 1000000 --no-conformers

Linux only. A row goes to ``results/<machine>/preparation.csv``.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import measurements

from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare

INTERVAL = 1.0  # s between two looks at the memory
watching = 0.0  # s of processor time that looking took: beside other work a fifth of the run


def main() -> None:
    """Prepare into a folder that is deleted again, print the figures and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("rows", type=int)
    parser.add_argument("--no-conformers", dest="conformers", action="store_false")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    options = PrepareOptions(limit=arguments.rows, conformers=arguments.conformers)
    with tempfile.TemporaryDirectory() as folder, watched_memory() as memory:
        start, processor = time.monotonic(), processor_seconds()
        manifest = prepare(arguments.source, folder, options, workers=arguments.workers)
        seconds, processor = time.monotonic() - start, processor_seconds() - processor
    rows = manifest.rows["in"]
    what = "with conformers" if arguments.conformers else "without conformers"
    workload = f"{rows:,} rows of {manifest.source} {what}"
    note = f"{rows / seconds:.0f} rows/s; {1e3 * processor / rows:.2f} ms of processor time a row"
    print(f"{workload}, {arguments.workers} workers: {note}; {max(memory):.0f} MiB at most")
    row = {"workload": workload, "threads": arguments.workers, "rival": "ours", "rounds": 1}
    row |= {"median_ms": f"{1e3 * seconds:.4g}", "extra_mib": f"{max(memory):.0f}", "note": note}
    print(measurements.append("preparation", [row]))


def processor_seconds() -> float:
    """Return the processor time [s] of this process, without the watch, and of ended workers."""
    import resource

    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) - watching


@contextmanager
def watched_memory():
    """Yield a list to which the memory [MiB] of this process and its workers is added."""
    memory, done = [0.0], threading.Event()

    def watch():
        global watching
        while not done.wait(INTERVAL):
            memory.append(sum(map(resident, [Path("/proc/self"), *workers()])))
            watching = time.thread_time()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()


def workers() -> list[Path]:
    """Return the child processes of this one."""
    lists = Path("/proc/self/task").glob("*/children")
    return [Path("/proc") / child for file in lists for child in file.read_text().split()]


def resident(process: Path) -> float:
    """Return the memory [MiB] that a process holds; pages that several hold count in parts."""
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0.0
    return next(float(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
