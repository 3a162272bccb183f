"""Mol blocks (V2000 and V3000): read, or refused with RDKit's reason and its line."""

from __future__ import annotations

import re

from rdkit import Chem

from collamo.chem.rejection import RejectedMolecule, captured_log, one_line, reason_in

MAX_MOLBLOCK_CHARACTERS = 1_000_000

_COUNTS_LINE = re.compile(r"V[23]000\s*$")
_HEADER_LINES = 3  # title, program, comment; the counts line follows


def read_molblock(text: str) -> Chem.Mol:
    """Return the Mol of a mol block, with its hydrogens; blank lines before the header are skipped.

    Raises
    ------
    RejectedMolecule
        Over 1,000,000 characters, empty, not a mol block, or a molecule that cannot be.
    """
    if len(text) > MAX_MOLBLOCK_CHARACTERS:
        raise RejectedMolecule(
            "too_long",
            f"mol block has {len(text)} characters; the limit is {MAX_MOLBLOCK_CHARACTERS}",
        )
    if not text.strip():
        raise RejectedMolecule("empty", "mol block is empty")
    skipped = _blank_lines_before(text)
    block = "\n".join(text.split("\n")[skipped:])
    try:
        with captured_log():
            mol = Chem.MolFromMolBlock(block, removeHs=False)
    except (RuntimeError, UnicodeEncodeError, ValueError) as error:
        raise RejectedMolecule("syntax", f"mol block: {one_line(error)}") from None
    if mol is None:
        code, reason = _reason(block, skipped)
        raise RejectedMolecule(code, f"mol block {reason}; fix it or drop the record")
    return mol


def tagged_as_drawing(text: str) -> str:
    """Return the mol block with the tag 2D for 3D, so that its stereo is read from its wedges."""
    lines = text.split("\n")
    place = _blank_lines_before(text) + 1
    lines[place] = lines[place][:20] + lines[place][20:22].replace("3D", "2D") + lines[place][22:]
    return "\n".join(lines)


def _blank_lines_before(text: str) -> int:
    """Return how many blank lines stand before the header: those that displace the counts line."""
    lines = text.split("\n")
    counts = next((i for i, line in enumerate(lines) if _COUNTS_LINE.search(line)), 0)
    surplus = max(0, counts - _HEADER_LINES)
    return 0 if any(line.strip() for line in lines[:surplus]) else surplus


def _reason(block: str, skipped: int) -> tuple[str, str]:
    """Return (code, what is wrong in words); lines are counted as in the record, from 1.

    Reading one block RDKit logs what is wrong with its syntax as a warning, which cannot be
    captured; reading a file of such blocks it logs an error, with the line.
    """
    with captured_log() as log:
        supplier = Chem.SDMolSupplier()
        # RDKit cuts its messages at any byte; only of ASCII is what is left text.
        supplier.SetData(block.encode("ascii", "replace").decode(), removeHs=False)
        next(supplier, None)
    message = _violation(log.messages) or _first_error(log.messages)
    if not message:
        return "syntax", "has no counts line (the fourth, which ends in V2000 or V3000)"
    code, reason = reason_in(message)
    if code != "unreadable":
        return code, reason
    line = re.search(r"\bline ?(\d+)", message, flags=re.IGNORECASE)
    number = int(line[1]) if line else _line_of_element(block, message)
    cause = re.sub(r"[,;]? *(hit )?(found )?(on|at) line ?\d+$|^Line \d+ ", "", message)
    where = f" at line {number + skipped}" if number else ""
    return "syntax", f"cannot be read{where}: {one_line(cause)}"


def _first_error(messages: str) -> str:
    """Return the first error that RDKit logged, without its time."""
    lines = (re.sub(r"^\[[\d:]+\] *(ERROR: *)?", "", line) for line in messages.splitlines())
    return next((line.strip() for line in lines if line.strip()), "")


def _violation(messages: str) -> str:
    """Return what a failed assertion of RDKit means and its line; "" where none failed.

    Its own text is C++ with the paths of the build and a stack.
    """
    assertion = re.search(r"\n(Range Error|\S+ Violation)\n(.*)\n", messages)
    if assertion is None:
        return ""
    kind, cause = assertion.groups()
    if kind == "Range Error" or "bookmark" in cause:
        cause = "it names an atom that is not there"
    elif " " not in cause.strip():
        cause = "RDKit cannot make sense of it"
    line = re.search(r"error hit on line (\d+)", messages)
    return f"{cause} on line {line[1]}" if line else cause


def _line_of_element(block: str, message: str) -> int | None:
    """Return the line of the element that the message quotes; RDKit does not say it."""
    symbol = re.search(r"Element '(.+)' not found", message)
    lines = enumerate(block.split("\n"), start=1)
    return next((n for n, line in lines if symbol and symbol[1] in line.split()), None)
