"""Files of fixed content, mapped into memory: checked block by block, held in few pages.

A page of a mapped file lies in memory once, for every process that reads it. It also counts as
resident memory of each of them from its first use on, until the process gives it back; then the
next use finds it in the page cache, or on the disk.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from collamo.errors import CollamoError

#: Bytes whose SHA-256 is kept as one, and that are checked when the first of them is used. Our
#: choice: about a record batch of molecules, so that one use checks little that it does not need.
BLOCK = 1 << 17
# Our choice: of each file as much stays resident. Pages that are used all the time come back from
# the page cache within microseconds.
_HELD = 1 << 24
# The kernel maps up to 16 neighbours of a page along with it.
_AROUND = 1 << 16
_DIGEST = hashlib.sha256().digest_size


def block_digests(path: Path) -> bytes:
    """Return the SHA-256 of each `BLOCK` of a file, one after the other."""
    with path.open("rb") as file:
        return b"".join(
            hashlib.sha256(part).digest() for part in iter(lambda: file.read(BLOCK), b"")
        )


class MappedFile:
    """A file mapped into memory, read-only; `digests` are those of `block_digests`.

    Raises
    ------
    CollamoError
        Where the file is missing or has another size; from `bytes` where a byte was altered.
    """

    def __init__(self, path: Path, size: int, digests: bytes):
        self.path, self.size = path, size
        self._digests = digests
        self._checked = bytearray(len(digests) // _DIGEST)
        self._touched = 0
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):  # an empty file cannot be mapped
            raise self._altered() from None
        if len(self._map) != size:
            raise self._altered()

    def __reduce__(self):
        """Let a worker that was not forked map the file itself."""
        return MappedFile, (self.path, self.size, self._digests)

    @property
    def buffer(self) -> mmap.mmap:
        """All of it; what was not passed to `check` may be damaged."""
        return self._map

    def bytes(self, start: int, stop: int) -> memoryview:
        """Return a view of bytes [start, stop), checked."""
        self.check(start, stop)
        return memoryview(self._map)[start:stop]

    def check(self, start: int, stop: int) -> None:
        """Check the blocks of bytes [start, stop) that were not yet; call it before each use."""
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            if not self._checked[block]:
                content = memoryview(self._map)[block * BLOCK : (block + 1) * BLOCK]
                kept = self._digests[block * _DIGEST : (block + 1) * _DIGEST]
                if hashlib.sha256(content).digest() != kept:
                    raise self._altered()
                self._checked[block] = True
                self._touched += BLOCK
        self._touched += stop - start + _AROUND
        if self._touched > _HELD < self.size:
            self._touched = 0
            if hasattr(mmap, "MADV_DONTNEED"):  # Windows has none, and trims by itself
                self._map.madvise(mmap.MADV_DONTNEED)

    def _altered(self) -> CollamoError:
        return CollamoError(
            f"{self.path} is missing or was altered; delete the folder {self.path.parent}: it is "
            "made again from the shards"
        )


class MappedArray:
    """An array of a ``.npy`` file, mapped: slices are checked views, read-only."""

    def __init__(self, file: MappedFile):
        self._file = file
        file.check(0, min(file.size, BLOCK))  # the header
        with file.path.open("rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            self._start = stream.tell()
        self.shape, self.dtype = shape, dtype
        self._row = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))  # bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(len(self))
        last = max(first, last)
        start = self._start + first * self._row
        view = self._file.bytes(start, start + (last - first) * self._row)
        return np.frombuffer(view, self.dtype).reshape(last - first, *self.shape[1:])


class ArrayWriter:
    """Writes a ``.npy`` file of so many rows of `shape` as are appended."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...] = ()):
        self._file = path.open("wb")
        self._dtype, self._shape, self.count = np.dtype(dtype), shape, 0
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        """Append rows [n, *shape]."""
        assert rows.shape[1:] == self._shape, (rows.shape, self._shape)
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.count += len(rows)

    def close(self) -> None:
        """Write how many there are."""
        self._file.seek(0)
        self._write_header()  # numpy leaves room for any number of rows
        self._file.close()

    def _write_header(self) -> None:
        shape = (self.count, *self._shape)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def array_writer(path: Path, dtype: str, shape: tuple[int, ...] = ()) -> Iterator[ArrayWriter]:
    """Yield an `ArrayWriter`, closed at the end of the block."""
    writer = ArrayWriter(path, dtype, shape)
    try:
        yield writer
    finally:
        writer.close()
