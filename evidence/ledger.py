"""The rows of a claim: one a run, only ever added, with where they come from."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from evidence.claim import Metrics, Run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
_CODE = ("collamo", "collamo_kernels", "csrc", "configs", "evidence")
_LIBRARIES = ("torch", "transformers", "rdkit")

Row = Mapping[str, str]


class Ledger:
    """``rows.csv`` and ``details/`` of the claim `name` under `results`."""

    def __init__(self, name: str, results: Path = RESULTS):
        self.folder = results / name
        self._path = self.folder / "rows.csv"

    def rows(self, **settings: object) -> list[Row]:
        """Return the rows whose settings are these."""
        if not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if _fits(row, settings)]

    def details(self, row: Row) -> dict[str, np.ndarray]:
        """Return the arrays that came with a row."""
        with np.load(self.folder / "details" / f"{row['details']}.npz") as arrays:
            return dict(arrays)

    def has(self, run: Run) -> bool:
        """Return whether a run has its row."""
        return bool(self.rows(**run))

    def add(self, run: Run, metrics: Metrics, *, started: datetime.datetime, device: str) -> None:
        """Append the row of a run that has ended."""
        values = dict(metrics)
        details = values.pop("details", None)
        if isinstance(details, Mapping):
            values["details"] = _file_name(run)
            (self.folder / "details").mkdir(parents=True, exist_ok=True)
            np.savez_compressed(self.folder / "details" / f"{values['details']}.npz", **details)
        now = datetime.datetime.now(datetime.UTC)
        row = {
            **run,
            **values,
            "seconds": round((now - started).total_seconds()),
            "started": started.isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(device),
            "versions": " ".join(f"{name}={version(name)}" for name in _LIBRARIES),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            self._write([*self.rows(), {name: str(value) for name, value in row.items()}])

    def _write(self, rows: list[Row]) -> None:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        part = self._path.with_suffix(".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
            writer.writeheader()
            writer.writerows(rows)
        part.replace(self._path)


def _fits(row: Row, settings: Mapping[str, object]) -> bool:
    return all(row.get(name) == str(value) for name, value in settings.items())


def _file_name(run: Run) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, run.values())).lower())


def commit() -> str:
    """Name the code that runs, with ``-dirty`` where files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.stdout.strip()

    changed = git("status", "--porcelain", "--", *_CODE)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def machine(device: str) -> str:
    """Name the kind of machine, never the host."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    name = model[1] if model else platform.machine()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads"
