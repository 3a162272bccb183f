"""A source cut into shards: which of them are done, and doing the rest.

A shard of `shard_size` records is the unit of work. It is written whole; its sidecar, written
after it, says what it was made from, its SHA-256 and its rejected rows. A resumed run keeps the
shards whose sidecar fits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby, islice
from pathlib import Path
from typing import TypedDict

from collamo.chem.motifs import MOTIFS
from collamo.data.manifest import FORMAT_VERSION
from collamo.data.options import PrepareOptions
from collamo.data.records import Outcome
from collamo.data.shards import MOLECULE_SCHEMA, shard_name, write_table
from collamo.data.sources import SourceRow, count_rows, open_source
from collamo.data.workers import check_workers_allowed, process_rows
from collamo.errors import MissingDependencyError, UsageError
from collamo.files import file_sha256, write_text
from collamo.storage import Folder


class RejectedRow(TypedDict):
    """A line of ``rejected.jsonl``."""

    row: int
    text: str
    reason: str | None
    message: str


class Sidecar(TypedDict):
    """What ``molecules-00000.json`` says about its shard."""

    key: str
    sha256: str
    rows: int
    rejected: list[RejectedRow]


class Sharding:
    """The shards of `source` in `folder`; `total` records in `count` shards.

    All files are read and written in the local folder `out`: `folder` itself or, where that is a
    URL, one whose finished files are stored there.
    """

    def __init__(self, source: str | Path, options: PrepareOptions, folder: Folder, out: Path):
        self.source = open_source(
            source,
            smiles_column=options.smiles_column,
            selfies_column=options.selfies_column,
            caption_column=options.caption_column,
            iupac_column=options.iupac_column,
            measured_columns=options.measured_columns,
            split_column=options.split_column,
            guess_columns=options.guess_columns,
        )
        if options.split_by == "published" and self.source.split_sizes is None:
            raise UsageError(
                f"{self.source.name} has no published split; take scaffold, random or column:NAME"
            )
        self.options, self.folder, self.out = options, folder, out
        self.versions = library_versions(options)
        self.sha256 = self.source.file.sha256
        self.total = count_rows(self.source, options.limit)
        self.count = -(-self.total // options.shard_size)

    @cached_property
    def key(self) -> str:
        """What a shard was made from; shards with another key are not ours."""
        options = dataclasses.asdict(self.options)
        made_from = [self.sha256, options, self.versions, MOTIFS, FORMAT_VERSION]
        made_from.append(MOLECULE_SCHEMA.names)  # older shards can be read, but not gone on with
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()

    def start(self) -> None:
        """Make the folder; raise where another preparation is in it, or no worker may start."""
        check_workers_allowed()
        if self.total == 0:
            raise UsageError(f"{self.source.name} holds no records")
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"{self.folder} is a file; give a folder")
        self.out.mkdir(parents=True, exist_ok=True)
        self._fetch("json")
        for path in sorted(self.out.glob("molecules-*.json")):
            sidecar = _read_sidecar(path)
            if sidecar is not None and sidecar["key"] != self.key:
                raise UsageError(
                    f"{self.folder} holds a preparation of another source, other options or other "
                    "versions of collamo or its libraries; choose another folder or delete this one"
                )
        self._fetch("parquet")

    def missing(self) -> set[int]:
        """Return which shards are not there yet."""
        return {index for index in range(self.count) if self.done(index) is None}

    def rows_of(self, shards: Collection[int]) -> int:
        """Return how many records the shards have together."""
        return sum(map(self.size, shards))

    def rows(self, shards: Collection[int]) -> Iterator[tuple[int, Iterator[SourceRow]]]:
        """Yield each of the shards with its records, as they are read from the source."""
        groups = groupby(islice(self.source, self.options.limit), self._index)
        return (group for group in groups if group[0] in shards)

    def write(self, missing: Collection[int], workers: int, advance: Callable[[int], None]) -> None:
        """Write the shards that are missing, by worker processes of this machine."""
        rows = (row for _, group in self.rows(missing) for row in group)
        waiting: dict[int, list[tuple[SourceRow, Outcome]]] = defaultdict(list)
        for row, outcome in process_rows(rows, self.options, workers):
            index = self._index(row)
            waiting[index].append((row, outcome))
            advance(1)
            if len(waiting[index]) == self.size(index):
                for path in write_shard(self.out, index, self.key, waiting.pop(index)):
                    self.folder.store(path)

    def sidecars(self) -> list[Sidecar]:
        """Return the sidecar of every shard, once all are written."""
        sidecars = [self.done(index) for index in range(self.count)]
        return [sidecar for sidecar in sidecars if sidecar is not None]

    def split_sizes(self) -> Mapping[str, int]:
        """Return the molecules of each split but test in the published split of the source."""
        return self.source.split_sizes(self.total) if self.source.split_sizes else {}

    def paths(self) -> list[Path]:
        """Return the file of every shard."""
        return [self.out / shard_name(index) for index in range(self.count)]

    def size(self, index: int) -> int:
        """Return how many records a shard has, the rejected ones too."""
        return min(self.options.shard_size, self.total - index * self.options.shard_size)

    def done(self, index: int) -> Sidecar | None:
        """Return the sidecar of a shard that is there, ours and unaltered."""
        path = self.out / shard_name(index)
        sidecar = _read_sidecar(sidecar_of(path))
        if sidecar is None or sidecar["key"] != self.key or not path.is_file():
            return None
        return sidecar if file_sha256(path, remember=True) == sidecar["sha256"] else None

    def _index(self, row: SourceRow) -> int:
        return (row.number - 1) // self.options.shard_size

    def _fetch(self, kind: str) -> None:
        """Bring the sidecars (json) or shards (parquet) that a URL holds to where they are read."""
        if self.folder.path is None:
            named = re.compile(rf"molecules-\d+\.{kind}")
            self.folder.fetch_all(set(filter(named.fullmatch, self.folder.names())), self.out)


def write_shard(
    out: Path, index: int, key: str, outcomes: Sequence[tuple[SourceRow, Outcome]]
) -> list[Path]:
    """Write a shard, then its sidecar: a shard without one is done again. Return both files."""
    outcomes = sorted(outcomes, key=lambda pair: pair[0].number)
    records = [outcome.record for _, outcome in outcomes if outcome.record is not None]
    path = out / shard_name(index)
    write_table(path, records, MOLECULE_SCHEMA)
    sidecar: Sidecar = {
        "key": key,
        "sha256": file_sha256(path, remember=True),
        "rows": len(records),
        "rejected": [
            {
                "row": row.number,
                "text": row.text,
                "reason": outcome.code,
                "message": f"row {row.number}: {outcome.message}",
            }
            for row, outcome in outcomes
            if outcome.record is None
        ],
    }
    write_text(sidecar_of(path), json.dumps(sidecar, ensure_ascii=True) + "\n")
    return [path, sidecar_of(path)]


def sidecar_of(shard: Path) -> Path:
    """Return the file that says what a shard was made from."""
    return shard.with_suffix(".json")


def library_versions(options: PrepareOptions) -> dict[str, str]:
    """Return the versions of the libraries that shape the result.

    MissingDependencyError where one that the options ask for is not installed.
    """
    names: tuple[str, ...] = ("rdkit", "selfies", "numpy", "pyarrow")
    if options.embedder == "nvmolkit":
        names += ("nvmolkit",)
    try:
        return {name: version(name) for name in names}
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            f"--conformers nvmolkit: {error.name} is not installed; pip install nvmolkit, which "
            "pins a version of RDKit, on Linux with an NVIDIA GPU, or leave the option out"
        ) from None


def _read_sidecar(path: Path) -> Sidecar | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
