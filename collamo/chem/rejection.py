"""What cannot be read as a molecule, and the words that say why."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from rdkit import rdBase

from collamo.errors import MoleculeError


@contextmanager
def captured_log() -> Iterator[rdBase.CaptureErrorLog]:
    """Keep RDKit's messages off stderr inside the block; ``.messages`` holds its errors after.

    The logger itself is never switched off: outside the block it is as the user left it.
    """
    with rdBase.BlockLogs(), rdBase.CaptureErrorLog() as log:
        yield log


class RejectedMolecule(MoleculeError):
    """A molecule that cannot be read; `code` is the reason that rejected rows are counted by."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code

    def __reduce__(self):  # crosses from a worker process to the parent with its code
        return type(self), (self.code, str(self))


def reason_in(messages: str) -> tuple[str, str]:
    """Return (code, what is wrong in words) from what RDKit logged while it read a molecule."""
    # RDKit starts each line with a clock time; the first line is the cause.
    lines = [re.sub(r"^\[[\d:]+\]\s*", "", line) for line in messages.splitlines()]
    text = " ".join(line for line in lines if line)
    place = re.search(r"around position (\d+)", text)
    at = f" at character {place[1]}" if place else ""
    valence = re.search(r"Explicit valence for atom # (\d+) (\w+), (\d+)", text)
    if valence:
        return "valence", f"has a valence of {valence[3]} at atom {valence[1]} ({valence[2]})"
    if "unclosed ring" in text:
        return "unclosed_ring", "has an unclosed ring"
    if "parentheses" in text:
        return "parentheses", f"has unbalanced parentheses{at}"
    if "kekulize" in text:
        atoms = re.search(r"Unkekulized atoms: ([\d ]+)", text)
        where = f" at atoms {atoms[1].strip()}" if atoms else ""
        return "aromaticity", f"has an aromatic ring with no Kekulé structure{where}"
    if "marked aromatic" in text:
        return "aromaticity", "has an aromatic atom outside a ring"
    if "syntax error" in text:
        return "syntax", f"has a syntax error{at}"
    detail = one_line(text)
    return "unreadable", f"cannot be read ({detail})" if detail else "cannot be read"


def shown(text: str) -> str:
    """Return the text for a message: in quotes, ASCII only, at most 60 characters."""
    escaped = ascii(text).replace("\\\\", "\\")
    return escaped if len(text) <= 60 else ascii(text[:50])[:-1].replace("\\\\", "\\") + "…'"


def character_name(character: str) -> str:
    """Return the code point, and its Unicode name where it has one."""
    code = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "")
    return f"{code} ({name})" if name else code


def one_line(error: Exception | str) -> str:
    """Return the text without line breaks, at most 200 characters of it."""
    return " ".join(str(error).split())[:200]
