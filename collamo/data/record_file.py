"""A file of records in any format that collamo reads: what prepare, generate and score open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from collamo.data.readers import (
    BLANK,
    Record,
    csv_records,
    header_of,
    json_records,
    jsonl_records,
    parquet_columns,
    parquet_records,
    smi_records,
    tsv_records,
)
from collamo.data.sdf_file import MOLBLOCK, sdf_records
from collamo.data.text_file import text_lines
from collamo.data.xyz_file import XYZ, xyz_records
from collamo.errors import UsageError
from collamo.files import file_sha256

_EXTENSIONS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".smi": "smi",
    ".smiles": "smi",
    ".sdf": "sdf",
    ".sd": "sdf",
    ".mol": "sdf",
    ".xyz": "xyz",
}
_READERS: dict[str, Callable[[Iterable[str], str], Iterator[Record]]] = {
    "csv": csv_records,
    "tsv": tsv_records,
    "jsonl": jsonl_records,
    "smi": smi_records,
    "sdf": sdf_records,
    "xyz": xyz_records,
}
# The column of the molecule in formats whose records are a molecule and what belongs to it.
_BLOCK_COLUMNS = {"sdf": MOLBLOCK, "xyz": XYZ}


class RecordFile:
    """A file of records; every pass over it reads it anew, one record in memory at a time.

    `keep_blank` counts a blank line of a TSV or JSONL file as a record, with its problem.

    Raises
    ------
    UsageError
        No such file, a folder, or an unknown extension; while reading, what is no such format.
    """

    def __init__(self, path: str | Path, *, keep_blank: bool = False):
        self.path = Path(path)
        self.format = format_of(self.path)
        if self.path.is_dir():
            raise UsageError(f"{self.path} is a folder; give one file, or join its files into one")
        if not self.path.is_file():
            raise UsageError(f"{self.path}: No such file; check its name and folder")
        self._keep_blank = keep_blank

    @property
    def name(self) -> str:
        """The file's name, without folders."""
        return self.path.name

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes."""
        return file_sha256(self.path)

    def __iter__(self) -> Iterator[Record]:
        for record in self._records():
            if self._keep_blank or record.problem is None or record.problem[0] != BLANK:
                yield record

    def _records(self) -> Iterator[Record]:
        if self.format == "parquet":
            yield from parquet_records(self.path)
            return
        with text_lines(self.path, "" if self.format == "csv" else "\n") as stream:
            if self.format != "json":
                yield from _READERS[self.format](stream, self.name)
            elif _is_json_lines(self.path):
                yield from jsonl_records(stream, self.name)
            else:
                yield from json_records(stream, self.name)

    @property
    def columns(self) -> list[str]:
        """The columns of the header, a repeated one as often as it is there; without a header those
        of all records."""
        return self._layout[0]

    @property
    def nested(self) -> set[str]:
        """The columns that hold lists or objects."""
        return self._layout[1]

    @cached_property
    def _layout(self) -> tuple[list[str], set[str]]:
        if self.format == "smi":
            return ["smiles", "name"], set()
        if self.format == "parquet":
            return parquet_columns(self.path)
        if self.format in ("csv", "tsv"):
            with text_lines(self.path, "" if self.format == "csv" else "\n") as stream:
                header = header_of(stream, self.format, self.name)
                return ([] if header == [""] else header), set()
        block = _BLOCK_COLUMNS.get(self.format)
        names = {} if block is None else {block: None}
        nested: set[str] = set()
        for record in self._records():
            names |= dict.fromkeys(record.values)
            if block is None:
                nested |= {k for k, v in record.values.items() if isinstance(v, list | dict)}
        return list(names), nested


def _is_json_lines(path: Path) -> bool:
    """Return whether a .json holds one object a line, as some libraries write it."""
    with text_lines(path) as stream:
        character = " "
        while character.isspace():
            character = stream.read(1)
        if character != "{":
            return False
        records = jsonl_records([character + stream.readline()], path.name)
        return next(records).problem is None


def format_of(path: Path) -> str:
    """Return the format that the name of a file says; UsageError for another."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    kind = _EXTENSIONS.get(suffixes[-1] if suffixes else "")
    if kind is None:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give one file, or join its files into one")
        raise UsageError(
            f"{path.name}: unknown kind of file; use one of {', '.join(_EXTENSIONS)}, "
            "each also with .gz"
        )
    return kind
