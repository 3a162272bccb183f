"""What commands show on the terminal beside their data."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def count_line(counts: Mapping[str, int]) -> str:
    """Return counts in words, without the zeros.

    >>> count_line({"rows": 3, "empty": 0, "scored": 3})
    '3 rows, 3 scored'
    """
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def quiet_transformers() -> None:
    """Keep the progress bars of transformers, which name no file, off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def one_line(text: str) -> str:
    """Return an answer on one line, so that stdout has a line per answer.

    >>> one_line("two\\nlines")
    'two lines'
    """
    return " ".join(text.splitlines())


def print_error(message: str) -> None:
    """Print an error on stderr: one line, whatever the message holds."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
