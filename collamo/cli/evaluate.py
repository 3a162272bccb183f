"""``collamo evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.cli.console import quiet_transformers
from collamo.cli.entities import (
    EntitiesAnswersOption,
    EntitiesLimitOption,
    EntitiesOption,
    open_entities,
)
from collamo.cli.options import (
    BatchOption,
    CheckpointArgument,
    LimitOption,
    SplitOption,
    TokensOption,
    WordnetOption,
    check_split,
)
from collamo.errors import UsageError
from collamo.progress import progress_bar


@command()
def evaluate(
    checkpoint: CheckpointArgument = None,
    data: Annotated[
        str, typer.Option(help="Folder written by `collamo prepare`, a path or a URL.")
    ] = "demo/data",
    split: SplitOption = "test",
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("evaluation"),
    limit: LimitOption = None,
    reliance: Annotated[
        bool,
        typer.Option(help="Also ask with less of each molecule, and with another of its size."),
    ] = True,
    diagnose: Annotated[
        bool,
        typer.Option("--diagnose", help="Also look into the attention: collapsed, dead, alike?"),
    ] = False,
    batch_size: BatchOption = 64,
    max_new_tokens: TokensOption = 128,
    seed: Annotated[
        int, typer.Option(help="Seed of the wrong molecules, limit and intervals.")
    ] = 0,
    tokenizer: Annotated[
        str,
        typer.Option(
            help="Of captions and names: scibert:VOCAB_PATH, llm:FOLDER_OR_NAME, 13a or whitespace."
        ),
    ] = "13a",
    wordnet: WordnetOption = None,
    entities: EntitiesOption = None,
    entities_answers: EntitiesAnswersOption = None,
    entities_per_minute: EntitiesLimitOption = None,
) -> None:
    """Score a model on a split against two baselines. Run again to go on where it was cut off."""
    if (entities or "").startswith("file:"):
        raise UsageError(
            "--entities file:PATH is about the rows of a file: only with `collamo score`"
        )
    check_split(split)
    extractor = open_entities(entities, entities_answers, entities_per_minute, out)
    from collamo.data.prepared import PreparedData
    from collamo.inference.checkpoint import find_checkpoint

    prepared = PreparedData.open(data)
    folder = find_checkpoint(checkpoint)
    quiet_transformers()
    from rich.console import Console

    from collamo.evaluation.examine.split import evaluate as evaluate_split
    from collamo.evaluation.examine.split_questions import count_questions
    from collamo.evaluation.examine.split_report import show
    from collamo.inference.assistant import load

    assistant = load(folder)
    total = count_questions(prepared, split, limit, reliance)
    with progress_bar("answers", total) as advance, extractor as opened:
        report = evaluate_split(
            assistant.model,
            assistant.processor,
            prepared,
            out=out,
            split=split,
            limit=limit,
            seed=seed,
            reliance=reliance,
            diagnose=diagnose,
            tokenizer=tokenizer,
            wordnet=wordnet,
            entities=opened,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            about={"checkpoint": str(folder), "data": data},
            progress=lambda _, count: advance(count),
        )
    show(report, Console())
    print(f"written to {out}: report.json, .md, .html and rows.parquet", file=sys.stderr)
