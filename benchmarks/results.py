"""Where measurements are kept: one CSV per operation and kind of machine, rows only ever added."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).parent
COLUMNS = ("date", "commit", "workload", "threads", "rival", "median_ms", "ratio", "rounds")
COLUMNS += ("extra_mib", "versions", "note")
RIVALS = ("rdkit", "scipy", "networkx")


def machine() -> str:
    """Name the kind of machine: ``amd-epyc-avx512-2cores``, never the host."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = re.search(r"model name\s*:\s*(.*)", info.read_text())[1]
    words = f"{model} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def commit() -> str:
    """Name the code that ran, with ``-dirty`` where files differ from it."""
    describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude", "*"]
    answer = subprocess.run(describe, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def append(op: str, rows: Iterable[dict]) -> Path:
    """Add rows to ``results/<machine>/<op>.csv``; each has a key of `COLUMNS` where it is known."""
    path = HERE / "results" / machine() / f"{op}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    versions = " ".join(f"{name}={version(name)}" for name in RIVALS)
    common = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "versions": f"python={platform.python_version()} torch={torch.__version__} {versions}",
    }
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows({**common, **row} for row in rows)
    return path
