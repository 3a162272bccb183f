"""The records of an XYZ file: geometries whose comment line is a SMILES, or QM9's own files.

QM9's (Ramakrishnan et al., Sci. Data 1, 140022) hold 15 numbers in the comment line and the SMILES
after the atoms. Any number of either may stand in a file, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from collamo.data.readers import Problem, Record

XYZ = "xyz"  # the column of a record's block, as `collamo.chem.xyz` reads it
#: The numbers of QM9's comment line, rotational constants left out, by its publication's names.
QM9_COLUMNS = (
    *("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve"),
    *("u0", "u298", "h298", "g298", "cv"),
)
_CONSTANTS = 3  # rotational, before them
_DIGITS = 9  # of a number of atoms


def xyz_records(lines: Iterable[str], name: str) -> Iterator[Record]:
    """Yield each record: its block as "xyz", and the numbers of QM9's comment line by name.

    A first line that is no number of atoms ends the file: where the next record begins is unknown.
    """
    stream = iter(lines)
    for first in stream:
        if not first.strip():
            continue
        count = _count(first.strip())
        if count is None:
            problem = ("syntax", f"record begins with {first.strip()[:20]!r}, no number of atoms")
            yield Record({XYZ: ""}, problem)
            return
        comment = next(stream, "").strip()
        atoms = list(islice(stream, count))
        if len(atoms) < count:
            problem = ("syntax", f"file ends after {len(atoms)} of a record's {count} atoms")
            yield Record({XYZ: xyz_block(comment, atoms)}, problem)
            return
        if not comment.startswith("gdb "):
            yield Record({XYZ: xyz_block(comment, atoms)})
            continue
        next(stream, "")  # frequencies
        smiles = next(stream, "").split()
        next(stream, "")  # InChI
        yield _qm9_record(comment.split(), atoms, smiles)


def _count(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None


def xyz_block(comment: str, atoms: Iterable[str]) -> str:
    """Return the text of one geometry; `comment` is a SMILES and a name."""
    rows = [" ".join(atom.split()[:4]) for atom in atoms]
    return "\n".join([str(len(rows)), comment, *rows]) + "\n"


def _qm9_record(words: list[str], atoms: list[str], smiles: list[str]) -> Record:
    """Return the record of a file of QM9: the first of its two SMILES keeps the atoms' order."""
    numbers = words[2 + _CONSTANTS :]
    problem: Problem | None = None
    if len(numbers) != len(QM9_COLUMNS) or not smiles:
        problem = ("syntax", "record is not laid out as those of QM9: properties, atoms, SMILES")
    block = xyz_block(
        f"{smiles[0] if smiles else ''} gdb_{words[1] if len(words) > 1 else ''}",
        (atom.replace("*^", "e") for atom in atoms),  # as Mathematica writes an exponent
    )
    values = {n: x.replace("*^", "e") for n, x in zip(QM9_COLUMNS, numbers, strict=False)}
    return Record({XYZ: block, **values}, problem)
