"""Outputs of frozen encoders for every molecule of a prepared folder, kept beside the shards.

::

    encoded-3d.json       which weights, levels and dtype; size and sha256 of every file
    encoded-3d-00000.npy  [A, L, C]: the atoms of shard 0 that have a conformer, row after row;
                          L levels of C channels. encoded-2d…: all atoms, of the GIN

`collamo.model.precompute` writes them. A file counts once the JSON file names it, so a run that was
killed resumes with the missing shards.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from collamo.data.manifest import FileEntry, file_entry
from collamo.data.prepared import PreparedData
from collamo.data.shards import shard_name
from collamo.errors import CollamoError, UsageError
from collamo.files import file_sha256, replacing, write_text

FORMAT_VERSION = 1
ENCODER_NAMES = {"2d": "gin", "3d": "unimol"}
DTYPES = ("float16", "float32")
# Shards whose places are kept: 8 bytes a molecule. Our choice.
_OPENED = 256


@dataclass(frozen=True)
class OutputsOrigin:
    """What stored outputs were made with; those of another origin are not used.

    Attributes
    ----------
    modality
        "2d" (GIN) or "3d" (Uni-Mol).
    weights
        Digest of the encoder, see `collamo.model.precompute.encoder_digest`.
    file, file_sha256
        The weights file, for messages.
    levels
        Numbers of the stored levels, ascending.
    channels
        Width of a level.
    dtype
        "float16" or "float32".
    """

    modality: str
    weights: str
    file: str
    file_sha256: str
    levels: Sequence[int]
    channels: int
    dtype: str


class OutputsEntry(FileEntry):
    """The file of a shard, and the SHA-256 of the molecules it was made from."""

    shard_sha256: str


@dataclass(frozen=True)
class EncoderOutputs:
    """The stored outputs of one encoder; `files` has an entry per finished shard."""

    folder: Path
    origin: OutputsOrigin
    files: Mapping[str, OutputsEntry] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, modality: str) -> EncoderOutputs | None:
        """Read ``encoded-<modality>.json``; None where there is none, CollamoError if damaged."""
        path = index_path(folder, modality)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["format_version"]
            stored = cls(folder, OutputsOrigin(**content["encoding"]), content["files"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise CollamoError(f"{path} is damaged ({error}); {_AGAIN}") from None
        if version != FORMAT_VERSION:
            raise CollamoError(
                f"{path} has format {version}, this version reads {FORMAT_VERSION}; {_AGAIN}"
            )
        return stored

    def write(self) -> None:
        """Write the JSON file, whole or not at all."""
        content = {
            "format_version": FORMAT_VERSION,
            "encoding": dataclasses.asdict(self.origin),
            "files": self.files,
        }
        path = index_path(self.folder, self.origin.modality)
        write_text(path, json.dumps(content, indent=1) + "\n")

    def has(self, shard: int, shard_sha256: str) -> bool:
        """Return whether the file of a shard is there, unaltered and of these very molecules."""
        name = self.file_name(shard)
        entry, path = self.files.get(name), self.folder / name
        if entry is None or entry["shard_sha256"] != shard_sha256 or not path.is_file():
            return False
        return (
            path.stat().st_size == entry["bytes"]
            and file_sha256(path, remember=True) == entry["sha256"]
        )

    def with_shard(self, shard: int, shard_sha256: str, outputs: np.ndarray) -> EncoderOutputs:
        """Write the outputs [A,L,C] of one shard, then the JSON file; return what there is now."""
        path = self.folder / self.file_name(shard)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, outputs, allow_pickle=False)
        entry: OutputsEntry = {**file_entry(path, len(outputs)), "shard_sha256": shard_sha256}
        stored = dataclasses.replace(self, files={**self.files, path.name: entry})
        stored.write()
        return stored

    def file_name(self, shard: int) -> str:
        """Return the name of a shard's file."""
        return f"encoded-{self.origin.modality}-{shard:05d}.npy"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(entry["bytes"] for entry in self.files.values())

    def check(self, weights: str, source: str, levels: Sequence[int], layers: int) -> None:
        """Refuse outputs of other weights than the model's (`source` says which), or of levels
        other than those its projector of `layers` layers reads.

        Raises
        ------
        UsageError
            With what differs, and the ways out.
        """
        path = index_path(self.folder, self.origin.modality)
        option = f"--{ENCODER_NAMES[self.origin.modality]}"
        if weights != self.origin.weights:
            raise UsageError(
                f"{path} has outputs of other weights ({self.origin.file}, digest "
                f"{self.origin.weights[:12]}) than the model's encoder ({source}, digest "
                f"{weights[:12]}): encode again (`collamo prepare … --encode {option} FILE`), "
                "give the model the same file, or train with `encoded: false`"
            )
        if list(levels) != list(self.origin.levels):
            raise UsageError(
                f"{path} has levels {_listed(self.origin.levels)}, the model's projector reads "
                f"{_listed(levels)}: encode again with --encode-layers {layers}, or train "
                "with `encoded: false`"
            )


