"""The errors users meet: one line that names the thing, the place and the way out.

The command line prints the message as ``error: …`` and leaves with ``exit_code``; a library
user catches the class.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CollamoError(Exception):
    """Anything that went wrong at run time (exit code 1)."""

    exit_code = 1


class UsageError(CollamoError, ValueError):
    """A wrong option, column, file name or configuration key (exit code 2)."""

    exit_code = 2


class TooManyRejectedError(CollamoError):
    """More input rows were rejected than the caller allows (exit code 3)."""

    exit_code = 3


class MissingDependencyError(CollamoError):
    """An optional package, a compiler or a weights file is not there (exit code 4)."""

    exit_code = 4


class TerminatedError(CollamoError):
    """SIGTERM ended a training, after its checkpoint was sealed (exit code 143)."""

    exit_code = 143


class MoleculeError(CollamoError, ValueError):
    """A molecule that cannot be read, or is outside the stated limits (exit code 1)."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of `known`, or an empty string.

    >>> suggest("smlies", ["smiles", "caption"])
    " (did you mean 'smiles'?)"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
