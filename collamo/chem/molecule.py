"""`Molecule`: what the user gave, read once; its RDKit Mol sets the atom order of 1D, 2D and 3D."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from rdkit import Chem, rdBase

from collamo.errors import MoleculeError

# Our choice: RDKit 2026.09 dies (SIGSEGV) writing a SMILES of 20,000 atoms and its embedding
# ignores its own time limit from 600 atoms on. The largest of 3,300 ChEBI-20 molecules has 383
# heavy atoms and 1,135 characters.
MAX_SMILES_CHARACTERS = 4_000
MAX_HEAVY_ATOMS = 512
# selfies.decoder is quadratic: 20,000 tokens take 2.9 s.
MAX_SELFIES_TOKENS = 4_096
MAX_MOLBLOCK_CHARACTERS = 1_000_000

_SELFIES_TEXT = re.compile(r"(\[[^\[\]\s]+\]\.?)+")
# Tokens that no SMILES has, or a bare carbon beside another token.
_SELFIES_ONLY = re.compile(r"\[[=#/\\-]{0,2}(Branch|Ring)[123]\]|\[[=#/\\]|\[C\]\.?\[|\]\.?\[C\]")
_BRANCH_OR_RING = re.compile(r"\[(?:[=#/\\-]{0,2})(Branch|Ring)([123])\]")


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


class SelfiesString(NamedTuple):
    """A SELFIES string in tokens.

    Attributes
    ----------
    tokens
        The tokens in order, ``"."`` between fragments included.
    atoms
        The atom index (in `Molecule.mol`) of each token; -1 for branch, ring, length and dot
        tokens.
    """

    tokens: tuple[str, ...]
    atoms: tuple[int, ...]


@dataclass(frozen=True)
class Molecule:
    """One molecule. Make it with `parse_molecule` or a ``from_…`` method.

    Attributes
    ----------
    mol
        The heavy-atom RDKit Mol. Hydrogens that RDKit keeps as atoms ([2H], [H][H], [H+]) stay.
        Its atom order is the order of the SELFIES tokens' atoms, the graph and the conformer. A 3D
        conformer is here when the user gave one (Å).
    text
        What the user gave.
    smiles
        A SMILES that parses to the same atoms in the same order; isomeric, not canonical.
    source_atoms
        For a mol block or RDKit Mol: the index in the user's record (explicit hydrogens counted)
        of each atom of `mol`. None for SMILES and SELFIES, where atoms keep the order of the text.

    Examples
    --------
    >>> Molecule.from_smiles("OCC").canonical_smiles
    'CCO'
    """

    mol: Chem.Mol = field(repr=False, compare=False)
    text: str
    smiles: str
    source_atoms: tuple[int, ...] | None = None

    @classmethod
    def from_smiles(cls, text: str) -> Molecule:
        """Read a SMILES; spaces around it are ignored.

        Raises
        ------
        RejectedMolecule
            Empty, over 4,000 characters, white space or control characters inside, not ASCII,
            not a SMILES (the message says why), over 512 atoms.
        """
        smiles = _checked_text(text, "SMILES", MAX_SMILES_CHARACTERS)
        return cls(mol=_mol_of_smiles(smiles), text=text, smiles=smiles)

    @classmethod
    def from_selfies(cls, text: str) -> Molecule:
        """Read a SELFIES string.

        Raises
        ------
        RejectedMolecule
            As `from_smiles`, and over 4,096 tokens.
        """
        import selfies

        string = _checked_text(text, "SELFIES", 100 * MAX_SELFIES_TOKENS)
        if not _SELFIES_TEXT.fullmatch(string):
            raise RejectedMolecule(
                "syntax",
                f"SELFIES {_show(string)} is not a row of [tokens]; fix it or drop the row",
            )
        if string.count("[") > MAX_SELFIES_TOKENS:
            raise RejectedMolecule(
                "too_long",
                f"SELFIES {_show(string)} has {string.count('[')} tokens; "
                f"the limit is {MAX_SELFIES_TOKENS}",
            )
        try:
            smiles = selfies.decoder(string)
        except selfies.DecoderError as error:
            raise RejectedMolecule(
                "syntax",
                f"SELFIES {_show(string)} cannot be read: {_one_line(error)}; "
                "fix it or drop the row",
            ) from None
        if not smiles:
            raise RejectedMolecule("empty", f"SELFIES {_show(string)} stands for no atoms")
        _checked_text(smiles, "SMILES", MAX_SMILES_CHARACTERS)
        return cls(mol=_mol_of_smiles(smiles), text=text, smiles=smiles)

    @classmethod
    def from_molblock(cls, text: str) -> Molecule:
        """Read a mol block (V2000 or V3000; of an SDF record, the part up to ``M  END``).

        3D coordinates are kept as the conformer (Å), those of the heavy atoms 1:1; explicit
        hydrogens go, with their coordinates.

        Raises
        ------
        RejectedMolecule
            Over 1,000,000 characters, not a mol block, impossible valence, over 512 heavy atoms.
        """
        if len(text) > MAX_MOLBLOCK_CHARACTERS:
            raise RejectedMolecule(
                "too_long",
                f"mol block has {len(text)} characters; the limit is {MAX_MOLBLOCK_CHARACTERS}",
            )
        if not text.strip():
            raise RejectedMolecule("empty", "mol block is empty")
        try:
            with captured_log() as log:
                mol = Chem.MolFromMolBlock(text, removeHs=False)
        except (RuntimeError, UnicodeEncodeError, ValueError) as error:
            raise RejectedMolecule("syntax", f"mol block: {_one_line(error)}") from None
        if mol is None:
            code, reason = _why(log.messages)
            raise RejectedMolecule(code, f"mol block {reason}; fix it or drop the record")
        return cls.from_mol(mol, text=text)

    @classmethod
    def from_mol(cls, mol: Chem.Mol, text: str | None = None) -> Molecule:
        """Take an RDKit Mol; it is copied, sanitised and loses its explicit hydrogens.

        Atoms are put in the order in which its SMILES writes them (`source_atoms` says where each
        came from), so that the SMILES alone gives the same order again.

        Raises
        ------
        RejectedMolecule
            No atoms, impossible valence, over 512 heavy atoms, or a Mol that no SMILES describes.
        """
        heavy = _without_hydrogens(mol)
        order, smiles = _written(heavy)
        source = [heavy.GetAtomWithIdx(i).GetIntProp("_source_atom") for i in order]
        heavy = Chem.RenumberAtoms(heavy, order)
        _keep_only_3d(heavy)
        return cls(
            mol=heavy,
            text=smiles if text is None else text,
            smiles=smiles,
            source_atoms=tuple(source),
        )

    @property
    def num_atoms(self) -> int:
        """Atoms of `mol`; implicit hydrogens do not count."""
        return self.mol.GetNumAtoms()

    @cached_property
    def canonical_smiles(self) -> str:
        """RDKit's canonical isomeric SMILES: equal for equal molecules."""
        return Chem.MolToSmiles(self.mol)

    @cached_property
    def _selfies(self) -> tuple[SelfiesString | None, str | None]:
        try:
            return _encode_selfies(self.mol), None
        except _NoSelfies as error:
            return None, str(error)

    @property
    def selfies(self) -> SelfiesString | None:
        """The SELFIES of this molecule in this atom order; None when it has none."""
        return self._selfies[0]

    @property
    def selfies_reason(self) -> str | None:
        """Why there is no SELFIES; None when there is one."""
        return self._selfies[1]


