"""A predictions file, row by row: streamed, numbered, no line lost."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeAlias, TypeVar

from collamo.data.readers import csv_rows
from collamo.errors import UsageError
from collamo.inference.question_files import check_format

T = TypeVar("T")
# The file's first column among each of these is taken; MolT5's files have the first name.
PREDICTION_COLUMNS = ("output", "prediction", "answer")
REFERENCE_COLUMNS = ("ground truth", "reference", "truth")
MOLECULE_COLUMNS = ("SMILES", "smiles", "SELFIES", "selfies", "molecule")  # of captions
GROUP_COLUMNS = {"motifs": ("motif", "target"), "property": ("property", "target")}
#: What reading the file finds wrong with a row.
READ_STATUSES = ("malformed", "not_utf8", "empty_reference", "empty_prediction")
BATCH = 2000  # rows held in memory, and in one row group of the parquet file

#: A row of the file by column; None for a malformed line.
Record: TypeAlias = Mapping[str, Any] | None


@dataclass
class PredictionRow:
    """One row: `status` is the one count it belongs to, "" until it has been scored.

    `molecule` is what the caption describes, None where the file does not say; `entity_status` what
    became of its entities, None where none were looked for.
    """

    number: int
    prediction: str = ""
    reference: str = ""
    group: str = ""
    molecule: str | None = None
    entity_status: str | None = None
    status: str = ""
    values: dict[str, float] = field(default_factory=dict)

    @property
    def scorable(self) -> bool:
        """Return whether the row has a reference to be scored by; an empty prediction is wrong,
        not absent."""
        return self.status in ("", "empty_prediction")


class _Columns(NamedTuple):
    """The names of the columns; None for one that the file lacks."""

    prediction: str
    reference: str
    group: str | None
    molecule: str | None


def read_predictions(path: Path, task: str) -> Iterator[PredictionRow]:
    """Yield every row of a TSV, CSV or JSONL file, numbered from 1, in constant memory.

    A TSV is read as the published files are: one row a line, quotes are ordinary characters, no tab
    inside a field. CSV quotes as usual; JSONL holds any text. A line that does not fit the header
    is ``malformed``, bytes that are not UTF-8 make a row ``not_utf8``.

    Raises
    ------
    UsageError
        For a missing file, an unknown format, or a file without one of the two columns.
    """
    check_format(path)
    try:
        with path.open(
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="" if path.suffix == ".csv" else "\n",
        ) as stream:
            records = _json_records if path.suffix == ".jsonl" else _table_records
            yield from _rows(path, task, records(stream))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _table_records(stream: TextIO) -> Iterator[Record]:
    """Yield the header as a record of its own names, then each row; None for a malformed one."""
    csv.field_size_limit(sys.maxsize)
    path = Path(stream.name)
    rows = _tsv_rows(stream) if path.suffix == ".tsv" else csv_rows(stream, ",", path.name)
    header = next(rows, [])
    yield dict.fromkeys(header)
    for row in rows:
        yield dict(zip(header, row, strict=True)) if len(row) == len(header) else None


def _tsv_rows(lines: Iterable[str]) -> Iterator[list[str]]:
    for line in lines:
        yield line.rstrip("\n").rstrip("\r").split("\t")


def _json_records(stream: TextIO) -> Iterator[Record]:
    named = False
    for line in stream:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        record = record if isinstance(record, dict) else None
        if record is not None and not named:
            named = True
            yield dict.fromkeys(record)
        yield record


def _rows(path: Path, task: str, records: Iterator[Record]) -> Iterator[PredictionRow]:
    columns: _Columns | None = None
    number = 0
    for record in records:
        if columns is not None:
            number += 1
            yield _row(number, record, columns)
        elif record is None:  # malformed lines before the first JSON object
            number += 1
        else:
            columns = _columns(path, task, list(record))
            yield from (PredictionRow(early, status="malformed") for early in range(1, number + 1))
    if columns is None:
        raise UsageError(f"{path} holds no rows: no header, no JSON object")


def _columns(path: Path, task: str, names: Sequence[str]) -> _Columns:
    def first(known: Sequence[str]) -> str | None:
        return next((name for name in known if name in names), None)

    def required(what: str, known: Sequence[str]) -> str:
        name = first(known)
        if name is None:
            raise UsageError(
                f"{path} has no column for the {what}: one of {', '.join(known)}; "
                f"it has {', '.join(names) or 'none'}"
            )
        return name

    return _Columns(
        required("prediction", PREDICTION_COLUMNS),
        required("reference", REFERENCE_COLUMNS),
        first(GROUP_COLUMNS.get(task, ())),
        first(MOLECULE_COLUMNS) if task == "captions" else None,
    )


def _row(number: int, record: Record, columns: _Columns) -> PredictionRow:
    if record is None:
        return PredictionRow(number, status="malformed")
    prediction, reference = (_text(record.get(name)) for name in columns[:2])
    group = _text(record.get(columns.group)) if columns.group else ""
    if prediction is None or reference is None or group is None:
        return PredictionRow(number, status="malformed")
    row = PredictionRow(number, prediction, reference, group)
    if columns.molecule:
        row.molecule = _text(record.get(columns.molecule)) or ""
    if any("\ud800" <= char <= "\udfff" for char in prediction + reference + group):
        row.status = "not_utf8"
    elif not row.reference.strip():
        row.status = "empty_reference"
    elif not row.prediction.strip():
        row.status = "empty_prediction"
    return row


def _text(value: object) -> str | None:
    """Return a field as text; a JSON number is its digits, null is empty, all else is malformed."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    return value if isinstance(value, str) else None


def batches(rows: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Yield `rows` in lists of `size`, the last one shorter."""
    batch: list[T] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
