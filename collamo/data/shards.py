"""Prepared data on disk: parquet shards of molecules, questions per split, and a manifest.

::

    manifest.json            source, options, counts, vocabulary, versions, sha256 of every file
    molecules-00000.parquet  one row per molecule: features, conformer, facts (MOLECULE_SCHEMA)
    molecules-00000.json     the shard's key and sha256, and its rejected rows: what resuming reads
    splits.parquet           row, split
    tasks-train.parquet …    questions with answers (TASK_SCHEMA); also -validation and -test
    rejected.jsonl           {"row", "text", "reason", "message"} per rejected record

``encoded-…`` files may stand beside these, see `collamo.data.encoded`.

Everything is a function of source, options and library versions: no times, no host names, no
number of workers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collamo.chem.conformer import Conformer
from collamo.chem.features import MoleculeFeatures
from collamo.data.tasks import PROPERTIES_2D, PROPERTIES_3D, TaskExample, corpus_line
from collamo.errors import CollamoError, UsageError, suggest
from collamo.files import file_sha256, replacing, write_text

MANIFEST = "manifest.json"
SPLITS = ("train", "validation", "test")
FORMAT_VERSION = 2
FACT_COLUMNS = ("motifs", "properties", "geometry")
NUMBERS = (*(entry.target for entry in PROPERTIES_2D), *PROPERTIES_3D)

MOLECULE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("text", pa.string()),  # as given; of a mol block its first line
        ("smiles", pa.string()),
        ("canonical_smiles", pa.string()),
        ("scaffold", pa.string()),  # Murcko, "" for an acyclic molecule
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
        ("properties", pa.map_(pa.string(), pa.float64())),
        ("geometry", pa.map_(pa.string(), pa.float64())),  # Å
        ("columns", pa.map_(pa.string(), pa.string())),  # the source's own, as given
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


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds.

    Attributes
    ----------
    source, source_sha256, options
        What was prepared and how; options are the arguments of `prepare` that shape the result.
    rows
        ``{"in", "ok", "rejected"}``; in = ok + rejected.
    rejected
        Reason code → rows.
    conformers
        Method → molecules; ``"none"`` counts the absent ones.
    splits, tasks
        Split → molecules; split → task → questions.
    selfies_vocabulary
        Sorted SELFIES tokens of the train split.
    unknown_elements
        Element → ``{"molecules", "atoms"}``: those with a conformer that Uni-Mol's dictionary lacks
        and reads as [UNK].
    measured
        Measured column → ``{"description", "unit", "decimals"}``.
    motifs
        Names behind the shards' motif counts.
    versions
        Libraries that shaped the result.
    files
        File → ``{"bytes", "sha256", "rows"}``, shards first.
    """

    source: str
    source_sha256: str
    options: Mapping[str, object]
    rows: Mapping[str, int]
    rejected: Mapping[str, int]
    conformers: Mapping[str, int]
    splits: Mapping[str, int]
    tasks: Mapping[str, Mapping[str, int]]
    selfies_vocabulary: Sequence[str]
    measured: Mapping[str, Mapping[str, object]]
    motifs: Sequence[str]
    versions: Mapping[str, str]
    files: Mapping[str, Mapping[str, object]]
    unknown_elements: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``manifest.json``; a CollamoError says what is wrong with it."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            manifest = cls(**content)
        except FileNotFoundError:
            raise UsageError(
                f"{path.parent} holds no prepared data ({MANIFEST} is missing); "
                "run `collamo prepare` and let it finish"
            ) from None
        except (ValueError, TypeError) as error:
            raise CollamoError(
                f"{path} is damaged ({error}); run `collamo prepare` again"
            ) from None
        if manifest.format_version != FORMAT_VERSION:
            raise CollamoError(
                f"{path} has format {manifest.format_version}, this version of collamo reads "
                f"{FORMAT_VERSION}; run `collamo prepare` again into another folder"
            )
        return manifest

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n")


