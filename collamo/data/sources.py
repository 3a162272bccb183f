"""Where molecules come from: the set inside the RDKit wheel, or a file of the user's.

A source is read record by record. A record that cannot be understood is still a row, with its
problem written on it, so that rows in = rows out.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from collamo.errors import UsageError, suggest

EMBEDDED = "nci"  # 4,999 NCI molecules in the RDKit wheel (BSD-3)
FORMATS = ("csv", "tsv", "jsonl", "smi", "sdf")
_EXTENSIONS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".smi": "smi",
    ".smiles": "smi",
    ".sdf": "sdf",
    ".sd": "sdf",
}

# Names under which files in the wild keep these columns; compared in lower case, blanks and
# hyphens as underscores. The first one present wins.
SMILES_COLUMNS = ("smiles", "canonical_smiles", "isomeric_smiles", "smi")
SELFIES_COLUMNS = ("selfies",)
CAPTION_COLUMNS = ("caption", "description")
IUPAC_COLUMNS = ("iupac_name", "iupac", "pubchem_iupac_name")


@dataclass(frozen=True)
class MeasuredColumn:
    """A numeric column that becomes questions: what it is, its unit, decimals of the answer."""

    name: str
    description: str
    unit: str | None = None
    decimals: int | None = None


# Columns known by name. QM9 as in its publication (Ramakrishnan et al., Sci. Data 1, 140022):
# energies in Hartree (x 27.211386246 = eV), lengths in Bohr radii a0.
MEASURED_COLUMNS: dict[str, MeasuredColumn] = {
    column.name: column
    for column in (
        MeasuredColumn("mu", "dipole moment", "D", 2),
        MeasuredColumn("alpha", "isotropic polarizability", "a0³", 2),
        MeasuredColumn("homo", "HOMO energy", "Hartree", 4),
        MeasuredColumn("lumo", "LUMO energy", "Hartree", 4),
        MeasuredColumn("gap", "HOMO-LUMO gap", "Hartree", 4),
        MeasuredColumn("r2", "electronic spatial extent", "a0²", 1),
        MeasuredColumn("zpve", "zero-point vibrational energy", "Hartree", 4),
        MeasuredColumn("cv", "heat capacity at 298.15 K", "cal/(mol K)", 2),
        MeasuredColumn("u0", "internal energy at 0 K", "Hartree", 2),
        MeasuredColumn("u298", "internal energy at 298.15 K", "Hartree", 2),
        MeasuredColumn("h298", "enthalpy at 298.15 K", "Hartree", 2),
        MeasuredColumn("g298", "free energy at 298.15 K", "Hartree", 2),
        MeasuredColumn("atomization_energy", "atomization energy", "kcal/mol", 1),
        MeasuredColumn("xlogp3", "XLogP3 partition coefficient", None, 1),
        MeasuredColumn("complexity", "PubChem complexity", None, 0),
    )
}


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
        of measured columns, as text.
    problem
        (code, reason) when the record itself cannot be read; None otherwise.
    """

    number: int
    text: str
    kind: str = "smiles"
    columns: Mapping[str, str] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


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

    def _records(self) -> Iterator[tuple[str, dict[str, str], tuple[str, str] | None]]:
        with _open_text(self.path) as stream:
            if self.format == "smi":
                yield from _smi_records(stream)
            elif self.format == "sdf":
                for block, properties in _sdf_records(stream):
                    yield block, self._task_columns(properties), None
            else:
                for record, problem in _table_records(stream, self.format, self.path):
                    text = record.get(self.smiles_column or self.selfies_column) or ""
                    yield text, self._task_columns(record), problem

    def _task_columns(self, record: Mapping[str, str | None]) -> dict[str, str]:
        names = {self.caption_column: "caption", self.iupac_column: "iupac_name"}
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
    kind = _format_of(path)
    name = EMBEDDED if str(source) == EMBEDDED else path.name
    columns = _column_names(path, kind)
    if kind == "smi":
        asked = [smiles_column, caption_column, iupac_column, *measured_columns]
        if any(asked):
            raise UsageError(f"{name}: a SMI file has no columns; leave the column options out")
        return Source(name, path, kind)
    chosen = _Chooser(name, columns)
    smiles, selfies = None, None
    if kind != "sdf":
        smiles = chosen.column(smiles_column, SMILES_COLUMNS)
        selfies = None if smiles else chosen.column(None, SELFIES_COLUMNS)
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
        caption_column=chosen.column(caption_column, CAPTION_COLUMNS),
        iupac_column=chosen.column(iupac_column, IUPAC_COLUMNS),
        measured=chosen.measured(measured_columns),
    )


