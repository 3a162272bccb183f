"""Which chemical things a caption names: one question, three ways to have it answered."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from collamo.errors import UsageError, suggest
from collamo.evaluation.service import Limits
from collamo.files import file_sha256

EXTRACTORS = ("offline", "bern2", "file")


class Caption(NamedTuple):
    """A text and where it stands: row (from 1) and side of a predictions file."""

    row: int
    side: Literal["prediction", "reference"]
    text: str


class EntityExtractor(Protocol):
    """Finds the entities of captions; `about` says in a report which extractor it was.

    Equal strings are the same entity; how synonyms become equal is the extractor's affair. Use it
    in a ``with`` statement; rows are asked for in ascending order.
    """

    about: Mapping[str, object]

    def __enter__(self) -> EntityExtractor: ...

    def __exit__(self, *exception: object) -> None: ...

    def extract(self, captions: Sequence[Caption]) -> list[frozenset[str] | None]:
        """Return the entities of each caption; None where they could not be had."""
        ...

    def grounded(self, entities: frozenset[str], molecule: str) -> frozenset[str] | None:
        """Return those of `entities` that a molecule (SMILES or SELFIES) is known to have.

        None: this extractor knows nothing about molecules.
        """
        ...


def load_extractor(
    spec: str, answers: Path | None = None, limits: Limits | None = None
) -> EntityExtractor:
    """Return the extractor that `spec` names.

    - ``offline``: RDKit's facts, a lexicon and a rule for chemical names; needs nothing;
    - ``bern2:URL``: a BERN2 server, at this address and no other; `answers` is the file that keeps
      what it said, `limits` how hard it is asked;
    - ``file:PATH``: entities found by other means, see `PrecomputedEntities`.

    Raises
    ------
    UsageError
        For another word, a URL that is none, a missing file.
    """
    kind, _, place = spec.partition(":")
    if spec == "offline":
        from collamo.evaluation.entities.offline import OfflineExtractor

        return OfflineExtractor()
    if kind == "bern2" and place:
        from collamo.evaluation.entities.bern2 import Bern2Extractor

        return Bern2Extractor(place, answers, limits)
    if kind == "file" and place:
        return PrecomputedEntities(Path(place))
    raise UsageError(
        f"entities {spec!r} are none of offline, bern2:URL, file:PATH{suggest(kind, EXTRACTORS)}"
    )


_DASHES = re.compile("[‐‑‒–—−﹣－]")
# "β-D-glucose" is "beta-D-glucose".
_GREEK_NAMES = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma
tau upsilon phi chi psi omega
"""
_GREEK = str.maketrans(dict(zip("αβγδεζηθικλμνξοπρςστυφχψω", _GREEK_NAMES.split(), strict=True)))


def fold(text: str) -> str:
    """Return `text` in lower case, with plain dashes, Greek letters by name and single blanks.

    >>> fold("β‑D‑Glucose  phosphate")
    'beta-d-glucose phosphate'
    """
    text = _DASHES.sub("-", unicodedata.normalize("NFKC", text).lower())
    return " ".join(text.translate(_GREEK).split())


class PrecomputedEntities:
    """Entities from a file, a line per row of the predictions file, rows ascending.

    JSONL: ``{"row": 1, "prediction": ["ketone"], "reference": ["ketone", "ester"]}``; TSV: columns
    ``row``, ``prediction`` and ``reference``, entities separated by ``|``. They are compared as
    `fold` leaves them. A row that is absent, or a side that is null or missing, has no entities
    known (not: none). Read as it is asked for, in constant memory.

    Raises
    ------
    UsageError
        For a missing file, another format, a line that is none of these, rows out of order, and,
        on leaving, rows that the predictions file does not have.
    """

    def __init__(self, path: Path):
        if path.suffix not in (".jsonl", ".tsv"):
            raise UsageError(f"{path}: entities come in a .jsonl or .tsv file")
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        self.path = path
        self.about = {"entities": "file", "entities_file_sha256": file_sha256(path)}
        self._records = _records(path)
        self._next = next(self._records, None)

    def __enter__(self) -> PrecomputedEntities:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None and self._next is not None:
            raise UsageError(f"{self.path}: row {self._next[0]} is not in the predictions file")
        self._records.close()

    def extract(self, captions: Sequence[Caption]) -> list[frozenset[str] | None]:
        """Return what the file says of each caption; the texts are not looked at."""
        last = max((caption.row for caption in captions), default=0)
        found = {}
        while self._next is not None and self._next[0] <= last:
            found[self._next[0]] = self._next[1]
            self._next = next(self._records, None)
        return [found.get(caption.row, {}).get(caption.side) for caption in captions]

    def grounded(self, entities: frozenset[str], molecule: str) -> None:
        """Return None: the file is about captions."""


def _records(path: Path) -> Iterator[tuple[int, dict[str, frozenset[str] | None]]]:
    before = 0
    with path.open(encoding="utf-8", errors="replace") as stream:
        header = next(stream, "").rstrip("\r\n").split("\t") if path.suffix == ".tsv" else []
        for number, line in enumerate(stream, 1 + bool(header)):
            try:
                row, sides = _record(line, header)
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UsageError(
                    f"{path}, line {number} is no row with its entities: {line.strip()[:80]!r}"
                ) from None
            if row <= before:
                raise UsageError(f"{path}, line {number}: row {row} follows row {before}; sort it")
            before = row
            yield row, sides


def _record(line: str, header: list[str]) -> tuple[int, dict[str, frozenset[str] | None]]:
    if header:
        record = dict(zip(header, line.rstrip("\r\n").split("\t"), strict=True))
        record["row"] = int(record["row"])
        for side in record.keys() & {"prediction", "reference"}:
            record[side] = [part for part in record[side].split("|") if part.strip()]
    else:
        record = json.loads(line)
    row = record["row"]
    if type(row) is not int or row < 1:
        raise ValueError(row)
    sides = {}
    for side in ("prediction", "reference"):
        entities = record.get(side)
        if entities is not None:
            if not isinstance(entities, list):
                raise TypeError(entities)
            sides[side] = frozenset(map(fold, entities))
    return row, sides
