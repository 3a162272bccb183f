"""`collamo prepare` on a file: rows a second and the memory of all its processes together.

    python benchmarks/preparation.py moses_train.csv.gz 1000000 --no-conformers

Linux only. A row goes to ``results/<machine>/preparation.csv``. With ``--out FOLDER`` the prepared
data stay, and the same command goes on where it was cut off: ``FOLDER.runs.json`` adds up what all
runs took, also of one that was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import measurements

from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.files import write_text

INTERVAL = 2.0  # s between two looks at the memory, which take some 10 ms each
TICK = 1 / os.sysconf("SC_CLK_TCK")  # s


def main() -> None:
    """Prepare, print the figures and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("rows", type=int)
    parser.add_argument("--no-conformers", dest="conformers", action="store_false")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep the data here, and go on with what is there")
    arguments = parser.parse_args()
    options = PrepareOptions(limit=arguments.rows, conformers=arguments.conformers)
    with ExitStack() as stack:
        folder = arguments.out or Path(stack.enter_context(tempfile.TemporaryDirectory()), "out")
        with Watch(folder.with_name(f"{folder.name}.runs.json")) as watch:
            manifest = prepare(arguments.source, folder, options, workers=arguments.workers)
    rows, took = manifest.rows["in"], watch.figures()
    what = "with conformers" if arguments.conformers else "without conformers"
    workload = f"{rows:,} rows of {manifest.source} {what}"
    note = f"{rows / took['seconds']:.0f} rows/s; "
    note += f"{1e3 * took['processor'] / rows:.2f} ms of processor time a row"
    note += f", in {took['runs']} runs" if took["runs"] > 1 else ""
    print(f"{workload}, {arguments.workers} workers: {note}; {took['mib']:.0f} MiB at most")
    row = {"workload": workload, "threads": arguments.workers, "rival": "ours"}
    row |= {"rounds": 1, "median_ms": f"{1e3 * took['seconds']:.4g}", "note": note}
    print(measurements.append("preparation", [row | {"extra_mib": f"{took['mib']:.0f}"}]))


class Watch:
    """Looks at this process and its workers, and writes down what they take.

    The file holds the sums of earlier runs too: seconds on the clock, seconds of processor time
    without the watch's own, and the largest memory [MiB].
    """

    def __init__(self, file: Path):
        self._file = file
        self._before = {"runs": 0, "seconds": 0.0, "processor": 0.0, "mib": 0.0}
        if file.exists():
            self._before = json.loads(file.read_text())
        self._mib, self._watching = self._before["mib"], 0.0
        self._start, self._processor = time.monotonic(), processor_seconds()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop, and write down the last figures."""
        self._done.set()
        self._thread.join()
        self._write()

    def figures(self) -> dict[str, float]:
        """Return the sums so far."""
        processor = processor_seconds() - self._processor - self._watching
        return {
            "runs": self._before["runs"] + 1,
            "seconds": self._before["seconds"] + time.monotonic() - self._start,
            "processor": self._before["processor"] + processor,
            "mib": self._mib,
        }

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._mib = max(self._mib, sum(map(resident, [Path("/proc/self"), *workers()])))
            self._write()
            self._watching = time.thread_time()

    def _write(self) -> None:
        write_text(self._file, json.dumps(self.figures()) + "\n")


def processor_seconds() -> float:
    """Return the processor time [s] of this process, its ended workers and those at work."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ended = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return ended + sum(map(processor_seconds_of, workers()))


def processor_seconds_of(process: Path) -> float:
    """Return the processor time [s] of a process; 0 when it has ended."""
    try:
        fields = (process / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return TICK * (int(fields[11]) + int(fields[12]))  # utime, stime


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
