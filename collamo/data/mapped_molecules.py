"""Molecules by row, from mapped files: what `collamo.data.mapped` keeps of the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collamo.chem.conformer import Conformer
from collamo.chem.features import MoleculeFeatures
from collamo.data.facts import count_elements
from collamo.data.mapped_batches import ROWS, Files, Lists, MappedBatches, batch_writer
from collamo.data.mapped_file import MappedArray, array_writer
from collamo.data.shards import NUMBERS

NAME = "molecules"
_LISTS = ("atom_features", "edge_index", "edge_features", "bond_directions")
_SCHEMA = pa.schema(
    [
        ("smiles", pa.string()),
        ("selfies", pa.list_(pa.int32())),  # numbers of tokens; null: 1D is absent
        ("atom_features", pa.list_(pa.uint8())),
        ("edge_index", pa.list_(pa.int32())),
        ("edge_features", pa.list_(pa.uint8())),
        ("bond_directions", pa.list_(pa.uint8())),
        ("coordinates", pa.list_(pa.float32())),  # null: 3D is absent
        ("conformer_method", pa.string()),
        ("conformer_seed", pa.int64()),
        ("conformer_converged", pa.bool_()),
        ("conformer_reason", pa.string()),
    ]
)
#: What is read of a shard.
COLUMNS = ["row", *_SCHEMA.names, "formula", "motifs", "properties", "geometry"]


class MappedMolecules:
    """The molecules of a prepared folder in row order, M in all.

    Attributes
    ----------
    atoms, conformer_atoms
        [M] int32: how many a molecule has, and how many of them have coordinates: all or none.
    facts
        [M,F] float32, see `PreparedData.facts`.
    """

    def __init__(self, files: Files, tokens: list[str]):
        self._batches = MappedBatches(files, NAME, _Molecules)
        self._tokens = tokens
        self.atoms = MappedArray(files[f"{NAME}-atoms.npy"])
        self.conformer_atoms = MappedArray(files[f"{NAME}-conformer-atoms.npy"])
        self.facts = MappedArray(files[f"{NAME}-facts.npy"])
        self._rejected = MappedArray(files[f"{NAME}-rejected.npy"])[:]  # few, so that all are read

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Return the place of each row among the molecules; of a rejected row, that of the next."""
        return rows - 1 - np.searchsorted(self._rejected, rows)

    def place(self, row: int) -> int:
        """Return the place of a row's molecule; KeyError where the row was rejected."""
        before = int(np.searchsorted(self._rejected, row))
        if self._rejected[before : before + 1].tolist() == [row]:
            raise KeyError(f"row {row} was rejected; rejected.jsonl says why")
        return row - 1 - before

    def rows_between(self, first: int, end: int) -> list[int]:
        """Return the rows in [first, end) that were not rejected."""
        rows = np.arange(first, end)
        return rows[~np.isin(rows, self._rejected)].tolist()

    def features(self, row: int) -> MoleculeFeatures:
        """Return the features of a row; KeyError where it was rejected. Arrays are read-only."""
        batch, i = divmod(self.place(row), ROWS)
        return self._batches[batch].features(i, self._tokens)


class _Molecules:
    """A record batch of molecules: flat arrays, sliced per molecule."""

    def __init__(self, batch: pa.RecordBatch):
        self.lists = {
            name: Lists(batch.column(name)) for name in ("selfies", *_LISTS, "coordinates")
        }
        self.plain = {name: batch.column(name) for name in _SCHEMA.names if name not in self.lists}

    def features(self, i: int, tokens: list[str]) -> MoleculeFeatures:
        plain = {name: column[i].as_py() for name, column in self.plain.items()}
        selfies = self.lists["selfies"].get(i)
        atoms, edges, bonds, directions = (self.lists[name][i] for name in _LISTS)
        coordinates = self.lists["coordinates"].get(i)
        return MoleculeFeatures(
            smiles=plain["smiles"],
            selfies=None if selfies is None else tuple([tokens[k] for k in selfies.tolist()]),
            atom_features=atoms.reshape(-1, 9),
            edge_index=edges.reshape(2, -1),
            edge_features=bonds.reshape(-1, 3),
            conformer=Conformer(
                None if coordinates is None else coordinates.reshape(-1, 3),
                plain["conformer_method"],
                plain["conformer_seed"],
                plain["conformer_converged"],
                plain["conformer_reason"],
            ),
            bond_directions=directions,
        )


