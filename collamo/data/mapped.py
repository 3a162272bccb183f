"""A prepared folder by row: mapped files beside its shards, from which training reads.

::

    .mapped/index.json       what it was made from, SELFIES tokens, kinds of questions, files
    .mapped/digests          SHA-256 of each block of the files, one after the other
    .mapped/molecules…       features as Arrow (a record batch per 64 molecules); atoms, facts: .npy
    .mapped/tasks-train…     answers as Arrow; kinds and lengths as .npy; also -validation and -test

Parquet is for reading whole columns: one row costs a row group. These files are made from the
shards, by `prepare` or when they are first needed, and may be deleted at any time. They are used
only beside the very manifest they were made from. Where the folder cannot be written to they lie
in the cache (`collamo.storage.cache_folder`).

Its name is hidden so that `datasets` and the hub's viewer see the shards alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from collamo.data.manifest import MANIFEST, Manifest
from collamo.data.mapped_file import BLOCK, MappedFile, block_digests
from collamo.data.mapped_molecules import COLUMNS, MappedMolecules, write_molecules
from collamo.data.mapped_questions import MappedQuestions, write_questions
from collamo.data.shards import MOLECULE_SCHEMA, SPLITS, TASK_SCHEMA, shard_name, tasks_path
from collamo.files import file_sha256, naming, write_text
from collamo.progress import progress_bar
from collamo.storage import cache_folder

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
FOLDER, INDEX, DIGESTS = ".mapped", "index.json", "digests"
_DIGEST = hashlib.sha256().digest_size
#: Questions read together: those of some 3,000 molecules.
_TOGETHER = 1 << 16


class MappedData:
    """The mapped files of a prepared folder.

    Attributes
    ----------
    molecules
        `MappedMolecules`.
    """

    def __init__(self, folder: Path, index: dict[str, Any], digests: bytes):
        self._index, self._files = index, {}
        start = 0
        for name, size in index["files"].items():
            end = start + -(-size // BLOCK) * _DIGEST
            self._files[name] = MappedFile(folder / name, size, digests[start:end])
            start = end
        self.molecules = MappedMolecules(self._files, index["tokens"])
        self._questions: dict[str, MappedQuestions] = {}

    def questions(self, split: str) -> MappedQuestions:
        """Return the questions of a split."""
        if split not in self._questions:
            kinds = self._index["kinds"][split]
            self._questions[split] = MappedQuestions(self._files, split, kinds)
        return self._questions[split]


def open_mapped(
    folder: Path,
    manifest: Manifest,
    checked: Callable[[str], Path],
    *,
    progress: bool = True,
) -> MappedData:
    """Open the mapped files of a prepared folder; make them first where they are not there.

    Parameters
    ----------
    checked
        Returns the path of a file of the manifest, compared with its SHA-256.
    progress
        Show a bar while they are made, on a terminal.

    Raises
    ------
    CollamoError
        As `checked`; a damaged mapped file is named when it is first read.
    """
    made_from = file_sha256(folder / MANIFEST)
    places = [folder / FOLDER, cache_folder() / "mapped" / made_from[:32]]
    for place in places:
        found = _read(place, made_from)
        if found is not None:
            return found
    place = places[0] if os.access(folder, os.W_OK) else places[1]
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):  # of several processes of a training one makes them
        found = _read(place, made_from)
        if found is None:
            logger.info("%s: writing its rows for training into %s", folder, place)
            _write(place, made_from, manifest, checked, progress)
            found = _read(place, made_from)
    assert found is not None
    return found


def _read(place: Path, made_from: str) -> MappedData | None:
    """Return what lies in a folder; None where it is nothing whole, or of other shards."""
    try:
        sealed = json.loads((place / INDEX).read_text(encoding="utf-8"))
        index, digests = sealed["index"], (place / DIGESTS).read_bytes()
        whole = sealed["sha256"] == _seal(index, digests)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        logger.warning("%s is damaged; it is made again from the shards", place)
        return None
    if index["made_from"] != made_from or index["format_version"] != FORMAT_VERSION:
        return None
    return MappedData(place, index, digests)


def _write(
    place: Path,
    made_from: str,
    manifest: Manifest,
    checked: Callable[[str], Path],
    progress: bool,
) -> None:
    """Write everything into a folder, the index last."""
    for path in place.iterdir():  # never over a file that a running training has mapped
        if path.name != "lock":
            path.unlink()
    shards = -(-manifest.rows["in"] // manifest.options.shard_size)
    total = manifest.rows["ok"] + sum(manifest.splits.values())
    with progress_bar("writing rows for training", total, show=progress) as advance, naming(place):
        tokens = write_molecules(
            place,
            (
                pq.read_table(checked(shard_name(shard)), columns=COLUMNS, schema=MOLECULE_SCHEMA)
                for shard in range(shards)
            ),
            *(manifest.rows["in"], len(manifest.motifs), advance),
        )
        atoms = _AtomsOfRows(place)
        kinds = {}
        for split in SPLITS:
            path = checked(tasks_path(Path(), split).name)
            kinds[split] = write_questions(place, split, _questions(path), atoms, advance)
        paths = sorted(p for p in place.iterdir() if p.name != "lock")
        digests = b"".join(map(block_digests, paths))
        (place / DIGESTS).write_bytes(digests)
        index = {
            "format_version": FORMAT_VERSION,
            "made_from": made_from,
            "tokens": tokens,
            "kinds": kinds,
            "files": {path.name: path.stat().st_size for path in paths},
        }
        sealed = {"sha256": _seal(index, digests), "index": index}
        write_text(place / INDEX, json.dumps(sealed, ensure_ascii=True) + "\n")


def _questions(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_TOGETHER):
            yield pa.Table.from_batches([batch]).cast(TASK_SCHEMA)


class _AtomsOfRows:
    """Numbers of atoms by row, while the files are written."""

    def __init__(self, place: Path):
        self._atoms = np.load(place / "molecules-atoms.npy", mmap_mode="r", allow_pickle=False)
        self._rejected = np.load(place / "molecules-rejected.npy", allow_pickle=False)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return self._atoms[rows - 1 - np.searchsorted(self._rejected, rows)]


def _seal(index: dict[str, Any], digests: bytes) -> str:
    return hashlib.sha256(json.dumps(index).encode() + digests).hexdigest()
