"""``collamo chat``."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collamo.cli.command import command
from collamo.cli.console import one_line, print_error, quiet_transformers
from collamo.cli.options import CheckpointArgument, TimeOption, TokensOption, comma_separated
from collamo.errors import CollamoError, MoleculeError, UsageError, suggest

if TYPE_CHECKING:
    from collamo.chem.features import MoleculeFeatures
    from collamo.inference.assistant import Assistant

HELP = """A line is a question about the molecule, or
/mol SMILES    to ask about another one (SELFIES will do)
/views 1d,2d   which of 1d, 2d and 3d the model may see
/memory on     questions see those before them, with their answers (off: each stands alone)
/save FILE     to write the questions and answers so far, a line of JSON each
/help          to read this
/quit          to end, as Ctrl-D does"""
COMMANDS = ("/mol", "/views", "/memory", "/save", "/help", "/quit")
#: Lines that are kept for the next chat.
HISTORY = 1000


@command()
def chat(
    checkpoint: CheckpointArgument = None,
    mol: Annotated[str | None, typer.Option(help="The first molecule: SMILES or SELFIES.")] = None,
    max_new_tokens: TokensOption = 128,
    time_limit: TimeOption = 30.0,
) -> None:
    """Answer questions line by line; the model is loaded once. /help says more."""
    from collamo.inference.checkpoint import find_checkpoint
    from collamo.inference.molecules import read_molecule

    if mol is not None:
        read_molecule(mol)
    if checkpoint is not None and not checkpoint.exists() and _is_molecule(str(checkpoint)):
        raise UsageError(f"'{checkpoint}' is a molecule: give it by --mol")
    folder = find_checkpoint(checkpoint)
    quiet_transformers()
    from collamo.inference.assistant import load

    session = Session(load(folder), max_new_tokens, time_limit)
    if mol is not None:
        session.take(mol)
    for line in _lines():
        if line == "/quit":
            return
        try:
            answer = session.reply(line)
        except (CollamoError, OSError) as error:
            print_error(str(error))
        else:
            if answer is not None:
                print(one_line(answer), flush=True)


def _is_molecule(text: str) -> bool:
    from collamo.inference.molecules import read_molecule

    try:
        return bool(read_molecule(text))
    except MoleculeError:
        return False


class Session:
    """The molecule that is asked about, and what a line of the user's does."""

    def __init__(self, assistant: Assistant, max_new_tokens: int, seconds: float):
        self.assistant = assistant
        self.max_new_tokens = max_new_tokens
        self.seconds = seconds
        self.features: MoleculeFeatures | None = None
        self.views: tuple[str, ...] = ("1d", "2d", "3d")
        self.memory = False
        self.said: list[dict[str, Any]] = []
        self._remembered: list[dict[str, Any]] = []  # messages about this molecule
        self._saved: set[Path] = set()

    def reply(self, line: str) -> str | None:
        """Return the answer to a question; None for a line that is none."""
        if not line.startswith("/"):
            return self.ask(line)
        name, _, rest = line.partition(" ")
        commands = {
            "/mol": self.take,
            "/views": self.see,
            "/memory": self.remember,
            "/save": self.save,
            "/help": lambda _: print(HELP, file=sys.stderr),
        }
        if name not in commands:
            raise UsageError(
                f"{name} is none of {', '.join(COMMANDS)}{suggest(name, COMMANDS)}; a question "
                "does not begin with /"
            )
        commands[name](rest.strip())
        return None

    def ask(self, question: str) -> str:
        """Answer a question about the molecule."""
        from collamo.inference.molecules import reading

        if self.features is None:
            raise UsageError("there is no molecule yet; /mol SMILES sets it")
        before = self._remembered if self.memory else []
        parts = [] if before else [{"type": "molecule"}]
        asked = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        answer = self.assistant.reply(
            [*before, asked],
            self.features,
            max_new_tokens=self.max_new_tokens,
            modalities=self.views,
        )
        self._remembered = [*before, asked, {"role": "assistant", "content": answer}]
        read = reading(self.features, self.views)
        self.said.append({"question": question, "answer": answer, "memory": self.memory, **read})
        return answer

    def take(self, smiles: str) -> None:
        """Ask about this molecule from now on; one that cannot be read changes nothing."""
        from collamo.inference.molecules import molecule_features, notes, read_molecule

        (self.features,) = molecule_features([read_molecule(smiles)], seconds=self.seconds)
        self._remembered = []
        for note in notes(self.features):
            print(f"note: {note}", file=sys.stderr)

    def see(self, views: str) -> None:
        """Let the model see these views alone, such as ``1d,2d``."""
        from collamo.data.batch import MODALITIES

        wanted = comma_separated(views.lower())
        unknown = [view for view in wanted if view not in MODALITIES]
        if unknown or not wanted:
            raise UsageError(f"/views {views}: give one or more of {', '.join(MODALITIES)}")
        self.views = tuple(view for view in MODALITIES if view in wanted)

    def remember(self, choice: str) -> None:
        """Let questions see those before them, or not."""
        if choice not in ("on", "off"):
            raise UsageError(f"/memory {choice}: say on or off")
        self.memory, self._remembered = choice == "on", []

    def save(self, name: str) -> None:
        """Write what was said; only a file that this chat wrote is written over."""
        from collamo.files import write_text

        if not name:
            raise UsageError("/save needs a file, such as /save chat.jsonl")
        file = Path(name)
        if file.exists() and file.absolute() not in self._saved:
            raise UsageError(f"'{file}' exists; nothing is overwritten, give another file")
        write_text(file, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in self.said))
        self._saved.add(file.absolute())
        print(f"note: {len(self.said)} answers in {file}", file=sys.stderr)


def _lines() -> Iterator[str]:
    """Yield the lines of stdin that hold something; a prompt where somebody types them."""
    if sys.stdin.isatty():
        _keep_history()
    while True:
        try:
            line = _read_line("> ").strip()
        except EOFError:
            return
        if line:
            yield line


def _keep_history() -> None:
    """Give input() its editing, and the lines of earlier chats."""
    try:
        import readline
    except ImportError:  # Windows
        return
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    file = Path(state, "collamo", "chat_history")
    readline.set_history_length(HISTORY)
    with contextlib.suppress(OSError):  # the first chat, or a home that is not ours
        readline.read_history_file(file)

    def write() -> None:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)

    atexit.register(write)


def _read_line(prompt: str) -> str:
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(prompt)  # readline has to know the prompt
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    return input()
