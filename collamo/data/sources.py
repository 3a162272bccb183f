"""Where molecules come from: the set inside the RDKit wheel, or a file.

A source is read record by record. A record that cannot be understood is still a row, with its
problem written on it, so that rows in = rows out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from collamo.data.columns import (
    CAPTION_COLUMNS,
    IUPAC_COLUMNS,
    SELFIES_COLUMNS,
    SMILES_COLUMNS,
    ColumnChooser,
    MeasuredColumn,
)
from collamo.data.readers import (
    Problem,
    column_names,
    format_of,
    sdf_records,
    smi_records,
    table_records,
    text_lines,
)
from collamo.errors import UsageError

EMBEDDED = "nci"  # 4,999 NCI molecules in the RDKit wheel (BSD-3)


@dataclass(frozen=True)
class SourceRow:
    """One record of a source.

    Attributes
    ----------
    number
        1-based record number; headers and blank lines are no records.
    text
        The molecule as given: SMILES, SELFIES or mol block.
    kind
        ``"smiles"``, ``"selfies"`` or ``"molblock"``.
    columns
        The record's other columns that become tasks: ``"caption"``, ``"iupac_name"`` and the names
        of measured columns, as text; and ``"split"``.
    problem
        (code, reason) when the record itself cannot be read; None otherwise.
    """

    number: int
    text: str
    kind: str = "smiles"
    columns: Mapping[str, str] = field(default_factory=dict)
    problem: Problem | None = None


@dataclass(frozen=True)
class Source:
    """A source of molecules, opened: iterate over it for `SourceRow`; every pass reads it anew.

    Attributes
    ----------
    name
        ``"nci"`` or the file's name (without folders).
    path, format
        The file and one of `FORMATS`.
    smiles_column, selfies_column
        The column that holds the molecule; None in SMI and SDF files.
    caption_column, iupac_column
        Columns that hold text; None where there is none.
    split_column
        The column that says train, validation or test; None where none does.
    measured
        Column in the file → what it is.
    """

    name: str
    path: Path
    format: str
    smiles_column: str | None = None
    selfies_column: str | None = None
    caption_column: str | None = None
    iupac_column: str | None = None
    split_column: str | None = None
    measured: Mapping[str, MeasuredColumn] = field(default_factory=dict)

    def __iter__(self) -> Iterator[SourceRow]:
        for number, (text, columns, problem) in enumerate(self._records(), start=1):
            if problem is None and _has_surrogate(text, *columns.values()):
                problem = ("encoding", "record is not UTF-8; convert the file to UTF-8")
            yield SourceRow(number, text, self._kind(), columns, problem)

    def _kind(self) -> str:
        if self.format == "sdf":
            return "molblock"
        return "selfies" if self.selfies_column else "smiles"

    def _records(self) -> Iterator[tuple[str, dict[str, str], Problem | None]]:
        with text_lines(self.path) as stream:
            if self.format == "smi":
                yield from smi_records(stream)
            elif self.format == "sdf":
                for block, properties in sdf_records(stream):
                    yield block, self._task_columns(properties), None
            else:
                column = self.smiles_column or self.selfies_column or ""
                for record, problem in table_records(stream, self.format, self.path):
                    text = record.get(column) or ""
                    yield text, self._task_columns(record), problem

    def _task_columns(self, record: Mapping[str, str | None]) -> dict[str, str]:
        names = {
            self.caption_column: "caption",
            self.iupac_column: "iupac_name",
            self.split_column: "split",
        }
        names |= {column: column for column in self.measured}
        return {
            names[column]: value.strip()
            for column, value in record.items()
            if column in names and value is not None and value.strip()
        }


def open_source(
    source: str | Path,
    *,
    smiles_column: str | None = None,
    caption_column: str | None = None,
    iupac_column: str | None = None,
    measured_columns: Sequence[str] = (),
    split_column: str | None = None,
) -> Source:
    """Open ``"nci"`` or a CSV, TSV, JSONL, SMI or SDF file (each also ``.gz``).

    Columns that carry a known name are recognised (`SMILES_COLUMNS`, `CAPTION_COLUMNS`,
    `IUPAC_COLUMNS`, `MEASURED_COLUMNS`); the arguments name others. A measured column may carry its
    unit: ``"logS:log mol/L"``.

    Raises
    ------
    UsageError
        No such file, unknown extension, not a text file, a column that is missing (with the
        columns there are) or that appears twice.
    """
    path = _find(source)
    kind = format_of(path)
    name = EMBEDDED if str(source) == EMBEDDED else path.name
    columns = column_names(path, kind)
    if kind == "smi":
        options = [smiles_column, caption_column, iupac_column, split_column, *measured_columns]
        if any(options):
            raise UsageError(f"{name}: a SMI file has no columns; leave the column options out")
        return Source(name, path, kind)
    chooser = ColumnChooser(name, columns)
    smiles, selfies = None, None
    if kind != "sdf":
        smiles = chooser.column(smiles_column, SMILES_COLUMNS)
        selfies = None if smiles else chooser.known_column(SELFIES_COLUMNS)
        if not smiles and not selfies:
            advice = "name the right one with smiles_column (--smiles-column)"
            if kind == "csv" and len(columns) == 1 and re.search(r"[;\t|]", columns[0]):
                advice = "separate columns with commas, or with tabs in a .tsv"
            raise UsageError(
                f"{name} has no SMILES column; its columns are {', '.join(columns) or '(none)'}; "
                f"{advice}"
            )
    return Source(
        name,
        path,
        kind,
        smiles_column=smiles,
        selfies_column=selfies,
        caption_column=chooser.column(caption_column, CAPTION_COLUMNS),
        iupac_column=chooser.column(iupac_column, IUPAC_COLUMNS),
        split_column=chooser.column(split_column, ()),
        measured=chooser.measured(measured_columns),
    )


def count_rows(source: Source, limit: int | None = None) -> int:
    """Return the number of records, at most `limit`."""
    return sum(1 for _ in islice(source, limit))


def _find(source: str | Path) -> Path:
    if str(source) == EMBEDDED:
        from rdkit import RDConfig

        return Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(
            f"source {str(source)!r} {what}; give a file, or 'nci' for the built-in set"
        )
    return path


def _has_surrogate(*texts: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for text in texts if not text.isascii() for c in text)
