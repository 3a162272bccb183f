"""``collamo merge``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command


@command()
def merge(
    adapter: Annotated[
        Path,
        typer.Argument(
            help="Folder that stage 2 wrote: <output>/adapter. For --language-model alone, a whole "
            "model too."
        ),
    ],
    out: Annotated[Path | None, typer.Argument(help="Folder to write.", show_default=False)] = None,
    language_model: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Folder for the language model by itself, which any engine opens.",
            show_default=False,
        ),
    ] = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Turn a base of 4 bits into half precision first.")
    ] = False,
) -> None:
    """Fold LoRA into the language model: one folder that needs neither peft nor the base.

    With --language-model the language model also (or alone) as a folder of its own, for engines
    that take prompts of embeddings; collamo.load(folder, language_model=False) makes those.
    """
    from collamo.model.merge import merge as merge_adapter

    with contextlib.redirect_stdout(sys.stderr):
        merged = merge_adapter(adapter, out, dequantize, language_model)
    print(*merged, sep="\n")
