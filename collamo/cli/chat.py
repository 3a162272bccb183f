"""``collamo chat``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from collamo.cli.command import command
from collamo.cli.console import one_line, print_error, quiet_transformers
from collamo.cli.options import CheckpointOption, TimeOption, TokensOption
from collamo.errors import CollamoError, UsageError, suggest

if TYPE_CHECKING:
    from collamo.chem.features import MoleculeFeatures
    from collamo.inference.assistant import Assistant

HELP = """A line is a question about the molecule, or
/molecule SMILES  to ask about another one (SELFIES will do)
/help             to read this
/quit             to end, as Ctrl-D does"""
COMMANDS = ("/molecule", "/help", "/quit")


@command()
def chat(
    smiles: Annotated[
        str | None, typer.Argument(help="The first molecule: SMILES or SELFIES.")
    ] = None,
    checkpoint: CheckpointOption = None,
    max_new_tokens: TokensOption = 128,
    time_limit: TimeOption = 30.0,
) -> None:
    """Answer questions line by line; the model is loaded once. /help says more."""
    from collamo.inference.checkpoint import find_checkpoint
    from collamo.inference.molecules import read_molecule

    if smiles is not None:
        read_molecule(smiles)
    folder = find_checkpoint(checkpoint)
    quiet_transformers()
    from collamo.inference.assistant import load

    session = Session(load(folder), max_new_tokens, time_limit)
    if smiles is not None:
        session.take(smiles)
    for line in _lines():
        if line == "/quit":
            return
        try:
            answer = session.reply(line)
        except CollamoError as error:
            print_error(str(error))
        else:
            if answer is not None:
                print(one_line(answer), flush=True)


class Session:
    """The molecule that is asked about, and what a line of the user's does."""

    def __init__(self, assistant: Assistant, max_new_tokens: int, seconds: float):
        self.assistant = assistant
        self.max_new_tokens = max_new_tokens
        self.seconds = seconds
        self.features: MoleculeFeatures | None = None

    def reply(self, line: str) -> str | None:
        """Return the answer to a question; None for a line that is none."""
        if not line.startswith("/"):
            return self.ask(line)
        name, _, rest = line.partition(" ")
        if name == "/molecule":
            self.take(rest)
        elif name == "/help":
            print(HELP, file=sys.stderr)
        else:
            raise UsageError(
                f"{name} is none of {', '.join(COMMANDS)}{suggest(name, COMMANDS)}; a question "
                "does not begin with /"
            )
        return None

    def ask(self, question: str) -> str:
        """Answer a question about the molecule."""
        if self.features is None:
            raise UsageError("there is no molecule yet; /molecule SMILES sets it")
        return self.assistant.ask(self.features, question, max_new_tokens=self.max_new_tokens)

    def take(self, smiles: str) -> None:
        """Ask about this molecule from now on; one that cannot be read changes nothing."""
        from collamo.inference.molecules import molecule_features, notes, read_molecule

        (self.features,) = molecule_features([read_molecule(smiles)], seconds=self.seconds)
        for note in notes(self.features):
            print(f"note: {note}", file=sys.stderr)


def _lines() -> Iterator[str]:
    """Yield the lines of stdin that hold something; a prompt where somebody types them."""
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401 - gives input() its history and editing
    while True:
        try:
            line = _read_line("> ").strip()
        except EOFError:
            return
        if line:
            yield line


def _read_line(prompt: str) -> str:
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(prompt)  # readline has to know the prompt
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    return input()
