"""Where measurements are kept: one CSV per operation and kind of machine, rows only ever added.

    python benchmarks/measurements.py FOLDER

adds the rows of a run on a GPU (``make gpu-test``, ``make gpu-bench``), which stand in FOLDER, to
``results/<gpu>/``, and draws its attention.
"""

from __future__ import annotations

import csv
import datetime
import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

HERE = Path(__file__).parent
COLUMNS = ("date", "commit", "workload", "threads", "rival", "median_ms", "ratio", "rounds")
COLUMNS += ("extra_mib", "versions", "note")
# What stands in every row from a GPU: `sources` names the code without git.
ON_GPU = ("date", "commit", "sources", "gpu", "versions")
TIMES = ("workload", "rival", "right", "median_us", "graph_us", "host_us", "ratio", "graph_ratio")
TIMES += ("floor_us", "of_floor", "rounds", "peak_mib", "note")
GPU_TABLES = {
    "buckets": ("dtype", "width", "bucket", "doubted", "right", "seconds", "note"),
    "coattention": TIMES,
    "shortest_paths": TIMES,
    "kernels": ("workload", "kernel", "launches", "median_us", "predicted_us", "note"),
    "tests": ("piece", "passed", "seconds", "note"),
}
CODE = (
    "collamo_kernels",
    "csrc",
    "setup.py",
    "tests/kernels",
    "benchmarks",
)  # what `sources` is of
MARK = "rows: "  # before rows on a process's standard output
RIVALS = ("rdkit", "scipy", "networkx", "torch_geometric")
GPU_RIVALS = ("triton", "scipy")
_LOCK = threading.Lock()  # pieces end side by side


def machine() -> str:
    """Name the kind of machine: ``amd-epyc-avx512-2cores``, never the host."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = re.search(r"model name\s*:\s*(.*)", info.read_text())[1]
    return slug(f"{model} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}cores")


@functools.cache  # the results themselves make the tree dirty
def commit() -> str:
    """Name the code that ran, with ``-dirty`` where files differ from it; "unknown" without git."""
    describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        answer = subprocess.run(describe, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # there is no git
        return "unknown"
    return answer.stdout.strip() or "unknown"


@functools.cache
def sources() -> str:
    """Name the code that ran by what it says: rows of the same sources need not be made again."""
    digest = hashlib.sha256()
    for name in CODE:
        root = HERE.parent / name
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.suffix in (".py", ".cpp", ".cu", ".h", ".cuh"):
                digest.update(f"{path.relative_to(HERE.parent)}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def slug(words: str) -> str:
    """Name a folder after words: ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def append(op: str, rows: Iterable[dict]) -> Path:
    """Add rows to ``results/<machine>/<op>.csv``; each has a key of `COLUMNS` where it is known."""
    common = {"date": _today(), "commit": commit(), "threads": torch.get_num_threads()}
    common |= {"versions": _versions(RIVALS)}
    path = HERE / "results" / machine() / f"{op}.csv"
    return _append(path, COLUMNS, ({**common, **row} for row in rows))


def append_gpu(folder: Path, table: str, gpu: str, rows: Iterable[dict]) -> Path:
    """Add rows to ``<folder>/<table>.csv``, likewise with the columns of `GPU_TABLES`."""
    versions = f"{_versions(GPU_RIVALS)} cuda={torch.version.cuda}"
    common = {"date": _today(), "commit": commit(), "sources": sources(), "gpu": gpu}
    common |= {"versions": versions}
    columns = ON_GPU + GPU_TABLES[table]
    return _append(folder / f"{table}.csv", columns, ({**common, **row} for row in rows))


def rows_of(folder: Path, table: str) -> list[dict[str, str]]:
    """Return the rows of a table in a folder; none where it is not there."""
    path = folder / f"{table}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rows_of_these_sources(folder: Path, table: str, gpu: str) -> list[dict[str, str]]:
    """Return what an earlier run of the same code on the same kind of GPU left there."""
    every = rows_of(folder, table)
    return [row for row in every if (row["sources"], row["gpu"]) == (sources(), gpu)]


def tell(table: str, rows: list[dict]) -> None:
    """Hand rows to the process that started this one: see `listener`."""
    print(f"{MARK}{json.dumps([table, rows])}", flush=True)


def listener(
    folder: Path, gpu: str, each: Callable[[str, list[dict]], None] | None = None
) -> Callable[[str], bool]:
    """Return what keeps rows that another process told: it says of a line whether it was one."""

    def take(line: str) -> bool:
        if not line.startswith(MARK):
            return False
        table, rows = json.loads(line.removeprefix(MARK))
        append_gpu(folder, table, gpu, rows)
        if each is not None:
            each(table, rows)
        return True

    return take


def keep(folder: Path, results: Path = HERE / "results") -> list[Path]:
    """Add the rows of a run to ``results/<gpu>/``, but for those that are there already."""
    files = []
    for table, own in GPU_TABLES.items():
        rows = rows_of(folder, table)
        for gpu in dict.fromkeys(row["gpu"] for row in rows):
            target = results / slug(gpu)
            there = rows_of(target, table)
            new = [row for row in rows if row["gpu"] == gpu and row not in there]
            files.append(_append(target / f"{table}.csv", ON_GPU + own, new))
    return files


def draw(rows: list[dict], path: Path) -> Path | None:
    """Draw medians as bars; nothing where none was measured."""
    from matplotlib import pyplot

    timed = [row for row in rows if row.get("median_us")]
    if not timed:
        return None
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _today() -> str:
    return datetime.date.today().isoformat()


def _versions(packages: Iterable[str]) -> str:
    words = [f"python={platform.python_version()}", f"torch={torch.__version__}"]
    for name in packages:
        try:
            words.append(f"{name}={version(name)}")
        except PackageNotFoundError:  # then it was no rival
            continue
    return " ".join(words)


def _append(path: Path, columns: tuple[str, ...], rows: Iterable[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK, path.open("a", newline="") as file:
        new = file.tell() == 0
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    return path


def main(folder: str) -> None:
    """Keep the rows of a run, and draw its attention."""
    for path in keep(Path(folder)):
        print(path)
        if path.stem == "coattention":
            print(draw(rows_of(path.parent, path.stem), path.with_suffix(".png")))


if __name__ == "__main__":
    main(*sys.argv[1:])
