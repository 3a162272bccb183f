"""Entities by BERN2, a neural recogniser and normaliser that runs as a server of its own.

Sung et al., Bioinformatics 2022, 38, 4837. ``POST /plain`` takes ``{"text": …}`` and answers
``{"annotations": [{"mention", "id", "obj", "prob", "span"}, …]}``. The public server allows 300
requests in 100 s and asks for bulk work to be done on one's own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit

from collamo.errors import UsageError
from collamo.evaluation.entities.extractor import Caption, Entities, fold
from collamo.evaluation.journal import Journal, digest
from collamo.evaluation.service import (
    Limits,
    Service,
    ServiceDownError,
    ServiceError,
)

log = logging.getLogger(__name__)
VERSION = 1  # of the kept form of an answer; a new number has every text asked again
LIMITS = Limits(per_minute=150, concurrency=4)  # under what the public server allows
UNKNOWN = "CUI-less"  # BERN2's id of a mention that it could not normalise


class Annotation(TypedDict):
    """What is kept of an annotation: the mention, its identifiers, its type, its probability."""

    mention: str
    id: list[str]
    obj: str | None
    prob: float | None


class Bern2Extractor:
    """Asks a BERN2 server for the entities of each different text, once.

    An entity is the identifier that BERN2 gives a mention (synonyms have the same), or the mention
    as `fold` leaves it where it has none. A mention counts with a probability of at least
    `confidence`, the paper's 0.9 ("high-confidence"), and of the types `kinds`: BERN2's ``drug`` is
    any chemical (our reading of "molecular entities"); mentions without a probability do not count.

    Parameters
    ----------
    url
        The server's address; nothing else is ever asked. Without a path it is ``/plain``.
    answers
        JSON lines that keep every answer under the hash of text, address and version: a run that
        was cut off goes on, and several runs may use one file after another.

    Raises
    ------
    UsageError
        If `url` is not an http(s) address, or for no `answers`.
    ServiceDownError
        When more requests are useless, see `Service.ask`; answers so far are kept. A single text
        that fails has no entities known, and a warning gives the reason.
    """

    def __init__(
        self,
        url: str,
        answers: Path | None,
        limits: Limits | None = None,
        *,
        confidence: float = 0.9,
        kinds: Sequence[str] = ("drug",),
    ):
        if answers is None:
            raise UsageError("BERN2 needs a file for its answers")
        if "://" in url and not urlsplit(url).path.strip("/"):
            url = url.rstrip("/") + "/plain"
        self._service = Service(url, limits or LIMITS)
        self._answers = Journal(answers, {"service": "bern2"})
        self._confidence, self._kinds = confidence, frozenset(kinds)
        self.about = {
            "entities": f"bern2:{url}",
            "entities_confidence": confidence,
            "entities_kinds": sorted(kinds),
        }

    def __enter__(self) -> Bern2Extractor:
        return self

    def __exit__(self, *exception) -> None:
        self._service.__exit__(*exception)
        self._answers.__exit__(*exception)

    def extract(self, captions: Sequence[Caption]) -> list[Entities]:
        """Return the entities of each caption; None where the server gave no answer."""
        texts = dict.fromkeys(caption.text for caption in captions)
        annotated = self._service.map(self._annotations, texts)
        entities = {
            text: None if annotations is None else self._entities(annotations)
            for text, annotations in zip(texts, annotated, strict=True)
        }
        return [entities[caption.text] for caption in captions]

    def grounded(self, entities: frozenset[str], molecule: str) -> None:
        """Return None: BERN2 reads texts."""

    def _annotations(self, text: str) -> list[Annotation] | None:
        if not text.strip():
            return []
        key = digest("bern2", VERSION, self._service.url, text)
        kept = self._answers.get(key)
        if kept is not None:
            return kept
        try:
            annotations = self._service.ask({"text": text}, _read)
        except ServiceDownError as error:
            raise ServiceDownError(
                f"{error}; answers so far are in {self._answers.path}: the same command goes on"
            ) from None
        except ServiceError as error:
            log.warning("no entities of %r: %s", text[:60], error)
            return None
        self._answers.put({key: annotations})
        return annotations

    def _entities(self, annotations: Sequence[Annotation]) -> frozenset[str]:
        return frozenset(
            entity
            for each in annotations
            if each["obj"] in self._kinds and (each["prob"] or 0) >= self._confidence
            for entity in ([i for i in each["id"] if i != UNKNOWN] or [fold(each["mention"])])
        )


def _read(answer: Any) -> list[Annotation]:
    """Return the kept part of each annotation; ValueError for JSON that BERN2 does not write."""
    annotations = answer.get("annotations") if isinstance(answer, dict) else None
    if not isinstance(annotations, list):
        raise ValueError("no annotations")
    return [_annotation(each) for each in annotations]


def _annotation(each: Any) -> Annotation:
    if not isinstance(each, dict) or not isinstance(each.get("mention"), str):
        raise ValueError("an annotation without its mention")
    ids = each.get("id") or []
    ids = [ids] if isinstance(ids, str) else ids
    prob = each.get("prob")
    numeric = isinstance(prob, int | float) and 0 <= prob <= 1
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise ValueError("identifiers that are not text")
    if not numeric and prob is not None:
        raise ValueError("a probability that is not a number from 0 to 1")
    return {"mention": each["mention"], "id": ids, "obj": each.get("obj"), "prob": prob}
