"""The command line: a file per command, imported when the command is called.

Data goes to stdout, everything else to stderr. An error is one line, ``error: …``, and an exit
code: 0 ok, 1 run time, 2 usage, 3 too many rejected rows, 4 missing dependency or weights, 130
Ctrl-C, 143 SIGTERM while training, once the checkpoint is written. The command files import nothing
heavy at their top: ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from collamo.cli.console import print_error
from collamo.errors import CollamoError
from collamo.extras import VERSION, missing_module
from collamo.files import no_room, why_full

#: Each is a file of this folder with a function of that name; the order is that of ``--help``.
COMMANDS = (
    *("prepare", "convert", "train", "merge", "ask", "chat", "serve", "web", "generate"),
    *("evaluate", "score", "compare", "judge", "ablate", "bench", "doctor"),
)


class CommandGroup(TyperGroup):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx, cmd_name):
        """Import a command; None where there is none of that name."""
        # A misspelt name imports them all: Typer suggests one of those it knows.
        for name in (cmd_name,) if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.add_command(getattr(importlib.import_module(f"collamo.cli.{name}"), name))
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="collamo",
    cls=CommandGroup,
    help="Relation-aware molecular language models: prepare data, train, ask.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"collamo {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", is_eager=True)
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Relation-aware molecular language models: prepare data, train, ask."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("collamo").setLevel(logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """Run the command line and leave with its exit code."""
    import warnings

    # A command-line user cannot act on FutureWarnings.
    warnings.filterwarnings("ignore", category=FutureWarning)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code. ``--debug`` shows the traceback of an error."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [a for i, a in enumerate(arguments) if a != "--debug" or i > end]
    try:
        result = app(args=arguments or ["--help"], prog_name="collamo", standalone_mode=False)
        sys.stdout.flush()  # here its failure is still told, later it is a traceback
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`collamo doctor | head`); nothing is left to say to it.
        _empty_stdout()
        return 1
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        _empty_stdout()
        return _fail(*_explain(error, arguments))
    if not arguments:  # the help was shown, but nothing was asked for
        return 2
    code = result if isinstance(result, int) else 0
    return _fail("interrupted", 130) if code == 130 else code


def _empty_stdout() -> None:
    """Write what stdout still holds, or drop it: at the end it would fail once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    print_error(message)
    return code


def _file_of(error: BaseException | None) -> str | None:
    """Return the file that an error, or what it came from, names."""
    if error is None:
        return None
    return getattr(error, "filename", None) or _file_of(error.__cause__)


def _explain(error: Exception, arguments: list[str]) -> tuple[str, int]:
    """Return (message, exit code) for any exception that reached the top."""
    if isinstance(error, CollamoError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # typer's own: unknown option, missing argument
        return error.format_message(), 2
    if isinstance(error, typer.Abort):
        return "aborted", 130
    if isinstance(error, ModuleNotFoundError):
        return missing_module(error.name or ""), 4
    full = why_full(error)
    if full is not None:
        again = (
            "go on with --resume" if arguments[:1] == ["train"] else "run the same command again"
        )
        return f"{no_room(_file_of(error), full)} and {again}", 1
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}", 1
    return f"{type(error).__name__}: {error} (--debug shows where)", 1
