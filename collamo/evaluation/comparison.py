"""Two evaluations of the same rows: paired intervals of the differences, and what changed."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collamo.errors import UsageError
from collamo.evaluation.examine.scores import SPLIT_COLUMNS, split_scores
from collamo.evaluation.judge.rubric import TAKEN
from collamo.evaluation.score.tasks import COLUMNS, task_scores
from collamo.evaluation.statistics import (
    RESAMPLES,
    Estimate,
    Scored,
    Sums,
    UnitSums,
    differences,
    resampled,
)


@dataclass(frozen=True)
class Difference:
    """A score of both evaluations, and ``b − a`` with its 95 % interval from paired resamples."""

    name: str
    a: float
    b: float
    change: Estimate


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `changed` are the numbers of the rows with another prediction."""

    rows: int
    changed: list[int]
    differences: list[Difference]


# Entries of the manifest that must be equal, or the scores do not mean the same.
SAME = (
    *("judge_model", "prompt_sha256", "parameters"),
    *("split", "data_sha256"),
    *("task", "unit", "train_mean"),
    *("tokenizer", "tokenizer_sha256", "wordnet_sha256"),
    *("entities", "entities_sha256", "entities_confidence", "entities_kinds"),
)


def compare(a: Path, b: Path, *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Compare two folders that `collamo evaluate` wrote, two models on the same questions of a
    split or two predictions files with the same references; or two that `collamo judge` wrote, by
    the same judge and prompt, of a file each.

    Paired bootstrap: rows (of a split: molecules with all their questions) are drawn with
    replacement, the same ones for both, and the difference of every score is taken on each draw;
    the interval is its percentiles. Scores of a split are named ``task › score``.

    Raises
    ------
    UsageError
        When a folder holds no evaluation, or one that compares two files already, or the two differ
        in task, data, tokeniser, unit, judge or references.
    """
    (about_a, rows_a), (about_b, rows_b) = _read(a), _read(b)
    for key in SAME:
        if about_a.get(key) != about_b.get(key):
            raise UsageError(
                f"{a} and {b} differ in {key}: {about_a.get(key)} and {about_b.get(key)}; evaluate "
                "both the same way"
            )
    asked = ("row", "task", "group", "molecule", "question", "reference")
    for column in (name for name in asked if name in rows_a.column_names):
        if rows_a[column] != rows_b[column]:
            raise UsageError(f"{a} and {b} differ in column {column!r}: not the same questions")
    pairs = zip(*(t["prediction"].to_pylist() for t in (rows_a, rows_b)), strict=True)
    numbers = rows_a["row"].to_pylist()
    changed = [number for number, (one, other) in zip(numbers, pairs, strict=True) if one != other]
    all_differences = []
    for part in _parts(about_a, rows_a):
        sets = [part.sums(rows) for rows in (rows_a, rows_b)]
        one, other = resampled(sets, part.score, seed=seed, resamples=resamples)
        all_differences += [
            Difference(part.prefix + name, one[0][name], other[0][name], change)
            for name, change in differences(one, other).items()
        ]
    return Comparison(len(numbers), changed, all_differences)


def _read(folder: Path) -> tuple[dict[str, Any], pa.Table]:
    try:
        manifest = json.loads((folder / "report.json").read_text(encoding="utf-8"))["manifest"]
        rows = pq.read_table(folder / "rows.parquet")
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{folder} holds no evaluation ({type(error).__name__}); make one with "
            "`collamo evaluate` or `collamo judge`"
        ) from None
    if "judge_model" in manifest and len(manifest["predictions"]) == 2:
        raise UsageError(
            f"{folder} compares two files already: its report.json says which the judge prefers; "
            "to compare their grades, judge each file by itself"
        )
    return manifest, rows


@dataclass(frozen=True)
class _Part:
    """Rows that are scored together: their places, their units, and the score of their sums."""

    prefix: str
    places: np.ndarray
    units: Sequence[Hashable]
    columns: Sequence[str]
    score: Scored

    def sums(self, rows: pa.Table) -> UnitSums:
        part = rows.take(self.places)
        columns = [part[name].to_numpy().astype(float) for name in self.columns]
        order = list(dict.fromkeys(self.units))
        return UnitSums(self.columns, np.stack(columns, axis=1), self.units, order)


def _parts(about: Mapping[str, Any], rows: pa.Table) -> list[_Part]:
    """Return the one part of a predictions or judged file, or a part per task of a split."""
    if "judge_model" in about:
        criteria = [name for name in rows.column_names if name not in TAKEN]
        units = rows["row"].to_pylist()
        return [
            _Part("", np.arange(len(rows)), units, criteria, partial(Sums.means, columns=criteria))
        ]
    if "task" in about:
        score = partial(task_scores, about["task"], unit=about.get("unit"))
        units = rows["row"].to_pylist()
        return [_Part("", np.arange(len(rows)), units, COLUMNS[about["task"]], score)]
    tasks, molecules = np.array(rows["task"].to_pylist()), rows["molecule"].to_pylist()
    parts = []
    for task in sorted(set(tasks.tolist())):
        places = np.flatnonzero(tasks == task)
        units = [molecules[place] for place in places]
        score = partial(split_scores, task)
        parts.append(_Part(f"{task} › ", places, units, SPLIT_COLUMNS, score))
    return parts
