"""``collamo score``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.cli.console import count_line
from collamo.cli.entities import (
    EntitiesAnswersOption,
    EntitiesLimitOption,
    EntitiesOption,
    open_entities,
)
from collamo.cli.options import (
    SelfiesColumnOption,
    SmilesColumnOption,
    WordnetOption,
    comma_separated,
)
from collamo.errors import UsageError
from collamo.progress import progress_bar


@command()
def score(
    file: Annotated[
        Path,
        typer.Argument(help="TSV or TXT, CSV, JSONL, JSON, Parquet: predictions and references."),
    ],
    task: Annotated[str, typer.Option(help="captions, molecules, iupac, motifs or property.")],
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("scores"),
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Of captions and iupac, which need one: scibert:VOCAB_PATH, llm:FOLDER_OR_NAME, "
            "13a or whitespace."
        ),
    ] = None,
    wordnet: WordnetOption = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="Of the property; answers in other units are converted. An energy is also "
            "reported in Hartree and eV."
        ),
    ] = None,
    train_mean: Annotated[
        str, typer.Option(help="For answers without a number: 1.5, or gap=0.25,mu=2.7.")
    ] = "",
    prediction_column: Annotated[
        str | None, typer.Option(help="Column of the predictions, where it is not recognised.")
    ] = None,
    reference_column: Annotated[str | None, typer.Option(help="The same, of the truth.")] = None,
    group_column: Annotated[
        str | None, typer.Option(help="The same, of what is scored apart: motif or property.")
    ] = None,
    smiles_column: SmilesColumnOption = None,
    selfies_column: SelfiesColumnOption = None,
    entities: EntitiesOption = None,
    entities_answers: EntitiesAnswersOption = None,
    entities_per_minute: EntitiesLimitOption = None,
) -> None:
    """Score a file of predictions by the published metrics of its task."""
    from collamo.evaluation.score.predictions import PredictionColumns
    from collamo.evaluation.score.scorer import ScoreOptions
    from collamo.evaluation.score.scoring import score_predictions

    options = ScoreOptions(
        task=task,
        tokenizer=tokenizer,
        wordnet=wordnet,
        unit=unit,
        train_mean=dict(_train_mean(part) for part in comma_separated(train_mean)),
    )
    columns = PredictionColumns(
        prediction_column, reference_column, group_column, smiles_column or selfies_column
    )
    extractor = open_entities(entities, entities_answers, entities_per_minute, out)
    with progress_bar("rows", None) as advance, extractor as opened:
        options = dataclasses.replace(options, entities=opened)
        report = score_predictions(file, options, out, progress=advance, columns=columns)
    for name, value in report["scores"].items():
        if not isinstance(value, dict):
            print(f"{name}\t{value:.4f}")
    print(count_line(report["counts"]), file=sys.stderr)
    if "entity_counts" in report:
        print(f"entities: {count_line(report['entity_counts'])}", file=sys.stderr)
    for name, short in report["shortfalls"].items():
        print(
            f"note: {name} of {short['rows']} right answers is below 1: {short['reason']}",
            file=sys.stderr,
        )
    for name, reason in report["manifest"]["absent"].items():
        print(f"note: no {name}: {reason}", file=sys.stderr)
    print(f"written to {out}: report.json, .md, .html and rows.parquet", file=sys.stderr)


def _train_mean(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--train-mean {text!r} is no number; write 1.5 or name=1.5") from None