def parse_molecule(text: str) -> Molecule:
    """Read a SMILES, a SELFIES or a mol block, whichever `text` is.

    More than one line with ``M  END``, ``V2000`` or ``V3000`` is a mol block. A text of bracketed
    tokens only is a SELFIES when it has a token that SMILES has not (``[=C]``, ``[Branch1]``,
    ``[Ring1]``) or has ``[C]`` beside another token; ``[Na+].[Cl-]``, ``[H][H]`` and ``[O][O]`` are
    SMILES. `Molecule.from_smiles` and `Molecule.from_selfies` leave no doubt.

    Raises
    ------
    RejectedMolecule
        With one line that names the text and what is wrong with it.

    Examples
    --------
    >>> parse_molecule("[C][C][O]").canonical_smiles
    'CCO'
    """
    if not isinstance(text, str):
        raise RejectedMolecule("type", f"a molecule must be a text, not {type(text).__name__}")
    if "\n" in text and any(mark in text for mark in ("M  END", "V2000", "V3000")):
        return Molecule.from_molblock(text)
    return Molecule.from_selfies(text) if is_selfies(text) else Molecule.from_smiles(text)


def is_selfies(text: str) -> bool:
    """Return whether `text` is a SELFIES rather than a SMILES, by the rule of `parse_molecule`.

    >>> is_selfies("[C][C][O]"), is_selfies("[Na+].[Cl-]")
    (True, False)
    """
    stripped = text.strip()
    return bool(
        len(stripped) <= 100 * MAX_SELFIES_TOKENS
        and _SELFIES_TEXT.fullmatch(stripped)
        and _SELFIES_ONLY.search(stripped)
    )


