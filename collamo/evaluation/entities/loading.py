"""From the word on the command line to the extractor it names."""

from __future__ import annotations

from pathlib import Path

from collamo.errors import UsageError, suggest
from collamo.evaluation.entities.extractor import EntityExtractor
from collamo.evaluation.service import Limits

EXTRACTORS = ("offline", "bern2", "file")


def load_extractor(
    spec: str, answers: Path | None = None, limits: Limits | None = None
) -> EntityExtractor:
    """Return the extractor that `spec` names.

    - ``offline``: RDKit's facts, a lexicon and a rule for chemical names; needs nothing;
    - ``bern2:URL``: a BERN2 server, at this address and no other; `answers` is the file that keeps
      its answers, `limits` how hard it is asked;
    - ``file:PATH``: entities found by other means, see `PrecomputedEntities`.

    Raises
    ------
    UsageError
        For another word, a URL that is not an http(s) address, or a missing file.
    """
    kind, _, place = spec.partition(":")
    if spec == "offline":
        from collamo.evaluation.entities.offline import OfflineExtractor

        return OfflineExtractor()
    if kind == "bern2" and place:
        from collamo.evaluation.entities.bern2 import Bern2Extractor

        return Bern2Extractor(place, answers, limits)
    if kind == "file" and place:
        from collamo.evaluation.entities.precomputed import PrecomputedEntities

        return PrecomputedEntities(Path(place))
    raise UsageError(
        f"entities {spec!r} are none of offline, bern2:URL, file:PATH{suggest(kind, EXTRACTORS)}"
    )
