"""``collamo ask``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from collamo.cli.command import command
from collamo.cli.console import quiet_transformers
from collamo.cli.options import CheckpointOption, TimeOption, TokensOption
from collamo.errors import UsageError


@command()
def ask(
    smiles: Annotated[str, typer.Argument(help="The molecule: SMILES or SELFIES.")],
    question: Annotated[str, typer.Argument(help="A question about it.")],
    checkpoint: CheckpointOption = None,
    max_new_tokens: TokensOption = 128,
    time_limit: TimeOption = 30.0,
) -> None:
    """Answer one question about one molecule."""
    from collamo.chem.conformer import embed_conformer_limited
    from collamo.chem.features import featurize, unknown_to_unimol
    from collamo.chem.molecule import parse_molecule
    from collamo.inference.checkpoint import find_checkpoint

    if not question.strip():
        raise UsageError("the question is empty")
    molecule = parse_molecule(smiles)
    folder = find_checkpoint(checkpoint)
    conformer = embed_conformer_limited(molecule, seconds=time_limit)
    if conformer.coordinates is None:
        print(f"note: answered without 3D: {conformer.reason}", file=sys.stderr)
    features = featurize(molecule, conformer)
    if conformer.coordinates is not None:
        for element in unknown_to_unimol(features.atom_features):
            print(f"note: the 3D encoder reads {element} as [UNK]", file=sys.stderr)
    quiet_transformers()
    from collamo.inference.answers import answer
    from collamo.model import load_checkpoint

    pairs = [(features, question)]
    print(answer(*load_checkpoint(folder), pairs, max_new_tokens=max_new_tokens)[0])
