"""A predictions file, row by row: streamed, numbered, no line lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from collamo.data.columns import ColumnChooser, has_surrogate
from collamo.data.readers import Record
from collamo.data.record_file import RecordFile
from collamo.errors import UsageError

T = TypeVar("T")
# The first of these names that a column has, in any case; MolT5's files have the first.
PREDICTION_COLUMNS = ("output", "prediction", "answer", "pred")
REFERENCE_COLUMNS = ("ground truth", "reference", "truth", "gt")
MOLECULE_COLUMNS = ("SMILES", "SELFIES", "molecule")  # of captions
GROUP_COLUMNS = {"motifs": ("motif", "target"), "property": ("property", "target")}
#: What reading the file finds wrong with a row.
READ_STATUSES = ("malformed", "not_utf8", "empty_reference", "empty_prediction")
BATCH = 2000  # rows held in memory, and in one row group of the parquet file


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


class PredictionColumns(NamedTuple):
    """Names of columns; None for one that is not named, or that the file lacks."""

    prediction: str | None = None
    reference: str | None = None
    group: str | None = None
    molecule: str | None = None


def read_predictions(
    path: Path, task: str, named: PredictionColumns | None = None
) -> Iterator[PredictionRow]:
    """Yield every row of a file that `RecordFile` reads, numbered from 1, in constant memory.

    Columns that are not `named` are recognised. A line that does not fit the header, or is blank,
    is ``malformed``; bytes that are not UTF-8 make a row ``not_utf8``.

    Raises
    ------
    UsageError
        For a missing file, an unknown format, or a file without one of the two columns.
    """
    file = RecordFile(path, keep_blank=True)
    if not file.columns:
        raise UsageError(f"{path} holds no rows: no header, no JSON object")
    columns = _columns(file, task, named or PredictionColumns())
    for number, record in enumerate(file, start=1):
        yield _row(number, record, columns)


def _columns(file: RecordFile, task: str, named: PredictionColumns) -> PredictionColumns:
    chooser = ColumnChooser(file.name, file.columns)
    columns = PredictionColumns(
        chooser.column(named.prediction, PREDICTION_COLUMNS),
        chooser.column(named.reference, REFERENCE_COLUMNS),
        chooser.column(named.group, GROUP_COLUMNS.get(task, ())),
        chooser.column(named.molecule, MOLECULE_COLUMNS if task == "captions" else ()),
    )
    for what, known in (("prediction", PREDICTION_COLUMNS), ("reference", REFERENCE_COLUMNS)):
        if getattr(columns, what) is None:
            raise UsageError(
                f"{file.path} has no column for the {what}: one of {', '.join(known)}; "
                f"it has {', '.join(file.columns)}; name it with --{what}-column"
            )
    return columns


def _row(number: int, record: Record, columns: PredictionColumns) -> PredictionRow:
    if record.problem is not None:
        return PredictionRow(number, status="malformed")
    prediction, reference, group, molecule = (
        _text(record.values.get(name)) if name else "" for name in columns
    )
    if prediction is None or reference is None or group is None:
        return PredictionRow(number, status="malformed")
    row = PredictionRow(number, prediction, reference, group)
    if columns.molecule:
        row.molecule = molecule or ""
    if has_surrogate(prediction + reference + group):
        row.status = "not_utf8"
    elif not row.reference.strip():
        row.status = "empty_reference"
    elif not row.prediction.strip():
        row.status = "empty_prediction"
    return row


def _text(value: object) -> str | None:
    """Return a field as text; a number is its digits, null and NaN are empty, the rest is None."""
    if value is None or value != value:
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