class _Chooser:
    """Finds columns by the name that the user gave, or by the names that are known."""

    def __init__(self, source: str, columns: Sequence[str]):
        self.source, self.columns = source, columns

    def column(self, asked: str | None, known: Sequence[str]) -> str | None:
        if asked is not None:
            if asked not in self.columns:
                raise UsageError(
                    f"{self.source} has no column {asked!r}{suggest(asked, self.columns)}; "
                    f"its columns are {', '.join(self.columns)}"
                )
            return self._once(asked)
        normal = [_normal(column) for column in self.columns]
        for name in known:
            if name in normal:
                return self._once(self.columns[normal.index(name)])
        return None

    def measured(self, asked: Sequence[str]) -> dict[str, MeasuredColumn]:
        found = {
            self._once(column): MEASURED_COLUMNS[_normal(column)]
            for column in self.columns
            if _normal(column) in MEASURED_COLUMNS
        }
        for entry in asked:
            name, _, unit = entry.partition(":")
            column = self.column(name.strip(), ())
            words = name.strip().replace("_", " ")
            found[column] = MeasuredColumn(column, words, unit.strip() or None)
        return found

    def _once(self, column: str) -> str:
        same = [other for other in self.columns if _normal(other) == _normal(column)]
        if len(same) > 1:
            raise UsageError(
                f"{self.source} has the column {column!r} {len(same)} times "
                f"({', '.join(same)}); rename or drop all but one"
            )
        return column


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


