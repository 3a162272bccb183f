"""``collamo judge``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.cli.console import count_line
from collamo.errors import UsageError
from collamo.progress import progress_bar


@command()
def judge(
    predictions: Annotated[
        Path, typer.Argument(help="TSV, CSV or JSONL of captions, as for `collamo score`.")
    ],
    judge: Annotated[
        str, typer.Option(help="OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
    ],
    judge_model: Annotated[str, typer.Option(help="Name of the model there.")],
    other: Annotated[
        Path | None,
        typer.Argument(help="Another file for the same references: which of the two is better?"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("judgement"),
    prompt: Annotated[
        Path | None,
        typer.Option(help="Prompt and rubric (YAML). Default: the one that comes with collamo."),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Where answers are kept. Default: OUT/answers.jsonl.")
    ] = None,
    reasks: Annotated[
        int, typer.Option(min=0, help="How often an unreadable answer is asked for again.")
    ] = 2,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="Price of 1,000 tokens of prompt.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="Price of 1,000 tokens of answer.")
    ] = None,
    per_minute: Annotated[
        float | None, typer.Option(min=0.01, help="Most requests a minute. Default: no limit.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at one time.")] = 4,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts at a request that fails.")] = 5,
    timeout: Annotated[float, typer.Option(min=0.1, help="Longest wait for a request [s].")] = 60,
) -> None:
    """Have captions judged by a language model, or two files compared. Run again to go on.

    The key, if the endpoint wants one, is read from COLLAMO_JUDGE_KEY.
    """
    from collamo.evaluation.judge.files import judge_predictions
    from collamo.evaluation.judge.model import JudgeOptions
    from collamo.evaluation.judge.rubric import PROMPT, Rubric
    from collamo.evaluation.service import Limits

    for path in filter(None, (predictions, other)):
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
    options = JudgeOptions(
        url=judge,
        model=judge_model,
        rubric=Rubric.load(prompt or PROMPT),
        limits=Limits(per_minute, concurrency, timeout, attempts),
        reasks=reasks,
        prices=_prices(price_in, price_out),
        key=os.environ.get("COLLAMO_JUDGE_KEY"),
    )
    with progress_bar("rows", None) as advance:
        report = judge_predictions(
            predictions, options, out, other=other, answers=answers, progress=advance
        )
    for name, value in report["scores"].items():
        print(f"{name}\t{value:.4f}")
    print(count_line(report["counts"]), file=sys.stderr)
    if report["counts"]["failed"]:
        print("note: the same command asks again for what failed", file=sys.stderr)
    spent = ", ".join(f"{count} {name}" for name, count in report["usage"]["this_run"].items())
    print(f"this run: {spent}", file=sys.stderr)
    print(f"written to {out}: report.json, report.md and rows.parquet", file=sys.stderr)


def _prices(price_in: float | None, price_out: float | None) -> tuple[float, float] | None:
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise UsageError("--price-in and --price-out go together")
    return price_in, price_out