class PreparedData:
    """A prepared folder, read back. Every file is checked against the manifest before it is used.

    Examples
    --------
    >>> data = PreparedData.open("demo/data")  # doctest: +SKIP
    >>> example = data.tasks("test")[0]  # doctest: +SKIP
    >>> data.features(example.molecule).smiles, example.question  # doctest: +SKIP
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        self._shards: dict[int, _Shard] = {}
        self._tasks: dict[str, list[TaskExample]] = {}
        self._encoded: dict[str, Callable[[int], np.ndarray | None]] = {}

    @classmethod
    def open(cls, folder: str | Path) -> PreparedData:
        """Open a folder that `prepare` wrote.

        Raises
        ------
        UsageError
            The folder is not there or holds no manifest.
        CollamoError
            The manifest is damaged; a file it lists is missing or has another size. A file whose
            bytes changed is found by its sha256 when it is first read.
        """
        folder = Path(folder)
        data = cls(folder, Manifest.read(folder / MANIFEST))
        for name in data.manifest.files:
            data._check_size(name)
        return data

    def verify(self) -> None:
        """Check the sha256 of every file; CollamoError names the first that differs."""
        for name in self.manifest.files:
            self._checked(name)

    def features(self, row: int) -> MoleculeFeatures:
        """Return the features of row `row`; KeyError when it was rejected or is not there."""
        features = self._shard_with(row).features(row)
        encoded = {modality: outputs(row) for modality, outputs in self._encoded.items()}
        encoded = {modality: x for modality, x in encoded.items() if x is not None}
        return dataclasses.replace(features, encoded=encoded) if encoded else features

    def add_encoded(self, modality: str, outputs: Callable[[int], np.ndarray | None]) -> None:
        """Let `features` also bring what the encoder of `modality` says, as ``outputs(row)``.

        See `collamo.data.encoded.EncodedRows`.
        """
        self._encoded[modality] = outputs

    def facts(self, row: int) -> np.ndarray:
        """Return the facts of row `row` as float32 ``[F]``: the counts of the manifest's motifs,
        then `PROPERTIES_2D`, then `PROPERTIES_3D`; NaN where one is unknown."""
        return self._shard_with(row).facts(row)

    def molecules(self, split: str) -> Mapping[int, MoleculeFeatures]:
        """Return row number → features of the molecules of a split, in row order."""
        return {row: self.features(row) for row in self._rows(split)}

    def tasks(self, split: str) -> list[TaskExample]:
        """Return the questions of a split, in row order; read once."""
        self._check_split(split)
        if split not in self._tasks:
            table = pq.read_table(self._checked(f"tasks-{split}.parquet"), schema=TASK_SCHEMA)
            columns = [table.column(name).to_pylist() for name in TASK_SCHEMA.names]
            self._tasks[split] = [TaskExample(*fields) for fields in zip(*columns, strict=True)]
        return self._tasks[split]

    def text(self, split: str) -> Iterator[str]:
        """Yield the text of a split, one line per question with its answer."""
        yield from map(corpus_line, self.tasks(split))

    def table(self, shard: int) -> pa.Table:
        """Return one shard as an arrow table with `MOLECULE_SCHEMA`, facts included."""
        return pq.read_table(self._checked(shard_name(shard)), schema=MOLECULE_SCHEMA)

    def _rows(self, split: str) -> list[int]:
        self._check_split(split)
        table = pq.read_table(self._checked("splits.parquet"))
        pairs = zip(table["row"].to_pylist(), table["split"].to_pylist(), strict=True)
        return [row for row, name in pairs if name == split]

    def _check_split(self, split: str) -> None:
        if split not in SPLITS:
            raise UsageError(
                f"unknown split {split!r}{suggest(split, SPLITS)}; use {', '.join(SPLITS)}"
            )

    def shard_of(self, row: int) -> int:
        """Return the number of the shard with row `row`; KeyError outside the prepared rows."""
        if not 1 <= row <= self.manifest.rows["in"]:
            raise KeyError(f"row {row} is outside the {self.manifest.rows['in']} prepared rows")
        return (row - 1) // int(self.manifest.options["shard_size"])

    def molecules_of(self, shard: int) -> dict[int, MoleculeFeatures]:
        """Return row → features of a shard, in row order, without what encoders say."""
        opened = self._shard(shard)
        return {row: opened.features(row) for row in opened.position}

    @property
    def num_shards(self) -> int:
        """Shards of molecules."""
        return -(-self.manifest.rows["in"] // int(self.manifest.options["shard_size"]))

    def _shard_with(self, row: int) -> _Shard:
        return self._shard(self.shard_of(row))

    def _shard(self, index: int) -> _Shard:
        if index not in self._shards:
            self._shards[index] = _Shard(self.table(index))
        return self._shards[index]

    def _check_size(self, name: str) -> None:
        path, expected = self.folder / name, self.manifest.files[name]["bytes"]
        if not path.is_file():
            raise CollamoError(f"{path} is missing; run `collamo prepare` again to rebuild it")
        if path.stat().st_size != expected:
            raise CollamoError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {expected}; "
                "run `collamo prepare` again to rebuild it"
            )

    def _checked(self, name: str) -> Path:
        self._check_size(name)
        path = self.folder / name
        if file_sha256(path, remember=True) != self.manifest.files[name]["sha256"]:
            raise CollamoError(
                f"{path} was altered (its sha256 differs from the manifest); "
                "run `collamo prepare` again to rebuild it"
            )
        return path


class _Shard:
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
        i = self._place(row)
        motifs, properties, geometry = (self.plain[name][i] for name in FACT_COLUMNS)
        known = {**dict(properties), **dict(geometry)}
        numbers = [known.get(target, np.nan) for target in NUMBERS]
        return np.array([*motifs, *numbers], dtype=np.float32)

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


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"molecules-{index:05d}.parquet"


def file_entry(path: Path, rows: int) -> dict[str, object]:
    """Return what the manifest says about a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path, remember=True), "rows": rows}


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
