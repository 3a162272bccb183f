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
    """The outputs of one encoder by row, mapped into memory; each file is checked when first read.

    ``rows(row)`` gives [N,L,C], or None for a molecule without the modality.
    """

    def __init__(self, data: PreparedData, stored: EncoderOutputs):
        self.data, self.stored = data, stored
        self._shards: dict[int, tuple[np.ndarray, dict[int, tuple[int, int]]]] = {}

    def __call__(self, row: int) -> np.ndarray | None:
        """Return [N,L,C] of a row, or None."""
        shard = self.data.shard_of(row)
        if shard not in self._shards:
            self._shards[shard] = self._open(shard)
        outputs, places = self._shards[shard]
        if row not in places:
            return None
        start, end = places[row]
        return outputs[start:end]

    def _open(self, shard: int) -> tuple[np.ndarray, dict[int, tuple[int, int]]]:
        path = self.stored.folder / self.stored.file_name(shard)
        made_from = self.data.manifest.files[shard_name(shard)]["sha256"]
        if not self.stored.has(shard, str(made_from)):
            raise CollamoError(
                f"{path} is missing, altered or of other molecules than {shard_name(shard)}; "
                f"{_AGAIN}, or train with `encoded: false`"
            )
        outputs = np.load(path, mmap_mode="r", allow_pickle=False)
        return outputs, atoms_of(self.data, shard, self.stored.origin.modality)


def atoms_of(data: PreparedData, shard: int, modality: str) -> dict[int, tuple[int, int]]:
    """Return row → (first, past the last) place of its atoms in the file of a shard."""
    places, start = {}, 0
    for row, features in data.molecules_of(shard).items():
        if modality == "2d" or features.conformer.coordinates is not None:
            places[row] = (start, start + features.num_atoms)
            start += features.num_atoms
    return places


def index_path(folder: Path, modality: str) -> Path:
    """Return the JSON file of a modality."""
    return folder / f"encoded-{modality}.json"


_AGAIN = "run `collamo prepare … --encode` again"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
