"""A file of questions in, the same rows with answers out: no row is lost, none is fatal."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from collamo.data.columns import ColumnChooser, has_surrogate
from collamo.data.molecule_column import MOLECULE_READERS, MoleculeColumn, molecule_column
from collamo.data.readers import Record, text_value
from collamo.data.record_file import RecordFile, format_of
from collamo.errors import MoleculeError, UsageError
from collamo.files import replacing
from collamo.inference.molecules import molecule_features, notes

if TYPE_CHECKING:  # at run time it would import torch before the molecules are read
    from collamo.chem.features import MoleculeFeatures
    from collamo.inference.assistant import AnswerOptions, Assistant

#: A molecule as text and what kind of text it is, a key of `MOLECULE_READERS`.
MoleculeText = tuple[str, str]


def check_format(path: Path) -> None:
    """Raise a UsageError unless answers can be written into a file of this name."""
    if format_of(path) not in ("csv", "tsv", "jsonl"):
        raise UsageError(f"{path}: answers are written as .csv, .tsv or .jsonl, each also with .gz")


@dataclass
class QuestionRow:
    """One row of the file: its `columns` as read, and what became of it."""

    number: int
    columns: dict[str, object]
    molecule: MoleculeText = ("", "smiles")
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
            "reason": "; ".join(filter(None, [self.reason, *self.notes])) or None,
        }


def read_questions(
    path: Path,
    smiles_column: str | None = None,
    question_column: str | None = None,
    selfies_column: str | None = None,
) -> list[QuestionRow]:
    """Return every row of a file of any format that `RecordFile` reads; numbers count from 1.

    The columns are those with a known name, in any case, where none is named. A row that cannot be
    used keeps its place, with the reason.

    Raises
    ------
    UsageError
        For a missing file, an unknown format, a file without one of the two columns or with a
        column twice.
    """
    file = RecordFile(path)
    chooser = ColumnChooser(file.name, file.columns)
    if not file.columns:
        raise UsageError(f"{path} has no rows; it needs smiles and question")
    for column in file.columns:
        if file.columns.count(column) > 1:
            raise UsageError(
                f"{file.name} has the column {column!r} {file.columns.count(column)} times; rename "
                "or drop all but one, that every value can be written back"
            )
    molecule = molecule_column(file, chooser, smiles_column, selfies_column)
    question = chooser.column_called(question_column or "question")
    blank = dict.fromkeys(file.columns if file.format in ("csv", "tsv") else ())
    return [
        _row(number, record, blank, molecule, question)
        for number, record in enumerate(file, start=1)
    ]


def _row(
    number: int, record: Record, blank: dict[str, None], molecule: MoleculeColumn, question: str
) -> QuestionRow:
    row = QuestionRow(number, {**blank, **record.values})
    text, problem = molecule.text(record.values)
    problem = record.problem or problem
    asked = text_value(record.values.get(question))
    if problem is not None:
        row.reason = f"row {number}: {problem[1]}"
    elif any(has_surrogate(value) for value in record.values.values() if isinstance(value, str)):
        row.reason = f"row {number}: not UTF-8; convert the file to UTF-8"
    elif not text.strip() or not asked.strip():
        column = question if text.strip() else molecule.name
        row.reason = f"row {number}: column {column!r} is empty"
    # The first line of a mol block may be blank.
    row.molecule = (text if "\n" in text else text.strip(), molecule.kind)
    row.question = asked.strip()
    return row


def write_answers(rows: Sequence[QuestionRow], path: Path | None) -> None:
    """Write the rows as the suffix of `path` says, whole or not at all; None: JSONL on stdout."""
    kind = "jsonl" if path is None else format_of(path)
    if kind == "csv":
        text = _csv([row.output() for row in rows])
    elif kind == "tsv":
        text = _tsv(rows)
    else:
        lines = [json.dumps(row.output(), ensure_ascii=False, default=str) for row in rows]
        text = "".join(f"{line}\n" for line in lines)
    # A lone surrogate (legal in JSON) has no UTF-8; written as its escape it survives.
    content = text.encode("utf-8", "backslashreplace")
    if path is None:
        sys.stdout.write(content.decode("utf-8"))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        packed = path.suffix.lower() == ".gz"
        temporary.write_bytes(gzip.compress(content, mtime=0) if packed else content)


def _columns(records: Sequence[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def _csv(records: Sequence[Mapping[str, object]]) -> str:
    buffer = io.StringIO()
    names = _columns(records)
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([text_value(record.get(name)) for name in names] for record in records)
    return buffer.getvalue()


def _tsv(rows: Sequence[QuestionRow]) -> str:
    """Return the rows without quotes: tabs and line breaks in a field become blanks, noted."""
    for row in rows:
        broken = [name for name, value in row.output().items() if _BREAKS.search(text_value(value))]
        if broken:
            row.notes.append(
                f"tabs and line breaks of {', '.join(broken)} are written as blanks: "
                "a TSV has none inside a field, a .jsonl does"
            )
    records = [row.output() for row in rows]
    names = _columns(records)
    table = [names, *([text_value(record.get(name)) for name in names] for record in records)]
    return "".join("\t".join(_BREAKS.sub(" ", text) for text in line) + "\n" for line in table)


_BREAKS = re.compile(r"\r\n|[\t\r\n]")


def read_molecules(
    rows: Sequence[QuestionRow],
    seconds: float,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> dict[MoleculeText, MoleculeFeatures]:
    """Return the `MoleculeFeatures` of each distinct molecule; rows that cannot be read say why.

    A conformer that is not found within `seconds` is absent, and noted in the row. `progress` is
    called with the number of rows whose molecule is done; `workers` None takes one per processor.
    """
    usable = defaultdict(list)
    for row in rows:
        if row.reason is None:
            usable[row.molecule].append(row)
    molecules = {}
    for (text, kind), same in usable.items():
        try:
            molecules[text, kind] = MOLECULE_READERS[kind](text)
        except MoleculeError as error:
            for row in same:
                row.reason = f"row {row.number}: {error}"
    advance = progress or (lambda count: None)
    advance(len(rows) - sum(len(usable[key]) for key in molecules))
    features = {}
    read = molecule_features(list(molecules.values()), seconds=seconds, workers=workers)
    for key, molecule in zip(molecules, read, strict=True):
        features[key] = molecule
        if molecule.conformer.coordinates is None:
            for row in usable[key]:
                row.notes += notes(molecule)
        advance(len(usable[key]))
    return features


def answer_rows(
    rows: Sequence[QuestionRow],
    features: Mapping[MoleculeText, MoleculeFeatures],
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
    molecules = [features[row.molecule] for row in usable]
    texts = assistant.ask(molecules, [row.question for row in usable], **options)
    for row, text in zip(usable, texts, strict=True):
        row.answer = text