class OutputsByRow:
    """The outputs of one encoder by row, read from the disk; each file is checked when first read.

    ``rows(row)`` gives [N,L,C], or None for a molecule without the modality.
    """

    def __init__(self, data: PreparedData, stored: EncoderOutputs):
        self.data, self.stored = data, stored
        self._checked: set[int] = set()
        self._shards: OrderedDict[int, _Shard] = OrderedDict()

    def __call__(self, row: int) -> np.ndarray | None:
        """Return [N,L,C] of a row, or None."""
        number = self.data.shard_of(row)
        place = self.data.mapped.molecules.place(row)
        shard = self._shards.get(number) or self._open(number)
        return shard.outputs(place)

    def _open(self, number: int) -> _Shard:
        path = self.stored.folder / self.stored.file_name(number)
        made_from = self.data.manifest.files[shard_name(number)]["sha256"]
        if number not in self._checked and not self.stored.has(number, str(made_from)):
            raise CollamoError(
                f"{path} is missing, altered or of other molecules than {shard_name(number)}; "
                f"{_AGAIN}, or train with `encoded: false`"
            )
        self._checked.add(number)
        shard = _Shard(path, *atom_counts(self.data, number, self.stored.origin.modality))
        self._shards[number] = shard
        if len(self._shards) > _OPENED:
            self._shards.popitem(last=False)
        return shard


class _Shard:
    """Where a shard's outputs stand in their file.

    Read and not mapped: each map would hold a file open, and there may be thousands.
    """

    def __init__(self, path: Path, first: int, counts: np.ndarray):
        self._path, self._first, self._ends = path, first, counts.cumsum()
        layout = np.load(path, mmap_mode="r", allow_pickle=False)
        self._offset, self._atom, self._dtype = layout.offset, layout.shape[1:], layout.dtype

    def outputs(self, place: int) -> np.ndarray | None:
        """Return [N,L,C] of the molecule at `place` of all; None where it has no such atoms."""
        i = place - self._first
        start, end = int(self._ends[i - 1]) if i else 0, int(self._ends[i])
        if start == end:
            return None
        size = math.prod(self._atom)
        offset = self._offset + start * size * self._dtype.itemsize
        with self._path.open("rb") as file:
            values = np.fromfile(file, self._dtype, (end - start) * size, offset=offset)
        return values.reshape(end - start, *self._atom)


def atom_counts(data: PreparedData, shard: int, modality: str) -> tuple[int, np.ndarray]:
    """Return the place of a shard's first molecule among all, and of how many atoms of each of its
    molecules outputs are stored."""
    molecules = data.mapped.molecules
    first, end = molecules.places(np.array(data.rows_of(shard))).tolist()
    return first, (molecules.atoms if modality == "2d" else molecules.conformer_atoms)[first:end]


def index_path(folder: Path, modality: str) -> Path:
    """Return the JSON file of a modality."""
    return folder / f"encoded-{modality}.json"


_AGAIN = "run `collamo prepare … --encode` again"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
