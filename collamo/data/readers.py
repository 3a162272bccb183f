"""Records of every format, one by one: tables (CSV, TSV, JSON, Parquet), SMI."""

from __future__ import annotations

import csv
import gzip
import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from collamo.chem.molecule import split_smiles_line
from collamo.data.columns import SMILES_COLUMNS, normal_name
from collamo.errors import UsageError
from collamo.files import naming

# Our choice: the csv module's 131,072 characters refuse the mol block of a large molecule; without
# a limit, a quote that is never closed would take the rest of the file into memory.
FIELD_LIMIT = 1 << 26

#: (code, reason) of a record that cannot be understood.
Problem = tuple[str, str]


@dataclass(frozen=True)
class Record:
    """One record: its values by column (text, or what JSON and Parquet hold), or its problem."""

    values: Mapping[str, object] = field(default_factory=dict)
    problem: Problem | None = None


BLANK = "blank"  # the problem of a line without anything on it


def csv_rows(lines: Iterable[str], name: str) -> Iterator[tuple[list[str], Problem | None]]:
    """Yield the rows of a CSV file called `name`, quotes as in RFC 4180; blank lines are left out.

    A row of one line with a quote at fault has a problem. One of several lines has none: where it
    ends is unknown, and so is how many rows it holds.

    Raises
    ------
    UsageError
        For a quote at fault in a row of several lines and a field over `FIELD_LIMIT`.
    """
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(lines, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield [], _quote_problem(error, start, reader.line_num, name)
            continue
        if row:
            yield row, None


def _quote_problem(error: csv.Error, start: int, end: int, name: str) -> Problem:
    advice = "close it, or write a quote inside a field twice"
    if "unexpected end" in str(error):
        raise UsageError(
            f"{name}: a quote opened in the record of line {start} is never closed; {advice}"
        )
    if "limit" in str(error):
        raise UsageError(
            f"{name}: line {end}: {error}; a quote may be open since the record of line {start}"
        )
    if end > start:
        raise UsageError(
            f"{name}: a quote opened in the record of line {start} is closed in the middle of a "
            f"field of line {end}; {advice}"
        )
    return "quotes", f"line {start} has text after the quote that closes a field; {advice}"


def csv_records(lines: Iterable[str], name: str) -> Iterator[Record]:
    """Yield the rows of a CSV file after its header."""
    rows = csv_rows(lines, name)
    header = _checked_header(next(rows, ([], None)), name)
    for row, problem in rows:
        if len(header) > 1 and len(row) == 1 and not row[0].strip():
            continue  # a line of blanks
        yield _record(header, row, problem)


def tsv_records(lines: Iterable[str], name: str) -> Iterator[Record]:
    """Yield the lines of a TSV file after its header: a quote is an ordinary character.

    A line without anything on it is a record with the problem `BLANK`.
    """
    rows = _tsv_rows(lines)
    header = _checked_header(next(rows, ([], None)), name)
    for row, problem in rows:
        if row == [""]:
            problem = (BLANK, "line is blank")
        yield _record(header, row, problem)


def _tsv_rows(lines: Iterable[str]) -> Iterator[tuple[list[str], Problem | None]]:
    for line in dropwhile(lambda line: not line.strip(), lines):
        yield line.rstrip("\n").rstrip("\r").split("\t"), None


def _checked_header(row: tuple[list[str], Problem | None], name: str) -> list[str]:
    fields, problem = row
    if problem is not None:
        raise UsageError(f"{name}: header: {problem[1]}")
    names = [field.strip() for field in fields]
    if names.count("") < 2:
        return names
    # Each value needs a name of its own to be written back; pandas would call its column so.
    return [column or f"Unnamed: {place}" for place, column in enumerate(names)]


def _record(header: list[str], row: list[str], problem: Problem | None) -> Record:
    if problem is None and len(row) != len(header):
        problem = ("fields", f"record has {len(row)} fields, the header has {len(header)}")
    # zip to the shorter: a row with too few fields keeps what it has, for rejected.jsonl
    return Record(dict(zip(header, row, strict=False)), problem)


def header_of(lines: Iterable[str], kind: str, name: str) -> list[str]:
    """Return the columns of a CSV or TSV file as its first line names them."""
    rows = _tsv_rows(lines) if kind == "tsv" else csv_rows(lines, name)
    return _checked_header(next(iter(rows), ([], None)), name)


def jsonl_records(lines: Iterable[str], name: str) -> Iterator[Record]:
    """Yield the objects of a JSONL file; a blank line is a record with the problem `BLANK`."""
    for line in lines:
        if not line.strip():
            yield Record(problem=(BLANK, "line is blank"))
            continue
        try:
            value = _decoder.decode(line)
        except (ValueError, RecursionError) as error:
            yield Record(problem=("json", f"line is not a JSON object: {str(error)[:80]}"))
            continue
        yield _json_record(value, "line")


def json_records(stream: IO[str], name: str) -> Iterator[Record]:
    """Yield the objects of a JSON array, one in memory at a time.

    Raises
    ------
    UsageError
        For what is no array, with what to write instead, and for an element that is no JSON.
    """
    text, place, element, more = "", 0, 0, True  # of `text`, all before `place` is done

    def read() -> None:
        nonlocal text, place, more
        chunk = stream.read(max(1 << 16, len(text) - place))
        text, place, more = text[place:] + chunk, 0, bool(chunk)

    def next_character() -> str:
        nonlocal place
        while True:
            while place < len(text) and text[place] in " \t\r\n":
                place += 1
            if place < len(text) or not more:
                return text[place : place + 1]
            read()

    def next_value() -> object:
        nonlocal place
        while True:
            try:
                value, end = _decoder.raw_decode(text, place)
                if end < len(text) or not more:  # else a number may go on
                    place = end
                    return value
            except (ValueError, RecursionError) as error:
                if not more or len(text) - place > FIELD_LIMIT or isinstance(error, _RepeatedKey):
                    raise UsageError(
                        f"{name}: element {element} is not JSON: {str(error)[:80]}"
                    ) from None
            read()

    if next_character() != "[":
        raise UsageError(
            f"{name} is no array of objects; write [{{…}}, {{…}}] (pandas: orient='records'), or "
            "one object a line in a .jsonl"
        )
    place += 1
    delimiter = next_character()
    while delimiter != "]":
        element += 1
        next_character()
        yield _json_record(next_value(), f"element {element}")
        delimiter = next_character()
        if delimiter not in (",", "]") or not delimiter:
            raise UsageError(f"{name}: no comma or ] after element {element}")
        place += delimiter == ","
    place += 1
    if next_character():
        raise UsageError(f"{name} goes on after its array; put all objects into one array")


class _RepeatedKey(ValueError):
    """An object with one key twice, of which a dict would keep the last."""


def _json_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(f"key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_json_object)


def _json_record(value: object, place: str) -> Record:
    if not isinstance(value, dict):
        what = "null" if value is None else type(value).__name__
        return Record(problem=("json", f"{place} is not a JSON object but a {what}"))
    return Record({name.strip(): item for name, item in value.items()})


def text_value(value: object) -> str:
    """Return a value as text: JSON for what is no text, "" for null and NaN."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return json.dumps(value, ensure_ascii=False, default=str)


def smi_records(lines: Iterable[str], name: str) -> Iterator[Record]:
    """Yield the molecule of each line as "smiles", a CXSMILES extension included, and its "name".

    A tab in front leaves the SMILES empty. A header that names the column is left out.
    """
    first = True
    for line in lines:
        line = line.rstrip("\r\n").lstrip(" ")
        if not line:
            continue
        empty = line[0].isspace()
        smiles, title = ("", line.strip()) if empty else split_smiles_line(line)
        is_header = first and normal_name(smiles) in SMILES_COLUMNS
        first = False
        if not is_header:
            yield Record({"smiles": smiles, "name": title})


def parquet_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file, one row group's batch in memory at a time."""
    with ExitStack() as stack:
        file = _parquet_file(path, stack)
        for batch in file.iter_batches(batch_size=1000):
            for values in batch.to_pylist():
                yield Record({name.strip(): value for name, value in values.items()})


def parquet_columns(path: Path) -> tuple[list[str], set[str]]:
    """Return the columns of a Parquet file, and which of them hold lists or structures."""
    with ExitStack() as stack:
        schema = _parquet_file(path, stack).schema_arrow
        nested = {field.name.strip() for field in schema if pa.types.is_nested(field.type)}
        return [name.strip() for name in schema.names], nested


def _parquet_file(path: Path, stack: ExitStack) -> pq.ParquetFile:
    try:
        if path.suffix.lower() != ".gz":
            return stack.enter_context(pq.ParquetFile(path))
        # It is read from its end: unpacked to the disk, not to memory.
        unpacked = Path(stack.enter_context(tempfile.TemporaryDirectory()), "unpacked")
        with naming(unpacked), gzip.open(path) as packed, unpacked.open("wb") as file:
            shutil.copyfileobj(packed, file)
        return stack.enter_context(pq.ParquetFile(unpacked))
    except (pa.ArrowInvalid, EOFError, gzip.BadGzipFile) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path.name} cannot be read as Parquet: {reason}") from None
