"""``collamo ablate``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.cli.options import (
    BatchOption,
    LimitOption,
    SplitOption,
    TokensOption,
    check_split,
)


@command(
    open_ended=True,
    epilog="Options of `collamo train` hold for every variant: --llm NAME_OR_PATH, --unimol PATH, "
    "--gin PATH, --data my/data.",
)
def ablate(
    context: typer.Context,
    ablation: Annotated[
        Path, typer.Argument(help="YAML of variants, such as configs/ablations/relations.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for models, reports and table.md.")],
    split: SplitOption = "test",
    limit: LimitOption = None,
    batch_size: BatchOption = 64,
    max_new_tokens: TokensOption = 128,
) -> None:
    """Train and evaluate variants of a model, and draw the table. Run again to go on."""
    from collamo.ablation import load_ablation, run_ablation

    check_split(split)
    loaded = load_ablation(ablation)
    with contextlib.redirect_stdout(sys.stderr):
        table = run_ablation(
            loaded,
            out,
            context.args,
            split=split,
            limit=limit,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
    print(table)
