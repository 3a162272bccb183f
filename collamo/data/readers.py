"""Records of text files, plain or gzip: tables (CSV, TSV, JSONL), SMI and SDF."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

from collamo.chem.molecule import split_smiles_line
from collamo.data.columns import SMILES_COLUMNS, normal_name
from collamo.errors import UsageError

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

#: (code, reason) of a record that cannot be understood.
Problem = tuple[str, str]


@contextmanager
def text_lines(path: Path) -> Iterator[Iterator[str]]:
    """Yield the lines of a file in UTF-8, with or without BOM; other bytes are lone surrogates.

    Raises
    ------
    UsageError
        For a file in UTF-16, and for a .gz that is not gzip or is damaged.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError(f"{path.name} is UTF-16; save it as UTF-8")
    packed = start[:2] == b"\x1f\x8b"
    if path.suffix.lower() == ".gz" and not packed:
        raise UsageError(f"{path.name} is not a gzip file; rename it or compress it again")
    with (
        gzip.open(path, "rb") if packed else path.open("rb") as content,
        io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="") as stream,
    ):
        yield _checked_lines(stream, path.name)


def _checked_lines(stream: Iterable[str], name: str) -> Iterator[str]:
    try:
        yield from stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(
            f"{name} is a damaged gzip file: {error}; download or compress it again"
        ) from None


def table_records(
    stream: Iterable[str], kind: str, path: Path
) -> Iterator[tuple[dict[str, str], Problem | None]]:
    """Yield ({column: text}, problem) of a CSV, TSV or JSONL file."""
    if kind == "jsonl":
        yield from _jsonl_records(stream)
        return
    rows = _csv_rows(stream, kind, path)
    header = [name.strip() for name in next(rows, [])]
    for row in rows:
        problem: Problem | None = None
        if len(row) != len(header):
            problem = ("fields", f"record has {len(row)} fields, the header has {len(header)}")
        # zip to the shorter: a row with too few fields keeps what it has, for rejected.jsonl
        yield dict(zip(header, row, strict=False)), problem


def _csv_rows(stream: Iterable[str], kind: str, path: Path) -> Iterator[list[str]]:
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


def _jsonl_records(stream: Iterable[str]) -> Iterator[tuple[dict[str, str], Problem | None]]:
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


def smi_records(stream: Iterable[str]) -> Iterator[tuple[str, dict[str, str], None]]:
    """Yield the molecule of each line, a CXSMILES extension included; its name may follow."""
    first = True
    for line in stream:
        smiles, _ = split_smiles_line(line)
        if not smiles:
            continue
        is_header = first and normal_name(smiles) in SMILES_COLUMNS
        first = False
        if not is_header:
            yield smiles, {}, None


def sdf_records(stream: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
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


def format_of(path: Path) -> str:
    """Return the one of `FORMATS` that the name of a file says; UsageError for another."""
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


def column_names(path: Path, kind: str) -> list[str]:
    """Return the columns of the header, or of the first records of a JSONL or SDF file."""
    if kind == "smi":
        return []
    with text_lines(path) as stream:
        if kind in ("csv", "tsv"):
            header = next(_csv_rows(stream, kind, path), None)
            if header is None:
                raise UsageError(f"{path.name} is empty")
            return [name.strip() for name in header]
        if kind == "sdf":
            records: Iterator[dict[str, str]] = (record for _, record in sdf_records(stream))
        else:
            records = (record for record, _ in table_records(stream, kind, path))
        # 100 records: later records may lack a column, rarely bring a new one
        names = dict.fromkeys(name for record in islice(records, 100) for name in record)
    if kind == "jsonl" and not names:
        raise UsageError(f"{path.name} has no JSON object with columns in its first 100 lines")
    return list(names)