def _checked_text(text: str, kind: str, limit: int) -> str:
    """Return `text` without the spaces around it, or raise: all that RDKit must never see."""
    if not isinstance(text, str):
        raise RejectedMolecule("type", f"{kind} must be a text, not {type(text).__name__}")
    stripped = text.strip()
    if not stripped:
        raise RejectedMolecule("empty", f"{kind} is empty")
    if len(stripped) > limit:
        raise RejectedMolecule(
            "too_long",
            f"{kind} {_show(stripped)} has {len(stripped)} characters; the limit is {limit}",
        )
    for position, character in enumerate(stripped, start=1):
        if character.isspace():
            raise RejectedMolecule(
                "white_space",
                f"{kind} {_show(stripped)} has white space at character {position}; "
                "give one molecule at a time",
            )
        if not character.isascii() or not character.isprintable():
            raise RejectedMolecule(
                "character",
                f"{kind} {_show(stripped)} has {_name(character)} at character {position}; "
                "only printable ASCII is allowed",
            )
    return stripped


def _mol_of_smiles(smiles: str) -> Chem.Mol:
    try:
        with captured_log() as log:
            mol = Chem.MolFromSmiles(smiles)
    except (RuntimeError, ValueError) as error:
        raise RejectedMolecule(
            "syntax", f"SMILES {_show(smiles)}: {_one_line(error)}; fix it or drop the row"
        ) from None
    if mol is None:
        code, reason = _why(log.messages)
        if ">" in smiles and "->" not in smiles and "<-" not in smiles:
            code, reason = "reaction", "is a reaction, not a molecule"
        raise RejectedMolecule(code, f"SMILES {_show(smiles)} {reason}; fix it or drop the row")
    _check_size(mol, f"SMILES {_show(smiles)}")
    return mol


def _check_size(mol: Chem.Mol, what: str) -> None:
    if mol.GetNumAtoms() == 0:
        raise RejectedMolecule("empty", f"{what} has no atoms")
    if mol.GetNumAtoms() > MAX_HEAVY_ATOMS:
        raise RejectedMolecule(
            "too_many_atoms",
            f"{what} has {mol.GetNumAtoms()} atoms; the limit is {MAX_HEAVY_ATOMS}",
        )


def _why(messages: str) -> tuple[str, str]:
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
    detail = _one_line(text)
    return "unreadable", f"cannot be read ({detail})" if detail else "cannot be read"


def _without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """Return a sanitised copy without the hydrogens that RDKit removes when it reads a SMILES."""
    copy = Chem.Mol(mol)
    for atom in copy.GetAtoms():
        atom.SetIntProp("_source_atom", atom.GetIdx())
    try:
        with captured_log() as log:
            copy = Chem.RemoveHs(copy)
    except (Chem.MolSanitizeException, RuntimeError, ValueError) as error:
        code, reason = _why(log.messages or str(error))
        raise RejectedMolecule(code, f"molecule {reason}; fix it or drop the record") from None
    _check_size(copy, "molecule")
    return copy


