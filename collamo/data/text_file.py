"""The lines of a text file, plain or gzip."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from collamo.errors import UsageError
from collamo.files import mistaken_for


@contextmanager
def text_lines(path: Path, newline: str = "\n") -> Iterator[IO[str]]:
    """Yield the text of a file in UTF-8, with or without BOM; other bytes are lone surrogates.

    Lines end as `open` understands `newline`; a file with carriage returns alone (old Macintosh) is
    read by these.

    Raises
    ------
    UsageError
        For a file in UTF-16, for a .gz that is not gzip or is damaged, and for what is no text at
        all or a page instead of the file.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError(f"{path.name} is UTF-16; save it as UTF-8")
    packed = start[:2] == b"\x1f\x8b"
    if path.suffix.lower() == ".gz" and not packed:
        raise UsageError(f"{path.name} is not a gzip file; rename it or compress it again")
    with _named_damage(path.name), gzip.open(path, "rb") if packed else path.open("rb") as content:
        buffered = io.BufferedReader(content, _HEAD)
        head = buffered.peek(_HEAD)
        if kind := mistaken_for(head) or _binary(head):
            raise UsageError(f"{path.name} is {kind[0]}: {kind[1]}")
        if newline == "\n" and b"\r" in head and b"\n" not in head:
            newline = "\r"
        with io.TextIOWrapper(
            buffered, "utf-8-sig", errors="surrogateescape", newline=newline
        ) as stream:
            yield stream


_HEAD = 1 << 16  # bytes that are looked at for the kind of line end

# How files begin that are renamed to a text's ending → what they are, and what to do.
_BINARY = {
    b"PK\x03\x04": (
        "a zip archive or an Excel workbook",
        "unpack it, or save the sheet as CSV in UTF-8",
    ),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV in UTF-8"),
    b"PAR1": ("a Parquet file", "give it the ending .parquet"),
    b"%PDF": ("a PDF", "its tables must be saved as CSV"),
}


def _binary(start: bytes) -> tuple[str, str] | None:
    return next((kind for sign, kind in _BINARY.items() if start.startswith(sign)), None)


@contextmanager
def _named_damage(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(
            f"{name} is a damaged gzip file: {error}; download or compress it again"
        ) from None
