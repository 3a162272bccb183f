"""``collamo generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.cli.console import quiet_transformers
from collamo.cli.options import (
    BatchOption,
    CheckpointOption,
    SelfiesColumnOption,
    SmilesColumnOption,
    TimeOption,
    TokensOption,
    WorkersOption,
)
from collamo.progress import progress_bar


@command()
def generate(
    questions: Annotated[
        Path,
        typer.Argument(
            help="CSV, TSV, JSONL, JSON, Parquet or SDF file with a molecule and a question a row."
        ),
    ],
    checkpoint: CheckpointOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write: .csv, .tsv or .jsonl. Default: JSONL on stdout."),
    ] = None,
    smiles_column: SmilesColumnOption = None,
    selfies_column: SelfiesColumnOption = None,
    question_column: Annotated[str, typer.Option(help="Column of the questions.")] = "question",
    batch_size: BatchOption = 32,
    max_new_tokens: TokensOption = 128,
    time_limit: TimeOption = 30.0,
    workers: WorkersOption = None,
) -> None:
    """Answer a file of questions. Every row comes back; a bad one with its reason."""
    from collamo.inference import question_files as files
    from collamo.inference.checkpoint import find_checkpoint

    if out is not None:
        files.check_format(out)
    rows = files.read_questions(questions, smiles_column, question_column, selfies_column)
    folder = find_checkpoint(checkpoint)
    with progress_bar("molecules", len(rows)) as advance:
        features = files.read_molecules(rows, time_limit, advance, workers)
    if any(row.reason is None for row in rows):
        quiet_transformers()
        from collamo.inference.assistant import load

        assistant = load(folder)
        with progress_bar("answers", len(rows)) as advance:
            files.answer_rows(
                rows,
                features,
                assistant,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                progress=advance,
            )
    files.write_answers(rows, out)
    bad = sum(row.reason is not None for row in rows)
    print(f"{len(rows)} rows: {len(rows) - bad} answered, {bad} with errors", file=sys.stderr)
