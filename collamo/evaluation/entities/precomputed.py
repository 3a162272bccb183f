"""Entities that were found by other means, read from a file."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from collamo.errors import UsageError
from collamo.evaluation.entities.extractor import Caption, Entities, fold
from collamo.files import file_sha256

_SIDES = ("prediction", "reference")


class _Row(NamedTuple):
    """A row of the file: its number, and the entities of the sides that it knows."""

    number: int
    sides: dict[str, frozenset[str]]


class PrecomputedEntities:
    """Entities from a file, a line per row of the predictions file, rows ascending.

    JSONL: ``{"row": 1, "prediction": ["ketone"], "reference": ["ketone", "ester"]}``; TSV: columns
    ``row``, ``prediction`` and ``reference``, entities separated by ``|``. They are compared as
    `fold` leaves them. A row that is absent, or a side that is null or missing, has no entities
    known, which is not the same as having none. Read as it is asked for, in constant memory.

    Raises
    ------
    UsageError
        For a missing file, another format, a malformed line, rows out of order, and,
        on leaving, rows that the predictions file does not have.
    """

    def __init__(self, path: Path):
        if path.suffix not in (".jsonl", ".tsv"):
            raise UsageError(f"{path}: entities come in a .jsonl or .tsv file")
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        self.path = path
        self.about = {"entities": "file", "entities_file_sha256": file_sha256(path)}
        self._rows = _rows(path)
        self._next = next(self._rows, None)

    def __enter__(self) -> PrecomputedEntities:
        return self

    def __exit__(self, *exception: object) -> None:
        self._rows.close()
        if exception[0] is None and self._next is not None:
            raise UsageError(f"{self.path}: row {self._next.number} is not in the predictions file")

    def extract(self, captions: Sequence[Caption]) -> list[Entities]:
        """Return the entities that the file lists for each caption, whatever its text."""
        last = max((caption.row for caption in captions), default=0)
        known: dict[int, dict[str, frozenset[str]]] = {}
        while self._next is not None and self._next.number <= last:
            known[self._next.number] = self._next.sides
            self._next = next(self._rows, None)
        return [known.get(caption.row, {}).get(caption.side) for caption in captions]

    def grounded(self, entities: frozenset[str], molecule: str) -> None:
        """Return None: the file is about captions."""


def _rows(path: Path) -> Generator[_Row, None, None]:
    before = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        header = next(lines, "").rstrip("\r\n").split("\t") if path.suffix == ".tsv" else []
        for number, line in enumerate(lines, 1 + bool(header)):
            try:
                row = _row(_table_record(line, header) if header else json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UsageError(
                    f"{path}, line {number} is no row with its entities: {line.strip()[:80]!r}"
                ) from None
            if row.number <= before:
                raise UsageError(
                    f"{path}, line {number}: row {row.number} follows row {before}; sort it"
                )
            before = row.number
            yield row


def _table_record(line: str, header: list[str]) -> dict[str, Any]:
    fields = dict(zip(header, line.rstrip("\r\n").split("\t"), strict=True))
    sides = {
        side: [part for part in fields[side].split("|") if part.strip()]
        for side in _SIDES
        if side in fields
    }
    return {"row": int(fields["row"]), **sides}


def _row(record: dict[str, Any]) -> _Row:
    number = record["row"]
    if type(number) is not int or number < 1:
        raise ValueError(number)
    sides = {}
    for side in _SIDES:
        entities = record.get(side)
        if entities is not None:
            if not isinstance(entities, list):
                raise TypeError(entities)
            sides[side] = frozenset(map(fold, entities))
    return _Row(number, sides)
