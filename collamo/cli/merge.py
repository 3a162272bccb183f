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
    adapter: Annotated[Path, typer.Argument(help="Folder that stage 2 wrote: <output>/adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Turn a base of 4 bits into half precision first.")
    ] = False,
) -> None:
    """Fold LoRA into the language model: one folder that needs neither peft nor the base."""
    from collamo.model.merge import merge as merge_adapter

    with contextlib.redirect_stdout(sys.stderr):
        merged = merge_adapter(adapter, out, dequantize)
    print(merged)
