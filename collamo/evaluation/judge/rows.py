"""Rows that a judge sees: of one predictions file, or of two side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from collamo.errors import UsageError
from collamo.evaluation.score.predictions import PredictionRow, read_predictions


@dataclass
class JudgedRow(PredictionRow):
    """A row with the prediction of the other file, where two are compared, and the answers."""

    other: str = ""
    answer: str = ""
    swapped_answer: str = ""

    @property
    def molecule_shown(self) -> str:
        """Return the molecule as a prompt shows it."""
        return self.molecule or "not given"


def rows_of_one(path: Path) -> Iterator[JudgedRow]:
    """Yield the rows of a file."""
    for row in read_predictions(path, "captions"):
        yield JudgedRow(**vars(row))


def rows_of_two(path: Path, other: Path) -> Iterator[JudgedRow]:
    """Yield the rows of two files; a fault of either keeps both from being judged."""
    for a, b in zip_longest(
        read_predictions(path, "captions"), read_predictions(other, "captions")
    ):
        if a is None or b is None:
            longer, number = (path, a.number) if b is None else (other, b.number)
            raise UsageError(f"{path} and {other} differ in length: only {longer} has row {number}")
        row = JudgedRow(**vars(a), other=b.prediction)
        faults = [each.status for each in (a, b) if not each.scorable]
        if faults:
            row.status = faults[0]
        elif a.reference != b.reference:
            raise UsageError(f"{path} and {other} differ in the reference of row {row.number}")
        else:
            row.status = a.status or b.status
        yield row
