"""Two evaluations of the same rows: paired intervals of the differences, and what changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from collamo.errors import UsageError
from collamo.evaluation.predictions import COLUMNS, task_scores
from collamo.evaluation.statistics import LEVEL, RESAMPLES, Sums

# What two evaluations must have in common, for their scores to mean the same.
SAME = (
    "task",
    "tokenizer",
    "tokenizer_sha256",
    "wordnet_sha256",
    "unit",
    "train_mean",
    "entities",
    "entities_sha256",
    "entities_confidence",
    "entities_kinds",
)
CHUNK = 50  # resamples at a time: 100,000 rows take 40 MB of weights


@dataclass(frozen=True)
class Difference:
    """A score of both evaluations and ``b − a`` with its 95 % interval from paired resamples."""

    name: str
    a: float
    b: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Return whether the interval excludes no difference."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `changed` are the numbers of the rows with another prediction."""

    rows: int
    changed: list[int]
    differences: list[Difference]


def compare(a: Path, b: Path, *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Compare two folders that `collamo evaluate --predictions` wrote for the same references.

    Paired bootstrap: rows are drawn with replacement, the same rows for both, and the difference of
    every score is taken on each draw; the interval is its percentiles.

    Raises
    ------
    UsageError
        When a folder holds no evaluation, or the two differ in task, tokeniser, unit or references.
    """
    (about_a, rows_a), (about_b, rows_b) = _read(a), _read(b)
    for key in SAME:
        if about_a.get(key) != about_b.get(key):
            raise UsageError(
                f"{a} and {b} differ in {key}: {about_a.get(key)} and {about_b.get(key)}; evaluate "
                "both the same way"
            )
    for column in ("row", "reference", "group"):
        if rows_a[column] != rows_b[column]:
            raise UsageError(f"{a} and {b} differ in column {column!r}: not the same questions")
    pairs = zip(*(t["prediction"].to_pylist() for t in (rows_a, rows_b)), strict=True)
    numbers = rows_a["row"].to_pylist()
    changed = [number for number, (one, other) in zip(numbers, pairs, strict=True) if one != other]
    differences = _differences(about_a, rows_a, rows_b, seed, resamples)
    return Comparison(len(numbers), changed, differences)


def _read(folder: Path):
    try:
        manifest = json.loads((folder / "report.json").read_text(encoding="utf-8"))["manifest"]
        return manifest, pq.read_table(folder / "rows.parquet")
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{folder} is no evaluation of a predictions file ({type(error).__name__}); make one "
            "with collamo evaluate --predictions"
        ) from None


def _differences(about, rows_a, rows_b, seed, resamples) -> list[Difference]:
    names = COLUMNS[about["task"]]
    tables = [_matrix(rows, names) for rows in (rows_a, rows_b)]
    count = len(rows_a)
    whole = [_scores(about, names, *_sums(table, np.ones((1, count))))[0] for table in tables]
    rng = np.random.default_rng(seed)
    drawn: list[list[dict[str, float]]] = [[], []]
    for start in range(0, resamples if count else 0, CHUNK):
        size = min(CHUNK, resamples - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(float)
        for scores, table in zip(drawn, tables, strict=True):
            scores += _scores(about, names, *_sums(table, weights))
    tail = (1 - LEVEL) / 2
    found = []
    for name in whole[0]:
        draws = [y[name] - x[name] for x, y in zip(*drawn, strict=True) if name in x and name in y]
        if name in whole[1] and draws:
            low, high = np.quantile(draws, [tail, 1 - tail])
            found.append(Difference(name, whole[0][name], whole[1][name], float(low), float(high)))
    return found


def _matrix(rows, names) -> tuple[np.ndarray, np.ndarray]:
    """Return (values with 0 for null, 1 where there is a value), both [rows, columns]."""
    columns = [rows[name].to_numpy() for name in names]
    table = np.stack([column.astype(float) for column in columns], axis=1)
    given = ~np.isnan(table)
    return np.where(given, table, 0.0), given.astype(float)


def _sums(table, weights) -> tuple[np.ndarray, np.ndarray]:
    values, given = table
    return weights @ values, weights @ given


def _scores(about, names, totals, counts) -> list[dict[str, float]]:
    found = []
    for total, count in zip(totals, counts, strict=True):
        kept = [index for index in range(len(names)) if count[index]]
        sums = Sums({names[i]: total[i] for i in kept}, {names[i]: count[i] for i in kept})
        found.append(task_scores(about["task"], sums, about.get("unit")))
    return found
