"""The manifest of prepared data: what was prepared, how, and the SHA-256 of every file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from collamo.data.columns import MeasuredColumn
from collamo.data.options import PrepareOptions
from collamo.errors import CollamoError, UsageError
from collamo.files import file_sha256, write_text

MANIFEST = "manifest.json"
FORMAT_VERSION = 3


class FileEntry(TypedDict):
    """A file as it was written."""

    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds.

    Attributes
    ----------
    source, source_sha256, options
        What was prepared and how.
    rows
        ``{"in", "ok", "rejected"}``; in = ok + rejected.
    rejected
        Reason code → rows.
    conformers
        Method → molecules; ``"none"`` counts the absent ones.
    splits, tasks
        Split → molecules; split → task → questions.
    parents
        ``{"molecules", "parents", "joined", "bounded"}``: different molecules; their different
        parents (`collamo.chem.parent`: no counter-ion, charge, stereo; canonical tautomer), of
        which none is in two splits unless a column says so; molecules that share theirs with
        another; molecules that may share one unnoticed: others have their atoms, bonded alike, and
        they more tautomers than were looked at, or RDKit failed.
    overlaps
        ``"test in train"`` → ``{"molecules", "parents"}``: rows of one split whose molecule, or
        its parent, another one has too.
    selfies_vocabulary
        Sorted SELFIES tokens of the train split.
    unknown_elements
        Element → ``{"molecules", "atoms"}``: those with a conformer that Uni-Mol's dictionary lacks
        and reads as [UNK].
    measured
        Column in the source → what it is.
    guesses
        What was guessed of measured columns from their names, and what was not, with the reason.
    values
        Column → what its cells are → molecules. "exact", "approximate" and "bound" values became
        questions, as did "text"; the reasons of `measured_values.UNREAD` did not.
    unknown_facts
        Target of a computed fact → why a molecule has none ("not defined", "infinite") → molecules.
    absent_conformers
        Reason → molecules without 3D.
    embedded_anew
        Reason → molecules whose own coordinates were not taken, and that were embedded.
    motifs
        Names behind the shards' motif counts.
    versions
        Libraries that shaped the result.
    files
        File → ``{"bytes", "sha256", "rows"}``, shards first.
    """

    source: str
    source_sha256: str
    options: PrepareOptions
    rows: Mapping[str, int]
    rejected: Mapping[str, int]
    conformers: Mapping[str, int]
    splits: Mapping[str, int]
    tasks: Mapping[str, Mapping[str, int]]
    selfies_vocabulary: Sequence[str]
    measured: Mapping[str, MeasuredColumn]
    motifs: Sequence[str]
    versions: Mapping[str, str]
    files: Mapping[str, FileEntry]
    unknown_elements: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    parents: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    guesses: Sequence[str] = ()
    values: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unknown_facts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    absent_conformers: Mapping[str, int] = field(default_factory=dict)
    embedded_anew: Mapping[str, int] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``manifest.json``; a CollamoError says what is wrong with it."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["format_version"]
            if version == FORMAT_VERSION:
                # One bit of a SELFIES token or of the shards' size is another training.
                if "seal" in content and content.pop("seal") != _seal(content):
                    raise ValueError("it is not what was written")
                content["options"] = PrepareOptions(**content["options"])
                measured = content["measured"].items()
                content["measured"] = {name: MeasuredColumn(**about) for name, about in measured}
                return cls(**content)
        except FileNotFoundError:
            raise UsageError(
                f"{path.parent} holds no prepared data ({MANIFEST} is missing); "
                "run `collamo prepare` and let it finish"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CollamoError(
                f"{path} is damaged ({error}); run `collamo prepare` again"
            ) from None
        raise CollamoError(
            f"{path} has format {version}, this version of collamo reads "
            f"{FORMAT_VERSION}; run `collamo prepare` again into another folder"
        )

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all, with ``seal``: the SHA-256 of all that it says."""
        content = dataclasses.asdict(self)
        content["seal"] = _seal(content)
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_entry(path: Path, rows: int) -> FileEntry:
    """Return what the manifest says about a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path, remember=True), "rows": rows}
