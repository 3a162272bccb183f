"""A file of questions in, the same rows with answers out: no row is lost, none is fatal."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from collamo.data.readers import csv_rows
from collamo.errors import MoleculeError, UsageError, suggest
from collamo.files import write_text
from collamo.inference.molecules import molecule_features, notes, read_molecule

if TYPE_CHECKING:  # at run time it would import torch before the molecules are read
    from collamo.chem.features import MoleculeFeatures
    from collamo.inference.assistant import AnswerOptions, Assistant

FORMATS = (".csv", ".tsv", ".jsonl")


def check_format(path: Path) -> None:
    """Raise a UsageError unless the file name ends in one of `FORMATS`."""
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: the file must end in {', '.join(FORMATS)}")


@dataclass
class QuestionRow:
    """One row of the file: its `columns` as read, and what became of it."""

    number: int
    columns: dict[str, object]
    smiles: str = ""
    question: str = ""
    reason: str | None = None
    answer: str | None = None
    notes: list[str] = field(default_factory=list)

    def output(self) -> dict[str, object]:
        """Return the row to write: its columns, then row, answer, status (ok or error), reason.

        An input column with one of these names is kept as ``input_<name>``.
        """
        ours = ("row", "answer", "status", "reason")
        kept = {f"input_{k}" if k in ours else k: value for k, value in self.columns.items()}
        return {
            **kept,
            "row": self.number,
            "answer": self.answer,
            "status": "ok" if self.reason is None else "error",
            "reason": self.reason or "; ".join(self.notes) or None,
        }


def read_questions(
    path: Path, smiles_column: str = "smiles", question_column: str = "question"
) -> list[QuestionRow]:
    """Return every row of a CSV, TSV or JSONL file; numbers count from 1 without the header.

    A row that cannot be used keeps its place, with the reason.

    Raises
    ------
    UsageError
        For a missing file, an unknown format, or a file without one of the two columns.
    """
    check_format(path)
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    read = _read_jsonl if path.suffix == ".jsonl" else _read_table
    rows = list(read(text, "\t" if path.suffix == ".tsv" else ",", path.name))
    columns = dict.fromkeys(name for row in rows for name in row.columns)
    if not rows:
        raise UsageError(f"{path} has no rows; it needs {smiles_column} and {question_column}")
    for column in (smiles_column, question_column):
        if column not in columns:
            raise UsageError(
                f"{path} has no column {column!r}{suggest(column, columns)}; "
                f"it has {', '.join(columns) or 'none'}"
            )
    for row in rows:
        if row.reason is None:
            _fill(row, smiles_column, question_column)
    return rows


def _fill(row: QuestionRow, smiles_column: str, question_column: str) -> None:
    values = {}
    for name, column in (("smiles", smiles_column), ("question", question_column)):
        value = row.columns.get(column)
        if not isinstance(value, str) or not value.strip():
            row.reason = f"row {row.number}: column {column!r} is empty or not text"
            return
        values[name] = value.strip()
    row.smiles, row.question = values["smiles"], values["question"]


def _read_table(text: str, delimiter: str, name: str) -> Iterator[QuestionRow]:
    # The module's limit of 131,072 characters would make one absurd field fatal for the file.
    csv.field_size_limit(sys.maxsize)
    rows = csv_rows(io.StringIO(text, newline=""), delimiter, name)
    header = next(rows, [])
    for number, fields in enumerate(filter(None, rows), 1):
        values = dict(zip(header, fields, strict=False))  # too few: the rest is None
        row = QuestionRow(number, {**dict.fromkeys(header), **values})
        if len(fields) > len(header):
            row.reason = f"row {number} has {len(fields) - len(header)} fields more than the header"
        yield row


def _read_jsonl(text: str, *_: str) -> Iterator[QuestionRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield QuestionRow(number, record)
        else:
            yield QuestionRow(number, {}, reason=f"line {number} is not a JSON object")


def write_answers(rows: Sequence[QuestionRow], path: Path | None) -> None:
    """Write the rows as the suffix of `path` says, whole or not at all; None: JSONL on stdout."""
    records = [row.output() for row in rows]
    if path is not None and path.suffix in (".csv", ".tsv"):
        text = _table(records, "\t" if path.suffix == ".tsv" else ",")
    else:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    # A lone surrogate (legal in JSON) has no UTF-8; written as its escape it survives.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if path is None:
        sys.stdout.write(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def _table(records: Sequence[Mapping[str, object]], delimiter: str) -> str:
    buffer = io.StringIO()
    names = dict.fromkeys(name for record in records for name in record)
    writer = csv.DictWriter(buffer, list(names), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def read_molecules(
    rows: Sequence[QuestionRow],
    seconds: float,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> dict[str, MoleculeFeatures]:
    """Return the `MoleculeFeatures` of each distinct SMILES; rows that cannot be read say why.

    A conformer that is not found within `seconds` is absent, and noted in the row. `progress` is
    called with the number of rows whose molecule is done; `workers` None takes one per processor.
    """
    usable = defaultdict(list)
    for row in rows:
        if row.reason is None:
            usable[row.smiles].append(row)
    molecules = {}
    for smiles, same in usable.items():
        try:
            molecules[smiles] = read_molecule(smiles)
        except MoleculeError as error:
            for row in same:
                row.reason = f"row {row.number}: {error}"
    advance = progress or (lambda count: None)
    advance(len(rows) - sum(len(usable[smiles]) for smiles in molecules))
    features = {}
    read = molecule_features(list(molecules.values()), seconds=seconds, workers=workers)
    for smiles, molecule in zip(molecules, read, strict=True):
        features[smiles] = molecule
        if molecule.conformer.coordinates is None:
            for row in usable[smiles]:
                row.notes += notes(molecule)
        advance(len(usable[smiles]))
    return features


def answer_rows(
    rows: Sequence[QuestionRow],
    features: Mapping[str, MoleculeFeatures],
    assistant: Assistant,
    **options: Unpack[AnswerOptions],
) -> None:
    """Fill in the answer of every usable row; `options` as for `Assistant.ask`."""
    for row in rows:
        if row.reason is None:
            try:
                assistant.processor.check_question(row.question)
            except ValueError as error:
                row.reason = f"row {row.number}: {error}"
    usable = [row for row in rows if row.reason is None]
    molecules = [features[row.smiles] for row in usable]
    texts = assistant.ask(molecules, [row.question for row in usable], **options)
    for row, text in zip(usable, texts, strict=True):
        row.answer = text
