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


@contextmanager
def text_lines(path: Path, newline: str = "\n") -> Iterator[IO[str]]:
    """Yield the text of a file in UTF-8, with or without BOM; other bytes are lone surrogates.

    Lines end as `open` understands `newline`; a file with carriage returns alone (old Macintosh) is
    read by these.

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
    with _named_damage(path.name), gzip.open(path, "rb") if packed else path.open("rb") as content:
        buffered = io.BufferedReader(content, _HEAD)
        head = buffered.peek(_HEAD)
        if newline == "\n" and b"\r" in head and b"\n" not in head:
            newline = "\r"
        with io.TextIOWrapper(
            buffered, "utf-8-sig", errors="surrogateescape", newline=newline
        ) as stream:
            yield stream


_HEAD = 1 << 16  # bytes that are looked at for the kind of line end


@contextmanager
def _named_damage(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(
            f"{name} is a damaged gzip file: {error}; download or compress it again"
        ) from None