def _written(mol: Chem.Mol) -> tuple[list[int], str]:
    """Return the order in which RDKit writes the atoms, and the SMILES in that order."""
    try:
        with captured_log():
            smiles = Chem.MolToSmiles(mol, canonical=False)
            order = list(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
            again = Chem.MolFromSmiles(smiles) if len(smiles) <= MAX_SMILES_CHARACTERS else None
    except (RuntimeError, ValueError):
        again, smiles, order = None, "", []
    symbols = [mol.GetAtomWithIdx(i).GetAtomicNum() for i in order]
    if again is None or [atom.GetAtomicNum() for atom in again.GetAtoms()] != symbols:
        raise RejectedMolecule(
            "no_smiles", f"molecule {_show(smiles)} cannot be written as a SMILES and read back"
        )
    return order, smiles


def _keep_only_3d(mol: Chem.Mol) -> None:
    """Remove flat conformers: a drawing is not a geometry. One atom's position is a geometry."""
    for conformer in list(mol.GetConformers()):
        extent = abs(conformer.GetPositions()).max() if mol.GetNumAtoms() > 1 else 1.0
        if not conformer.Is3D() or extent == 0:
            mol.RemoveConformer(conformer.GetId())


class _NoSelfies(Exception):
    """Why a molecule has no SELFIES."""


def _encode_selfies(mol: Chem.Mol) -> SelfiesString:
    """Encode the molecule and say which atom each token is; `_NoSelfies` when it cannot be."""
    import selfies

    # Kekulised by RDKit, because selfies does its own and fails on some large ring systems; atom
    # map numbers are no chemistry and have no SELFIES.
    plain = Chem.Mol(mol)
    for atom in plain.GetAtoms():
        atom.SetAtomMapNum(0)
    try:
        with captured_log():
            smiles = Chem.MolToSmiles(plain, canonical=False, kekuleSmiles=True)
        order = list(plain.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
        tokens = tuple(selfies.split_selfies(selfies.encoder(smiles)))
    except (selfies.EncoderError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise _NoSelfies(_selfies_complaint(error)) from None
    positions = _atom_tokens(tokens)
    symbols = [mol.GetAtomWithIdx(i).GetSymbol() for i in order]
    if [_symbol(tokens[i]) for i in positions] != symbols:
        raise _NoSelfies("the tokens cannot be matched to the atoms")
    atoms = [-1] * len(tokens)
    for position, atom in zip(positions, order, strict=True):
        atoms[position] = atom
    return SelfiesString(tokens, tuple(atoms))


def _selfies_complaint(error: Exception) -> str:
    """Return the cause of an encoder error: for a valence it is the bracketed line."""
    bond_line = re.search(r"\[(\S+ with \d+ bond\(s\)[^\]]*)\]", str(error))
    return f"selfies: {bond_line[1] if bond_line else _one_line(error)}"


def _atom_tokens(tokens: tuple[str, ...]) -> list[int]:
    """Return the positions of the tokens that are atoms, in order.

    ``[Branch2]`` and ``[Ring2]`` are followed by two tokens that write a length, whatever they look
    like: in ``[C][Branch1][C][O][O]`` the second ``[C]`` is no carbon.
    """
    positions, lengths_left = [], 0
    for position, token in enumerate(tokens):
        if lengths_left:
            lengths_left -= 1
        elif match := _BRANCH_OR_RING.fullmatch(token):
            lengths_left = int(match[2])
        elif token != ".":
            positions.append(position)
    return positions


def _symbol(token: str) -> str:
    """Return the element of an atom token: ``[=13CH1]`` → ``C``."""
    match = re.fullmatch(r"\[[=#/\\-]?\d*([A-Z][a-z]?).*\]", token)
    if match and match[1] not in _ELEMENTS:  # [CH…] never reads as a two-letter element, [Hs] does
        return match[1][0]
    return match[1] if match else ""


_ELEMENTS = frozenset(Chem.GetPeriodicTable().GetElementSymbol(n) for n in range(1, 119))


def _show(text: str) -> str:
    """Return the text for a message: in quotes, ASCII only, at most 60 characters."""
    escaped = ascii(text).replace("\\\\", "\\")
    return escaped if len(text) <= 60 else ascii(text[:50])[:-1].replace("\\\\", "\\") + "…'"


def _name(character: str) -> str:
    code = f"U+{ord(character):04X}"
    name = unicodedata.name(character, "")
    return f"{code} ({name})" if name else code


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())[:200]
