"""Where measurements are kept: one CSV per operation and kind of machine, rows only ever added."""

from __future__ import annotations

import csv
import datetime
import functools
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

HERE = Path(__file__).parent
COLUMNS = ("date", "commit", "workload", "threads", "rival", "median_ms", "ratio", "rounds")
COLUMNS += ("extra_mib", "versions", "note")
GPU_COLUMNS = ("date", "commit", "workload", "rival", "median_us", "graph_us", "ratio", "floor_us")
GPU_COLUMNS += ("of_floor", "rounds", "peak_mib", "versions", "note")
RIVALS = ("rdkit", "scipy", "networkx", "torch_geometric")
GPU_RIVALS = ("triton", "scipy")


def machine() -> str:
    """Name the kind of machine: ``amd-epyc-avx512-2cores``, never the host."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = re.search(r"model name\s*:\s*(.*)", info.read_text())[1]
    return slug(f"{model} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}cores")


@functools.cache  # the results themselves make the tree dirty
def commit() -> str:
    """Name the code that ran, with ``-dirty`` where files differ from it."""
    describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude", "*"]
    answer = subprocess.run(describe, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def slug(words: str) -> str:
    """Name a folder after words: ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def append(op: str, rows: Iterable[dict]) -> Path:
    """Add rows to ``results/<machine>/<op>.csv``; each has a key of `COLUMNS` where it is known."""
    common = {"threads": torch.get_num_threads(), "versions": _versions(RIVALS)}
    return _append(_path(machine(), op), COLUMNS, common, rows)


def append_gpu(gpu: str, op: str, rows: Iterable[dict]) -> Path:
    """Add rows to ``results/<gpu>/<op>.csv``, likewise with `GPU_COLUMNS`."""
    versions = f"{_versions(GPU_RIVALS)} cuda={torch.version.cuda}"
    return _append(gpu_path(gpu, op), GPU_COLUMNS, {"versions": versions}, rows)


def gpu_path(gpu: str, op: str) -> Path:
    """Return where `append_gpu` adds rows."""
    return _path(slug(gpu), op)


def _path(folder: str, op: str) -> Path:
    return HERE / "results" / folder / f"{op}.csv"


def _versions(packages: Iterable[str]) -> str:
    words = [f"python={platform.python_version()}", f"torch={torch.__version__}"]
    for name in packages:
        try:
            words.append(f"{name}={version(name)}")
        except PackageNotFoundError:  # then it was no rival
            continue
    return " ".join(words)


def _append(path: Path, columns: tuple[str, ...], common: dict, rows: Iterable[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    common = {"date": datetime.date.today().isoformat(), "commit": commit(), **common}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({**common, **row} for row in rows)
    return path
