"""``collamo compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from collamo.cli.command import command


@command()
def compare(
    a: Annotated[
        Path,
        typer.Argument(help="Folder of `collamo evaluate`, `collamo score` or `collamo judge`."),
    ],
    b: Annotated[Path, typer.Argument(help="Another, of the same questions.")],
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
) -> None:
    """Compare two evaluations, of models or of files, or two judgements: paired intervals, and the
    rows that changed."""
    from collamo.evaluation.comparison import compare as compare_folders

    comparison = compare_folders(a, b, seed=seed)
    print("score\ta\tb\tb-a\tlow\thigh\tclear")
    for difference in comparison.differences:
        change = difference.change
        values = (difference.a, difference.b, change.value, change.low, change.high)
        numbers = "\t".join(f"{value:.4f}" for value in values)
        print(f"{difference.name}\t{numbers}\t{'yes' if change.clear else 'no'}")
    changed = comparison.changed
    shown = ", ".join(map(str, changed[:20])) + (" …" if len(changed) > 20 else "")
    print(f"{len(changed)} of {comparison.rows} predictions differ: {shown}", file=sys.stderr)
