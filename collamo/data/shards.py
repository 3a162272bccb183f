"""Shards: their columns, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from collamo.data.facts import ELEMENTS, PROPERTIES_2D, PROPERTIES_3D
from collamo.files import replacing

SPLITS = ("train", "validation", "test")
FACT_COLUMNS = ("formula", "motifs", "properties", "geometry")
NUMBERS = (*ELEMENTS, *(entry.target for entry in PROPERTIES_2D), *PROPERTIES_3D)


def _named(values: pa.DataType) -> pa.DataType:
    """Values by name. Not an Arrow map, which the library `datasets` cannot read."""
    return pa.list_(pa.struct([("name", pa.string()), ("value", values)]))


MOLECULE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("text", pa.string()),  # as given; of a mol block its first line
        ("smiles", pa.string()),
        ("canonical_smiles", pa.string()),
        ("scaffold", pa.string()),  # Murcko, "" for an acyclic molecule
        ("neutral_smiles", pa.string()),  # without counter-ions, charge, isotopes, stereo
        ("tautomer_key", pa.int64()),  # see `collamo.chem.parent.NeutralForm`
        ("selfies", pa.list_(pa.string())),  # null: 1D is absent
        ("selfies_reason", pa.string()),
        ("atom_features", pa.list_(pa.uint8())),  # [N, 9] row-major
        ("edge_index", pa.list_(pa.int32())),  # [2, E] row-major
        ("edge_features", pa.list_(pa.uint8())),  # [E, 3] row-major
        ("bond_directions", pa.list_(pa.uint8())),  # [E]
        ("coordinates", pa.list_(pa.float32())),  # [N, 3] Å row-major; null: 3D is absent
        ("conformer_method", pa.string()),
        ("conformer_seed", pa.int64()),
        ("conformer_converged", pa.bool_()),
        ("conformer_reason", pa.string()),
        ("formula", pa.string()),
        ("motifs", pa.list_(pa.int32())),  # counts in the order of manifest "motifs"
        ("properties", _named(pa.float64())),  # what is not finite is no fact, and counted
        ("geometry", _named(pa.float64())),  # Å
        ("columns", _named(pa.string())),  # the source's own, as given
    ]
)
TASK_SCHEMA = pa.schema(
    [
        ("molecule", pa.int64()),
        ("task", pa.string()),
        ("target", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("value", pa.float64()),
        ("unit", pa.string()),
    ]
)


def by_name(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values of a row's ``properties``, ``geometry`` or ``columns`` by name."""
    return {entry["name"]: entry["value"] for entry in values}


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"molecules-{index:05d}.parquet"


def tasks_path(folder: Path, split: str) -> Path:
    """Return the file of a split's questions."""
    return folder / f"tasks-{split}.parquet"


def write_table(path: Path, records: Iterable[Mapping[str, object]], schema: pa.Schema) -> None:
    """Write records as parquet, whole or not at all."""
    table = pa.Table.from_pylist(list(records), schema=schema)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of a parquet file that is there, whole, when the block has ended."""
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        yield writer
