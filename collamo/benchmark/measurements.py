"""Rows of measurements: kept as CSV, an operation a file, and set beside earlier ones."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = (
    *("date", "workload", "threads", "rival", "median_ms", "ratio", "rounds"),
    *("versions", "note"),
)
FEWEST = 3  # runs that make a range
RUNS = 5  # earlier ones that count, the newest: those before are of older code

Row = Mapping[str, object]


@dataclass(frozen=True)
class Comparison:
    """A row of this run beside the same one of earlier runs.

    `earlier` has their ratios to ours, and for ours itself their milliseconds, newest last.
    """

    workload: str
    rival: str
    median_ms: float | None
    ratio: float | None
    note: str
    earlier: tuple[float, ...]

    @property
    def now(self) -> float | None:
        """What is compared: of ours the milliseconds, of a rival how many times ours it takes."""
        return self.median_ms if self.rival == "ours" else self.ratio

    @property
    def verdict(self) -> str:
        """Say whether it lies outside what `FEWEST` earlier runs or more have seen."""
        if self.now is None or len(self.earlier) < FEWEST:
            return ""
        if self.now < min(self.earlier):
            return "below all of them"
        return "above all of them" if self.now > max(self.earlier) else ""

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return rival, time, ratio, the earlier runs and what is to be said, as words."""
        time = "" if self.median_ms is None else f"{self.median_ms:,.4g} ms"
        ratio = "" if self.ratio is None else f"{self.ratio:.3g} ×"
        unit = "ms" if self.rival == "ours" else "×"
        words = f"{spread(self.earlier)} {unit}" if self.earlier else ""
        return self.rival, time, ratio, words, self.note or self.verdict


def spread(values: Sequence[float]) -> str:
    """Return the median of values with the least and the largest behind it.

    Examples
    --------
    >>> spread([57.2, 55, 66]), spread([3]), spread([1234.5])
    ('57.2 (55 to 66)', '3', '1,234')
    """
    middle, low, high = (
        f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def compare(rows: Iterable[Row], earlier: Iterable[Row]) -> list[Comparison]:
    """Set each row beside the last `RUNS` earlier ones of its workload, rival and threads."""
    before: dict[tuple[str, ...], list[Row]] = {}
    for row in earlier:
        before.setdefault(_key(row), []).append(row)
    return [_compared(row, before.get(_key(row), [])[-RUNS:]) for row in rows]


def _compared(row: Row, before: Sequence[Row]) -> Comparison:
    rival = str(row["rival"])
    what = "median_ms" if rival == "ours" else "ratio"
    numbers = (number_of(each, what) for each in before)
    return Comparison(
        str(row["workload"]),
        rival,
        number_of(row, "median_ms"),
        number_of(row, "ratio"),
        str(row.get("note") or ""),
        tuple(number for number in numbers if number is not None),
    )


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in ("workload", "rival", "threads"))


def number_of(row: Row, name: str) -> float | None:
    """Return a number of a row; None where it has none."""
    text = row.get(name)
    return float(str(text)) if text not in (None, "") else None


def rows_of_folder(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Return operation → rows of every CSV of a folder that holds times and ratios."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if {"workload", "rival", "median_ms", "ratio"} <= set(reader.fieldnames or ()):
                found[path.stem] = list(reader)
    return found


def append_rows(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Add rows to a CSV, with a header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)
