"""``collamo train``."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command


@command(
    open_ended=True,
    epilog="Any key of the recipe is an option too: --llm NAME_OR_PATH, --unimol PATH, --gin PATH, "
    "--training.learning_rate 1e-4, --data my/data.",
)
def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, such as configs/stage1.yaml.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint, if any.")
    ] = False,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-changed",
            metavar="KEY",
            help="With --resume: a setting, such as training.learning_rate, that may differ from "
            "what the checkpoint was trained with; its new value holds from there on.",
        ),
    ] = None,
) -> None:
    """Train one stage: the small language model, the alignment, or the instruction tuning."""
    from collamo.training.recipe import load_recipe

    # Before the imports of training: a mistake in the recipe is told at once.
    loaded = load_recipe(recipe, context.args)
    from collamo.training.stages import train as train_stage

    # transformers prints its progress to stdout; stdout is for data.
    with contextlib.redirect_stdout(sys.stderr):
        final = train_stage(loaded, resume=resume, allow_changed=allow_changed or ())
    if os.environ.get("RANK", "0") == "0":
        print(final)
