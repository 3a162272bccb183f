"""The options that say how captions are searched for entities, and the extractor they open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collamo.errors import UsageError

if TYPE_CHECKING:
    from collamo.evaluation.entities.extractor import EntityExtractor

PER_MINUTE = 150.0

EntitiesOption = Annotated[
    str | None,
    typer.Option(help="For CHARM and RCHARM of captions: offline, bern2:URL or file:PATH."),
]
EntitiesAnswersOption = Annotated[
    Path | None,
    typer.Option(help="Where answers of bern2 are kept. Default: OUT/entities.jsonl."),
]
EntitiesLimitOption = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help=f"Requests to bern2. Default: {PER_MINUTE:g}; the public server allows 180.",
    ),
]


@contextmanager
def open_entities(
    source: str | None, answers: Path | None, per_minute: float | None, out: Path
) -> Iterator[EntityExtractor | None]:
    """Open the extractor that ``--entities`` names; yields None where it names none."""
    if (source or "").partition(":")[0] != "bern2":
        for option, value in (
            ("--entities-answers", answers),
            ("--entities-per-minute", per_minute),
        ):
            if value is not None:
                raise UsageError(f"{option}: only with --entities bern2:URL")
    if source is None:
        yield None
        return
    from collamo.evaluation.entities.loading import load_extractor
    from collamo.evaluation.service import Limits

    limits = Limits(per_minute=PER_MINUTE if per_minute is None else per_minute)
    with load_extractor(source, answers or out / "entities.jsonl", limits) as extractor:
        yield extractor
