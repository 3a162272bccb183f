"""``collamo ask``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.cli.console import one_line, quiet_transformers
from collamo.cli.options import CheckpointOption, TimeOption, TokensOption
from collamo.errors import UsageError


@command()
def ask(
    smiles: Annotated[str, typer.Argument(help="The molecule: SMILES or SELFIES.")],
    questions: Annotated[list[str], typer.Argument(help="One or more questions about it.")],
    checkpoint: CheckpointOption = None,
    max_new_tokens: TokensOption = 128,
    time_limit: TimeOption = 30.0,
) -> None:
    """Answer questions about one molecule, a line each."""
    from collamo.inference.checkpoint import find_checkpoint
    from collamo.inference.molecules import molecule_features, notes, read_molecule

    # What is wrong with the command is told before the model is loaded.
    if not all(question.strip() for question in questions):
        raise UsageError("the question is empty")
    molecule = read_molecule(smiles)
    folder = find_checkpoint(checkpoint)
    (features,) = molecule_features([molecule], seconds=time_limit)
    for note in notes(features):
        print(f"note: {note}", file=sys.stderr)
    quiet_transformers()
    from collamo.inference.assistant import load

    for answer in load(folder).ask(features, questions, max_new_tokens=max_new_tokens):
        print(one_line(answer))
