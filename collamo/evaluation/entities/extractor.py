"""Which chemical things a caption names: the question, and what every extractor shares."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, Self, TypeAlias

Side: TypeAlias = Literal["prediction", "reference"]
#: The entities of a text; None where the extractor could not find out.
Entities: TypeAlias = frozenset[str] | None


class Caption(NamedTuple):
    """A text and where it stands: row (from 1) and side of a predictions file."""

    row: int
    side: Side
    text: str


class EntityExtractor(Protocol):
    """Finds the entities of captions; `about` describes the extractor in a report.

    Equal strings are the same entity; the extractor decides which synonyms it makes equal. Use it
    in a ``with`` statement; rows are asked for in ascending order.
    """

    @property
    def about(self) -> Mapping[str, object]:
        """Return the entries of a manifest: plain JSON values."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def extract(self, captions: Sequence[Caption]) -> Sequence[Entities]:
        """Return the entities of each caption."""
        ...

    def grounded(self, entities: frozenset[str], molecule: str) -> Entities:
        """Return those of `entities` that a molecule (SMILES or SELFIES) is known to have.

        None: this extractor knows nothing about molecules.
        """
        ...


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
