"""The molecules that probes learn from: drawn from a source, prepared once, split by scaffold."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from collamo.data.manifest import MANIFEST
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from collamo.data.qm9 import RECORDS
from collamo.data.sources import SourceRow, open_source
from collamo.data.xyz_file import QM9_COLUMNS
from collamo.files import replacing
from evidence.probe import Molecules

#: Of the molecules, for the test, which shares no scaffold and no parent with the rest.
TEST_SHARE = 1 / 6
SEED = 0  # of sample and split: the molecules are the same for every run


def prepared(folder: Path, write_source: Callable[[], str | Path], **options: Any) -> PreparedData:
    """Return what `folder` holds, prepared from ``write_source()`` if it is not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / MANIFEST).exists():
            own = {"split": (1 - TEST_SHARE, 0.0, TEST_SHARE), **options}
            chosen = PrepareOptions(seed=SEED, **own)
            prepare(write_source(), folder, chosen, max_reject_rate=1.0)
    return PreparedData.open(folder)


def molecules_of(
    data: PreparedData, split: str, targets: Sequence[str], unit: str | None = None
) -> Molecules:
    """Return the molecules of a split with the values of their questions about `targets`.

    A molecule that lacks one is left out. `unit` names the target that says what rows are of.
    """
    values = {(task.molecule, task.target): task.value for task in data.tasks(split)}
    features = data.molecules(split)
    rows = [row for row in features if all((row, target) in values for target in targets)]
    numbers = np.array([[values[row, target] for target in targets] for row in rows])
    units = rows if unit is None else [values[row, unit] for row in rows]
    return Molecules([features[row] for row in rows], numbers, units)


def qm9_sample(path: Path, count: int) -> Path:
    """Write `count` molecules of QM9, drawn at random, as a file in QM9's own layout."""
    chosen = set(random.Random(SEED).sample(range(1, RECORDS + 1), count))
    columns = [*QM9_COLUMNS]
    source = open_source("qm9", measured_columns=columns)
    with replacing(path) as part, Path(part).open("w", encoding="utf-8") as file:
        for row in source:
            if row.number in chosen and row.problem is None:
                file.write(_qm9_record(row))
    return path


def _qm9_record(row: SourceRow) -> str:
    """Return a row of the wheel as a file of QM9's: see `collamo.data.xyz_file`."""
    count, comment, *atoms = row.text.rstrip("\n").split("\n")
    numbers = " ".join(row.columns[name] for name in QM9_COLUMNS)
    head = f"{count}\ngdb {row.number} 0 0 0 {numbers}\n"
    return head + "\n".join([*atoms, "", comment.split()[0], ""]) + "\n"
