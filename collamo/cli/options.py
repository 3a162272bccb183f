"""Options that more than one command has, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collamo.errors import UsageError, suggest

SPLITS = ("train", "validation", "test")
# Where it comes from when none is named: see `collamo.inference.checkpoint`.
_CHECKPOINT = "Folder of the trained model. Default: COLLAMO_CHECKPOINT, else the newest in demo/."
CheckpointArgument = Annotated[Path | None, typer.Argument(help=_CHECKPOINT, show_default=False)]
CheckpointOption = Annotated[Path | None, typer.Option(help=_CHECKPOINT)]
PortOption = Annotated[int, typer.Option(min=1, max=65535)]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: cpu.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16. Default: that of the files.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Questions answered together.")]
TokensOption = Annotated[int, typer.Option(min=1, help="Longest answer [tokens].")]
TimeOption = Annotated[
    float,
    typer.Option(min=0.1, help="Most processor time for one conformer [s]; then 3D is left out."),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Worker processes. Default: one per processor.")
]
SmilesColumnOption = Annotated[
    str | None, typer.Option(help="Column of the molecules, where it is not recognised.")
]
SelfiesColumnOption = Annotated[
    str | None, typer.Option(help="The same, where every text in it is SELFIES.")
]
SplitOption = Annotated[str, typer.Option(help="train, validation or test.")]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="Most questions per task, drawn with the seed."),
]
WordnetOption = Annotated[
    Path | None, typer.Option(help="Folder or zip of WordNet 3.0, for METEOR. Never downloaded.")
]


def check_split(split: str) -> None:
    """Raise a UsageError unless there is a split of this name."""
    if split not in SPLITS:
        raise UsageError(
            f"--split {split!r} is none of {', '.join(SPLITS)}{suggest(split, SPLITS)}"
        )


def comma_separated(text: str) -> list[str]:
    """Return the parts of a list written with commas.

    >>> comma_separated("gap, mu,")
    ['gap', 'mu']
    """
    return [part.strip() for part in text.split(",") if part.strip()]
