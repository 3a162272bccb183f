"""Arrow files of short record batches, mapped: the columns of a row lie close together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from collamo.data.mapped_file import MappedArray, MappedFile, array_writer

#: Our choice: 64 molecules are 50 to 100 kB, what a disk reads at once.
ROWS = 64
T = TypeVar("T")
Files = Mapping[str, MappedFile]
# Opened batches that are kept. They are views, some 10 kB of Python and Arrow objects each, so that
# 65,000 molecules are never opened twice and millions need no more memory.
_OPENED = 1024


class BatchWriter:
    """Writes tables as record batches of `ROWS` rows."""

    def __init__(self, sink: pa.NativeFile, writer: pa.RecordBatchFileWriter, schema: pa.Schema):
        self._sink, self._writer = sink, writer
        self._waiting = schema.empty_table()
        self.starts = [sink.tell()]

    def append(self, table: pa.Table) -> None:
        """Write the whole batches of what was appended so far."""
        self._waiting = pa.concat_tables([self._waiting, table])
        self._write(self._waiting.num_rows // ROWS * ROWS)

    def close(self) -> None:
        """Write what is left, as a batch that may be shorter."""
        self._write(self._waiting.num_rows)

    def _write(self, rows: int) -> None:
        for first in range(0, rows, ROWS):
            (batch,) = self._waiting.slice(first, ROWS).combine_chunks().to_batches()
            self._writer.write_batch(batch)
            self.starts.append(self._sink.tell())
        self._waiting = self._waiting.slice(rows)


@contextmanager
def batch_writer(folder: Path, name: str, schema: pa.Schema) -> Iterator[BatchWriter]:
    """Yield a writer of ``<name>.arrow``, which also writes where each batch begins."""
    with (
        pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, schema) as arrow,
    ):
        writer = BatchWriter(sink, arrow, schema)
        yield writer
        writer.close()
    with array_writer(folder / f"{name}-batches.npy", "<i8") as starts:
        starts.append(np.array(writer.starts))


class MappedBatches(Generic[T]):
    """The record batches of ``<name>.arrow``, each opened without copying, as `view` of it."""

    def __init__(self, files: Files, name: str, view: Callable[[pa.RecordBatch], T]):
        self._view = view
        self._file = files[f"{name}.arrow"]
        self._starts = MappedArray(files[f"{name}-batches.npy"])
        (first,), (last,) = self._starts[:1], self._starts[len(self._starts) - 1 :]
        self._file.check(0, first)  # the schema
        self._file.check(last, self._file.size)  # the footer
        self._open()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> T:
        start, stop = self._starts[index : index + 2].tolist()
        self._file.check(start, stop)
        return self._opened(index)

    def _open(self) -> None:
        # A forked worker has none of Arrow's threads, and needs none.
        options = pa.ipc.IpcReadOptions(use_threads=False)
        reader = pa.ipc.open_file(pa.py_buffer(self._file.buffer), options=options)
        view = self._view
        self._opened = lru_cache(_OPENED)(lambda index: view(reader.get_batch(index)))

    def __getstate__(self):
        return {"_file": self._file, "_starts": self._starts, "_view": self._view}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()


class Lists:
    """A list column as one flat array: ``lists[i]`` is a view of row i, empty where it is null."""

    def __init__(self, column: pa.ListArray):
        self.values: np.ndarray = column.values.to_numpy(zero_copy_only=False)
        self.offsets: np.ndarray = column.offsets.to_numpy()
        self._present = column.is_valid().to_numpy(zero_copy_only=False)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def get(self, i: int) -> np.ndarray | None:
        """Return row i, None where it is null."""
        return self[i] if self._present[i] else None
