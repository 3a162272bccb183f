"""Where molecules come from: the set inside the RDKit wheel, QM9, or a file.

A source is read record by record. A record that cannot be understood is still a row, with its
problem written on it, so that rows in = rows out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from collamo.chem.molecule import is_selfies
from collamo.data.column_guesses import without_named
from collamo.data.columns import (
    CAPTION_COLUMNS,
    IUPAC_COLUMNS,
    ColumnChooser,
    MeasuredColumn,
    has_surrogate,
)
from collamo.data.molecule_column import MoleculeColumn, molecule_column
from collamo.data.qm9 import GEOMETRY, Qm9Wheel, qm9_columns, split_sizes
from collamo.data.readers import Problem, Record, text_value
from collamo.data.record_file import RecordFile
from collamo.data.xyz_file import XYZ
from collamo.errors import UsageError

EMBEDDED = "nci"  # 4,999 NCI molecules in the RDKit wheel (BSD-3)
QM9 = "qm9"  # 133,885 molecules in the wheel qm9pack (MIT)


@dataclass(frozen=True)
class SourceRow:
    """One record of a source.

    Attributes
    ----------
    number
        1-based record number; headers and blank lines are no records.
    text
        The molecule as given: SMILES, SELFIES, mol block or XYZ block.
    kind
        ``"smiles"``, ``"selfies"``, ``"molblock"`` or ``"xyz"``.
    columns
        The record's other columns that become tasks: ``"caption"``, ``"iupac_name"`` and the names
        of measured columns, as text; and ``"split"``.
    problem
        (code, reason) when the record itself cannot be read; None otherwise.
    geometry
        How the source computed the places of its atoms; None where it does not say.
    start
        The places [N,3] float64 Å of its atoms, hydrogens last, that a GPU has embedded.
    """

    number: int
    text: str
    kind: str = "smiles"
    columns: Mapping[str, str] = field(default_factory=dict)
    problem: Problem | None = None
    geometry: str | None = None
    start: bytes | None = None


@dataclass(frozen=True)
class Source:
    """A source of molecules, opened: iterate over it for `SourceRow`; every pass reads it anew.

    Attributes
    ----------
    name
        ``"nci"``, ``"qm9"`` or the file's name (without folders).
    file
        The file, or the set in a wheel, opened.
    molecule
        The column that holds the molecule.
    caption_column, iupac_column
        Columns that hold text; None where there is none.
    split_column
        The column that says train, validation or test; None where none does.
    measured
        Column that the user named → what it is.
    guessed
        Column with a known name → what it would be (`column_guesses`).
    geometry
        As in `SourceRow`.
    split_sizes
        Records → molecules of each split but test in the published split; None where there is none.
    """

    name: str
    file: RecordFile | Qm9Wheel
    molecule: MoleculeColumn
    caption_column: str | None = None
    iupac_column: str | None = None
    split_column: str | None = None
    measured: Mapping[str, MeasuredColumn] = field(default_factory=dict)
    guessed: Mapping[str, MeasuredColumn] = field(default_factory=dict)
    geometry: str | None = None
    split_sizes: Callable[[int], Mapping[str, int]] | None = None

    def __iter__(self) -> Iterator[SourceRow]:
        for number, record in enumerate(self.file, start=1):
            yield self._row(number, record)

    def _row(self, number: int, record: Record) -> SourceRow:
        text, problem = self.molecule.text(record.values)
        columns = self._task_columns(record.values)
        if any(map(has_surrogate, (text, *columns.values()))):
            problem = problem or ("encoding", "record is not UTF-8; convert the file to UTF-8")
        kind = self.molecule.kind
        if kind == "smiles" and is_selfies(text):
            kind = "selfies"
        return SourceRow(number, text, kind, columns, record.problem or problem, self.geometry)

    def _task_columns(self, values: Mapping[str, object]) -> dict[str, str]:
        names = {
            self.caption_column: "caption",
            self.iupac_column: "iupac_name",
            self.split_column: "split",
        }
        names |= {column: column for column in (*self.measured, *self.guessed)}
        texts = {
            names[column]: text_value(value).strip()
            for column, value in values.items()
            if column in names
        }
        return {name: text for name, text in texts.items() if text}


def open_source(
    source: str | Path,
    *,
    smiles_column: str | None = None,
    selfies_column: str | None = None,
    caption_column: str | None = None,
    iupac_column: str | None = None,
    measured_columns: Sequence[str] = (),
    split_column: str | None = None,
    guess_columns: bool = True,
) -> Source:
    """Open ``"nci"``, ``"qm9"`` or a file of any format that `RecordFile` reads.

    Columns that carry a known name are recognised, in any case (`SMILES_COLUMNS`,
    `CAPTION_COLUMNS`, `IUPAC_COLUMNS`); the arguments name others. A measured column may carry its
    unit: ``"logS:log mol/L"``. Those with a name of `MEASURED_COLUMNS` are guessed, unless
    `guess_columns` is False. QM9's units are known: there ``"gap:eV"`` asks for the gap in eV.

    Raises
    ------
    MissingDependencyError
        ``"qm9"`` without its wheel.
    UsageError
        No such file, unknown extension, not a text file, a column that is missing (with the
        columns there are) or that appears twice.
    """
    options = [smiles_column, selfies_column, caption_column, iupac_column, split_column]
    if str(source) == QM9:
        if any(options):
            raise UsageError("qm9 has no columns of molecules, texts or splits; leave them out")
        return _open_qm9(measured_columns)
    path = _find(source)
    file = RecordFile(path)
    name = EMBEDDED if str(source) == EMBEDDED else path.name
    if file.format == "smi" and any([*options, *measured_columns]):
        raise UsageError(f"{name}: a SMI file has no columns; leave the column options out")
    if not file.columns:
        if file.format in ("csv", "tsv", "parquet"):
            raise UsageError(f"{name} is empty")
        problems = (record.problem[1] for record in file if record.problem)
        reason = "".join(f" ({text})" for text in islice(problems, 1))
        raise UsageError(
            f"{name} has no JSON object with columns{reason}; a .jsonl has one a line, "
            "a .json a list"
        )
    chooser = ColumnChooser(name, file.columns)
    measured = chooser.measured(measured_columns)
    guessed = chooser.guessed() if guess_columns else {}
    return Source(
        name,
        file,
        molecule_column(file, chooser, smiles_column, selfies_column),
        caption_column=chooser.column(caption_column, CAPTION_COLUMNS),
        iupac_column=chooser.column(iupac_column, IUPAC_COLUMNS),
        split_column=chooser.column(split_column, ()),
        measured=measured,
        guessed=without_named(guessed, measured),
    )


def _open_qm9(measured_columns: Sequence[str]) -> Source:
    measured = qm9_columns(measured_columns)
    in_ev = [name for name, column in measured.items() if column.unit == "eV"]
    return Source(
        QM9,
        Qm9Wheel(in_ev),
        MoleculeColumn(XYZ, XYZ),
        measured=measured,
        geometry=GEOMETRY,
        split_sizes=split_sizes,
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
            f"source {str(source)!r} {what}; give a file, 'nci' for the built-in set or 'qm9'"
        )
    return path