def write_molecules(
    folder: Path,
    tables: Iterable[pa.Table],
    total: int,
    motifs: int,
    advance: Callable[[int], None],
) -> list[str]:
    """Write the molecules of shards (`COLUMNS` of `MOLECULE_SCHEMA`) of `total` rows, rejected ones
    counted; return the SELFIES tokens by number."""
    tokens: dict[str, int] = {}
    present = np.zeros(total, dtype=bool)
    with ExitStack() as stack:
        batches = stack.enter_context(batch_writer(folder, NAME, _SCHEMA))
        atoms, conformer_atoms, facts = (
            stack.enter_context(array_writer(folder / f"{NAME}-{name}.npy", dtype, shape))
            for name, dtype, shape in (
                ("atoms", "<i4", ()),
                ("conformer-atoms", "<i4", ()),
                ("facts", "<f4", (motifs + len(NUMBERS),)),
            )
        )
        for table in tables:
            table = table.combine_chunks()
            present[table["row"].to_numpy() - 1] = True
            batches.append(_numbered(table, tokens).select(_SCHEMA.names).cast(_SCHEMA))
            counts = _lengths(table["atom_features"]) // 9
            atoms.append(counts)
            has_3d = table["coordinates"].is_valid().to_numpy()
            conformer_atoms.append(np.where(has_3d, counts, 0))
            facts.append(facts_of(table, motifs))
            advance(len(table))
    with array_writer(folder / f"{NAME}-rejected.npy", "<i8") as rejected:
        rejected.append(np.flatnonzero(~present) + 1)
    return list(tokens)


def facts_of(table: pa.Table, motifs: int) -> np.ndarray:
    """Return the facts [rows,F] of a shard, see `PreparedData.facts`."""
    facts = np.full((len(table), motifs + len(NUMBERS)), np.nan, dtype=np.float32)
    facts[:, :motifs] = _array(table["motifs"]).values.to_numpy().reshape(-1, motifs)
    place = {name: motifs + i for i, name in enumerate(NUMBERS)}
    for i, formula in enumerate(table["formula"].to_pylist()):
        for element, count in count_elements(formula).items():
            facts[i, place[element]] = count
    for name in ("properties", "geometry"):
        lists = _array(table[name])
        entries = lists.flatten()
        names = entries.field("name").dictionary_encode()
        known = np.array([place.get(n, -1) for n in names.dictionary.to_pylist()], dtype=np.int64)
        columns = known[names.indices.to_numpy()]
        rows = np.repeat(np.arange(len(table)), _lengths(table[name]))
        values = entries.field("value").to_numpy(zero_copy_only=False)
        kept = columns >= 0
        with np.errstate(over="ignore"):
            facts[rows[kept], columns[kept]] = values[kept]
    facts[~np.isfinite(facts)] = np.nan
    return facts


def _numbered(table: pa.Table, tokens: dict[str, int]) -> pa.Table:
    """Return the table with numbers for SELFIES tokens; new ones are added to `tokens`."""
    lists = _array(table["selfies"])
    encoded = lists.values.dictionary_encode()
    numbers = [tokens.setdefault(token, len(tokens)) for token in encoded.dictionary.to_pylist()]
    values = np.array(numbers, dtype=np.int32)[encoded.indices.to_numpy()]
    column = pa.ListArray.from_arrays(lists.offsets, pa.array(values), mask=lists.is_null())
    return table.set_column(table.schema.get_field_index("selfies"), "selfies", column)


def _array(column: pa.ChunkedArray) -> pa.Array:
    """Return the one chunk of a column."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Return how long each list is, 0 for null."""
    return pc.fill_null(pc.list_value_length(_array(column)), 0).to_numpy()
