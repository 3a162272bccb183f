"""Shards: their columns, and one of them in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collamo.chem.conformer import Conformer
from collamo.chem.features import MoleculeFeatures
from collamo.data.facts import ELEMENTS, PROPERTIES_2D, PROPERTIES_3D, count_elements
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
        ("parent", pa.string()),  # SMILES without counter-ions, charge, stereo; canonical tautomer
        ("parent_bounded", pa.bool_()),  # see `collamo.chem.parent.Parent`
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


class Shard:
    """One shard in memory: flat arrays, sliced per molecule on demand."""

    def __init__(self, table: pa.Table):
        self.position = {row: i for i, row in enumerate(table["row"].to_pylist())}
        self.plain = {
            name: table[name].to_pylist()
            for name in (
                "smiles",
                "selfies",
                "conformer_method",
                "conformer_seed",
                "conformer_converged",
                "conformer_reason",
                *FACT_COLUMNS,
            )
        }
        self.flat = {
            name: _flat(table[name])
            for name in (
                *("atom_features", "edge_index", "edge_features"),
                *("bond_directions", "coordinates"),
            )
        }

    def features(self, row: int) -> MoleculeFeatures:
        """Return the features of a row; KeyError when it was rejected."""
        i = self._place(row)
        selfies = self.plain["selfies"][i]
        return MoleculeFeatures(
            smiles=self.plain["smiles"][i],
            selfies=None if selfies is None else tuple(selfies),
            atom_features=self._slice("atom_features", i).reshape(-1, 9),
            edge_index=self._slice("edge_index", i).reshape(2, -1),
            edge_features=self._slice("edge_features", i).reshape(-1, 3),
            conformer=self._conformer(i),
            bond_directions=self._slice("bond_directions", i),
        )

    def facts(self, row: int) -> np.ndarray:
        """Return the facts of a row, see `PreparedData.facts`."""
        i = self._place(row)
        formula, motifs, properties, geometry = (self.plain[name][i] for name in FACT_COLUMNS)
        known = {**count_elements(formula), **by_name(properties), **by_name(geometry)}
        numbers = [known.get(target, np.nan) for target in NUMBERS]
        facts = np.array([*motifs, *numbers], dtype=np.float32)
        facts[~np.isfinite(facts)] = np.nan
        return facts

    def _place(self, row: int) -> int:
        if row not in self.position:
            raise KeyError(f"row {row} was rejected; rejected.jsonl says why")
        return self.position[row]

    def _slice(self, name: str, i: int) -> np.ndarray:
        values, offsets, _ = self.flat[name]
        return values[offsets[i] : offsets[i + 1]]

    def _present(self, name: str, i: int) -> np.ndarray | None:
        return self._slice(name, i) if self.flat[name][2][i] else None

    def _conformer(self, i: int) -> Conformer:
        coordinates = self._present("coordinates", i)
        return Conformer(
            None if coordinates is None else coordinates.reshape(-1, 3),
            self.plain["conformer_method"][i],
            self.plain["conformer_seed"][i],
            self.plain["conformer_converged"][i],
            self.plain["conformer_reason"][i],
        )


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (values of all rows, offsets [rows + 1], present [rows]) of a list column."""
    lists = column.combine_chunks()
    return (
        lists.values.to_numpy(zero_copy_only=False),
        lists.offsets.to_numpy(),
        lists.is_valid().to_numpy(zero_copy_only=False),
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
