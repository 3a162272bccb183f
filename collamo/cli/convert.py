"""``collamo convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command


@command()
def convert(
    weights: Annotated[
        Path, typer.Argument(help="Published Uni-Mol or GIN weights: .pt, .pth or .safetensors.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Turn a published encoder into safetensors with its configuration. Pickles never run."""
    from collamo.model import convert_encoder

    config = convert_encoder(weights, out).config
    sizes = f"{config.num_layers} layers of {config.hidden_size} channels"
    print(f"{out}: {config.model_type.removeprefix('collamo_')}, {sizes}")
