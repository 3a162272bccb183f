"""rows.parquet: what became of every row, with its statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from collamo.evaluation.score.predictions import PredictionRow
from collamo.files import naming, replacing

TEXTS = ("status", "group", "prediction", "reference")  # attributes of a row


class RowsFile:
    """Scored rows as parquet, a row group a batch; null where a statistic does not apply.

    Columns: the row's number, its `texts` (attributes of `PredictionRow`), `further` ones (name →
    arrow type) and its statistics. An error in the ``with`` block leaves no file.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        texts: Sequence[str] = TEXTS,
        further: Mapping[str, str] | None = None,
    ):
        self._path = path
        self._texts = texts
        self._schema = pa.schema(
            [("row", pa.int64())]
            + [(name, pa.string()) for name in texts]
            + [(name, pa.type_for_alias(kind)) for name, kind in (further or {}).items()]
            + [(name, pa.float64()) for name in columns]
        )

    def __enter__(self) -> RowsFile:
        with ExitStack() as stack:  # the writer may fail as it begins: four bytes, on a full disk
            temporary = stack.enter_context(replacing(self._path))
            self._writer = stack.enter_context(pq.ParquetWriter(temporary, self._schema))
            self._leave = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave.__exit__(kind, error, traceback)

    def write(
        self, rows: Sequence[PredictionRow], further: Sequence[Mapping[str, object]] | None = None
    ) -> None:
        """Append rows, with their further columns."""
        records = [
            {
                **more,
                "row": row.number,
                **{name: _clean(getattr(row, name)) for name in self._texts},
                **row.values,
            }
            for row, more in zip(rows, further or [{}] * len(rows), strict=True)
        ]
        with naming(self._path):
            self._writer.write_table(pa.Table.from_pylist(records, self._schema))


def _clean(text: str | None) -> str | None:
    """Return the text with every byte or surrogate that is not UTF-8 as a question mark."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")
