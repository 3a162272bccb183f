"""A prepared folder, read back.

::

    manifest.json            source, options, counts, vocabulary, versions, sha256 of every file
    molecules-00000.parquet  one row per molecule: features, conformer, facts (MOLECULE_SCHEMA)
    molecules-00000.json     the shard's key and sha256, and its rejected rows: what resuming reads
    splits.parquet           row, split, and the parent that no other split has (`data.parents`)
    tasks-train.parquet …    questions with answers (TASK_SCHEMA); also -validation and -test
    README.md                the card that the library `datasets` reads
    rejected.jsonl           {"row", "text", "reason", "message"} per rejected record

``encoded-…`` files may stand beside these, see `collamo.data.encoder_outputs`, and ``.mapped`` with
the same molecules and questions by row, see `collamo.data.mapped`.

Everything is a function of source, options and library versions: no times, no host names, no
number of workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collamo.chem.features import MoleculeFeatures
from collamo.data.fetched import local_data
from collamo.data.manifest import MANIFEST, Manifest
from collamo.data.mapped import MappedData, open_mapped
from collamo.data.mapped_molecules import MappedMolecules
from collamo.data.mapped_questions import MappedQuestions
from collamo.data.shards import MOLECULE_SCHEMA, SPLITS, shard_name
from collamo.data.tasks import TaskExample, corpus_line
from collamo.errors import CollamoError, UsageError, suggest
from collamo.files import file_sha256


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
        self._encoded: dict[str, Callable[[int], np.ndarray | None]] = {}

    @classmethod
    def open(cls, folder: str | Path) -> PreparedData:
        """Open a folder that `prepare` wrote; one at a URL is fetched first, see `local_data`.

        Raises
        ------
        UsageError
            The folder is not there or holds no manifest.
        CollamoError
            The manifest is damaged; a file it lists is missing or has another size. A file whose
            bytes changed is found by its sha256 when it is first read.
        """
        folder = local_data(folder)
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
        self.shard_of(row)
        features = self.mapped.molecules.features(row)
        stored = ((modality, outputs(row)) for modality, outputs in self._encoded.items())
        encoded = {modality: x for modality, x in stored if x is not None}
        return dataclasses.replace(features, encoded=encoded) if encoded else features

    def add_encoded(self, modality: str, outputs: Callable[[int], np.ndarray | None]) -> None:
        """Let `features` also bring what the encoder of `modality` says, as ``outputs(row)``.

        See `collamo.data.encoder_outputs.OutputsByRow`.
        """
        self._encoded[modality] = outputs

    def facts(self, row: int) -> np.ndarray:
        """Return the facts of row `row` as float32 ``[F]``: the counts of the manifest's motifs and
        of `ELEMENTS`, then `PROPERTIES_2D`, then `PROPERTIES_3D`; NaN where one is unknown."""
        self.shard_of(row)
        place = self.mapped.molecules.place(row)
        return self.mapped.molecules.facts[place : place + 1][0]

    def facts_of(self, split: str) -> SplitFacts:
        """Return the facts of a split in blocks ``[n,F]``, which can be walked through again."""
        return SplitFacts(self.mapped.molecules, self._rows(split))

    def molecules(self, split: str) -> Mapping[int, MoleculeFeatures]:
        """Return row → features of the molecules of a split, in row order; read on demand."""
        return SplitMolecules(self, self._rows(split))

    def tasks(self, split: str) -> Sequence[TaskExample]:
        """Return the questions of a split, in row order; read on demand."""
        return self.questions(split)

    def questions(self, split: str) -> MappedQuestions:
        """Return the questions of a split with what is known about them without reading them."""
        self._check_split(split)
        return self.mapped.questions(split)

    def text(self, split: str) -> Iterator[str]:
        """Yield the text of a split, one line per question with its answer."""
        yield from map(corpus_line, self.tasks(split))

    def table(self, shard: int) -> pa.Table:
        """Return one shard as an arrow table with `MOLECULE_SCHEMA`, facts included."""
        return pq.read_table(self._checked(shard_name(shard)), schema=MOLECULE_SCHEMA)

    @cached_property
    def mapped(self) -> MappedData:
        """The same data by row; made from the shards where it is not there yet."""
        return open_mapped(self.folder, self.manifest, self._checked)

    def _rows(self, split: str) -> np.ndarray:
        self._check_split(split)
        with pq.ParquetFile(self._checked("splits.parquet")) as file:
            found = [
                batch["row"].to_numpy()[pc.equal(batch["split"], split).to_numpy(False)]
                for batch in file.iter_batches(columns=["row", "split"])
            ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *found])

    def _check_split(self, split: str) -> None:
        if split not in SPLITS:
            raise UsageError(
                f"unknown split {split!r}{suggest(split, SPLITS)}; use {', '.join(SPLITS)}"
            )

    def shard_of(self, row: int) -> int:
        """Return the number of the shard with row `row`; KeyError outside the prepared rows."""
        if not 1 <= row <= self.manifest.rows["in"]:
            raise KeyError(f"row {row} is outside the {self.manifest.rows['in']} prepared rows")
        return (row - 1) // self.manifest.options.shard_size

    def rows_of(self, shard: int) -> tuple[int, int]:
        """Return the first row of a shard, and the one past its last."""
        size = self.manifest.options.shard_size
        return shard * size + 1, min((shard + 1) * size, self.manifest.rows["in"]) + 1

    def molecules_of(self, shard: int) -> dict[int, MoleculeFeatures]:
        """Return row → features of a shard, in row order, without what encoders say."""
        molecules = self.mapped.molecules
        return {
            row: molecules.features(row) for row in molecules.rows_between(*self.rows_of(shard))
        }

    @property
    def num_shards(self) -> int:
        """Shards of molecules."""
        return -(-self.manifest.rows["in"] // self.manifest.options.shard_size)

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


class SplitMolecules(Mapping[int, MoleculeFeatures]):
    """Row → features of the molecules of some rows [n], which are in order."""

    def __init__(self, data: PreparedData, rows: np.ndarray):
        self._data, self._rows = data, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows.tolist())

    def __getitem__(self, row: int) -> MoleculeFeatures:
        place = np.searchsorted(self._rows, row)
        if self._rows[place : place + 1].tolist() != [row]:
            raise KeyError(row)
        return self._data.features(row)


class SplitFacts:
    """The facts of some rows [n], in blocks [at most `BLOCK`, F] float32."""

    #: Our choice: 6 MB.
    BLOCK = 16_384

    def __init__(self, molecules: MappedMolecules, rows: np.ndarray):
        self._facts, self._places = molecules.facts, molecules.places(rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._places), self.BLOCK):
            places = self._places[start : start + self.BLOCK]
            first = int(places[0])
            yield self._facts[first : int(places[-1]) + 1][places - first]