def _format_of(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    kind = _EXTENSIONS.get(suffixes[-1] if suffixes else "")
    if kind is None:
        raise UsageError(
            f"{path.name}: unknown kind of file; use one of {', '.join(sorted(_EXTENSIONS))}, "
            "each also with .gz"
        )
    return kind


def _open_text(path: Path) -> io.TextIOWrapper:
    """Open as UTF-8 with or without BOM; bytes that are not UTF-8 become lone surrogates."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError(f"{path.name} is UTF-16; save it as UTF-8")
    opener = gzip.open if start[:2] == b"\x1f\x8b" else open
    if opener is open and path.suffix.lower() == ".gz":
        raise UsageError(f"{path.name} is not a gzip file; rename it or compress it again")
    return _CheckedText(
        opener(path, "rb"), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


class _CheckedText(io.TextIOWrapper):
    """A text stream whose damaged gzip data is a `UsageError` that names the file."""

    def __next__(self) -> str:
        try:
            return super().__next__()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UsageError(
                f"{Path(self.buffer.name).name} is a damaged gzip file: {error}; download or "
                "compress it again"
            ) from None


def _column_names(path: Path, kind: str) -> list[str]:
    """Return the columns of the header, or of the first records of a JSONL or SDF file."""
    if kind == "smi":
        return []
    with _open_text(path) as stream:
        if kind in ("csv", "tsv"):
            header = next(_csv_rows(stream, kind, path), None)
            if header is None:
                raise UsageError(f"{path.name} is empty")
            return [name.strip() for name in header]
        if kind == "sdf":
            records = (properties for _, properties in _sdf_records(stream))
        else:
            records = (record for record, _ in _table_records(stream, kind, path))
        # 100 records: later records may lack a column, rarely bring a new one
        names = dict.fromkeys(name for record in islice(records, 100) for name in record)
    if kind == "jsonl" and not names:
        raise UsageError(f"{path.name} has no JSON object with columns in its first 100 lines")
    return list(names)


def _smi_records(stream) -> Iterator[tuple[str, dict[str, str], None]]:
    """Yield the first word of each line; what follows is the molecule's name."""
    first = True
    for line in stream:
        words = line.split(maxsplit=1)
        if not words:
            continue
        is_header = first and _normal(words[0]) in SMILES_COLUMNS
        first = False
        if not is_header:
            yield words[0], {}, None


def _table_records(stream, kind: str, path: Path):
    """Yield ({column: text}, problem) of a CSV, TSV or JSONL file."""
    if kind == "jsonl":
        yield from _jsonl_records(stream)
        return
    rows = _csv_rows(stream, kind, path)
    header = [name.strip() for name in next(rows, [])]
    for row in rows:
        problem = None
        if len(row) != len(header):
            problem = ("fields", f"record has {len(row)} fields, the header has {len(header)}")
        # zip to the shorter: a row with too few fields keeps what it has, for rejected.jsonl
        yield dict(zip(header, row, strict=False)), problem


def _csv_rows(stream, kind: str, path: Path) -> Iterator[list[str]]:
    """Yield rows of fields; blank lines are skipped, quotes as in RFC 4180."""
    for row in csv_rows(stream, "\t" if kind == "tsv" else ",", path.name):
        if len(row) > 1 or any(field.strip() for field in row):
            yield row


def csv_rows(lines: Iterable[str], delimiter: str, name: str) -> Iterator[list[str]]:
    """Yield the rows of a CSV file called `name`, as csv.reader, but for an open quote.

    csv.reader takes all that follows one for its field, and says nothing: rows would be lost.

    Raises
    ------
    UsageError
        For a quote that is never closed, with its line, and for what csv.reader refuses.
    """
    reader = csv.reader(chain(lines, [_END]), delimiter=delimiter)
    start = 0
    try:
        for row in reader:
            if row[-1:] and row[-1].endswith(_END):
                if row == [_END]:
                    return
                raise UsageError(
                    f"{name}: a quote opened in the record of line {start + 1} is never closed; "
                    "close it, or write a quote inside a field twice"
                )
            start = reader.line_num
            yield row
    except csv.Error as error:
        raise UsageError(
            f"{name}: line {reader.line_num}: {error}; a quote may be open since an earlier line"
        ) from None


#: A line that no text file has; inside an open quote it becomes part of the field.
_END = "\x00the end of the file\x00"


def _jsonl_records(stream) -> Iterator[tuple[dict[str, str], tuple[str, str] | None]]:
    for line in stream:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield {}, ("json", f"line is not JSON: {str(error)[:80]}")
            continue
        if not isinstance(record, dict):
            yield {}, ("json", f"line is a JSON {type(record).__name__}, not an object")
            continue
        yield {k: _json_text(v) for k, v in record.items() if v is not None}, None


def _json_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sdf_records(stream) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (mol block, properties) of each record; the last may lack its ``$$$$``."""
    lines: list[str] = []
    for raw in stream:
        line = raw.rstrip("\r\n")
        if line.startswith("$$$$"):
            yield _sdf_record(lines)
            lines = []
        else:
            lines.append(line)
    if any(line.strip() for line in lines):
        yield _sdf_record(lines)


def _sdf_record(lines: list[str]) -> tuple[str, dict[str, str]]:
    end = next((i + 1 for i, line in enumerate(lines) if line.startswith("M  END")), len(lines))
    properties: dict[str, str] = {}
    name = None
    for line in lines[end:]:
        if line.startswith(">"):
            start, stop = line.find("<"), line.rfind(">")
            name = line[start + 1 : stop] if 0 < start < stop else None
        elif name is not None and line.strip():
            properties[name] = f"{properties[name]}\n{line}" if name in properties else line
    return "\n".join(lines[:end]) + "\n", properties


def _normal(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _has_surrogate(*texts: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for text in texts if not text.isascii() for c in text)
