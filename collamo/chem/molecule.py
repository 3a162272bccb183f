"""`Molecule`: what the user gave, read once; its RDKit Mol sets the atom order of 1D, 2D and 3D."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from rdkit import Chem

from collamo.chem.coordinates import FLAT, refused_coordinates
from collamo.chem.molblock import read_molblock, tagged_as_drawing
from collamo.chem.rejection import (
    RejectedMolecule,
    captured_log,
    character_name,
    one_line,
    reason_in,
    shown,
)

# Our choice: RDKit 2026.09 dies (SIGSEGV) writing a SMILES of 20,000 atoms and its embedding
# ignores its own time limit from 600 atoms on. The largest of 3,300 ChEBI-20 molecules has 383
# heavy atoms and 1,135 characters.
MAX_SMILES_CHARACTERS = 4_000
MAX_HEAVY_ATOMS = 512
# selfies.decoder is quadratic: 20,000 tokens take 2.9 s.
MAX_SELFIES_TOKENS = 4_096

_SELFIES_TEXT = re.compile(r"(\[[^\[\]\s]+\]\.?)+")
# Tokens that no SMILES has, or a bare carbon beside another token.
_SELFIES_ONLY = re.compile(r"\[[=#/\\-]{0,2}(Branch|Ring)[123]\]|\[[=#/\\]|\[C\]\.?\[|\]\.?\[C\]")
# A SMILES, white space, and its ChemAxon extension between bars; in a SMI file a name follows.
_SMI_LINE = re.compile(r"(\S+(?:\s+\|[^|]*\|)?)(.*)", flags=re.DOTALL)
_NOT_IN_A_MOLECULE = re.compile(r"[^!-~]")  # no printable ASCII, or white space
_CXSMILES = re.compile(r"(\S+)\s+(\|.*)", flags=re.DOTALL)
_HYDROGEN = Chem.MolFromSmarts("[#1]")
_BRANCH_OR_RING = re.compile(r"\[(?:[=#/\\-]{0,2})(Branch|Ring)([123])\]")


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
        conformer is here when the user gave one (Å). Atom maps (``[CH3:1]``) are dropped: they
        number atoms of a reaction and are no part of a molecule.
    text
        What the user gave.
    smiles
        A SMILES that parses to the same atoms in the same order; isomeric, not canonical.
    source_atoms
        For a mol block, RDKit Mol or CXSMILES: the index in the user's record (explicit hydrogens
        counted) of each atom of `mol`. None for SMILES and SELFIES, where atoms keep the order of
        the text.
    refused_coordinates
        Why the 3D coordinates of the record were not taken: no geometry at all (`coordinates`).
        None where they were, or none came.

    Examples
    --------
    >>> Molecule.from_smiles("OCC").canonical_smiles
    'CCO'
    """

    mol: Chem.Mol = field(repr=False, compare=False)
    text: str
    smiles: str
    source_atoms: tuple[int, ...] | None = None
    refused_coordinates: str | None = None

    @classmethod
    def from_smiles(cls, text: str) -> Molecule:
        """Read a SMILES; spaces around it are ignored.

        The extension of a CXSMILES (``CC |^1:0|``) is read with it, and refused where it stands for
        several molecules: stereo groups, variable or repeated parts.

        Raises
        ------
        RejectedMolecule
            Empty, over 4,000 characters, white space or control characters inside, not ASCII,
            not a SMILES (the message says why), over 512 atoms.
        """
        if isinstance(text, str) and (extended := _CXSMILES.fullmatch(text.strip())):
            return cls.from_mol(_mol_of_cxsmiles(*extended.groups()), text=text)
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
                f"SELFIES {shown(string)} is not a row of [tokens]; fix it or drop the row",
            )
        if string.count("[") > MAX_SELFIES_TOKENS:
            raise RejectedMolecule(
                "too_long",
                f"SELFIES {shown(string)} has {string.count('[')} tokens; "
                f"the limit is {MAX_SELFIES_TOKENS}",
            )
        try:
            smiles = selfies.decoder(string)
        except selfies.DecoderError as error:
            raise RejectedMolecule(
                "syntax",
                f"SELFIES {shown(string)} cannot be read: {one_line(error)}; "
                "fix it or drop the row",
            ) from None
        if not smiles:
            raise RejectedMolecule("empty", f"SELFIES {shown(string)} stands for no atoms")
        _checked_text(smiles, "SMILES", MAX_SMILES_CHARACTERS)
        return cls(mol=_mol_of_smiles(smiles), text=text, smiles=smiles)

    @classmethod
    def from_molblock(cls, text: str) -> Molecule:
        """Read a mol block (V2000 or V3000; of an SDF record, the part up to ``M  END``).

        3D coordinates are kept as the conformer (Å), those of the heavy atoms 1:1; explicit
        hydrogens go, with their coordinates. Blank lines before the header are skipped.

        Raises
        ------
        RejectedMolecule
            Over 1,000,000 characters, not a mol block (with RDKit's reason and the line),
            impossible valence, over 512 heavy atoms.
        """
        molecule = cls.from_mol(read_molblock(text), text=text)
        drawing = tagged_as_drawing(text)
        if drawing == text or molecule.mol.GetNumConformers() or molecule.num_atoms == 1:
            return molecule
        if molecule.refused_coordinates == FLAT:  # its stereo is in its wedges
            molecule = cls.from_mol(read_molblock(drawing), text=text)
        # RDKit itself takes a flat record with wedges for a drawing, and says nothing.
        return replace(molecule, refused_coordinates=molecule.refused_coordinates or FLAT)

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
        drop_atom_maps(heavy)
        _keep_only_3d(heavy)
        refusal = refused_coordinates(mol, heavy)
        order, smiles = _written(heavy)
        source = [heavy.GetAtomWithIdx(i).GetIntProp("_source_atom") for i in order]
        heavy = Chem.RenumberAtoms(heavy, order)
        if refusal is not None:
            heavy.RemoveAllConformers()
        return cls(
            mol=heavy,
            text=smiles if text is None else text,
            smiles=smiles,
            source_atoms=tuple(source),
            refused_coordinates=refusal,
        )

    @property
    def num_atoms(self) -> int:
        """Atoms of `mol`; implicit hydrogens do not count."""
        return self.mol.GetNumAtoms()

    @cached_property
    def canonical_smiles(self) -> str:
        """RDKit's canonical isomeric SMILES: equal for equal molecules, atom maps or not."""
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


def has_hydrogen_atoms(mol: Chem.Mol) -> bool:
    """Return whether some hydrogens of the molecule are atoms of the graph.

    >>> [has_hydrogen_atoms(Chem.MolFromSmiles(smiles)) for smiles in ("CO", "C[2H]")]
    [False, True]
    """
    return mol.HasSubstructMatch(_HYDROGEN)


def without_isotopes_of_hydrogen(mol: Chem.Mol) -> Chem.Mol:
    """Return a copy in which deuterium and tritium are implicit hydrogens, as protium is.

    So are the hydrogens that RDKit keeps to write a double bond's configuration (``[H]/N=C/C``).
    What has no heavy atom to hang on stays: ``[2H][2H]``, ``[2H+]``.
    """
    if not has_hydrogen_atoms(mol):
        return mol
    options: Any = Chem.RemoveHsParameters()  # RDKit's stubs give options the object's own type
    options.removeIsotopes = options.removeDefiningBondStereo = options.removeInSGroups = True
    with captured_log():
        return Chem.RemoveHs(mol, options)


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


def split_smiles_line(line: str) -> tuple[str, str]:
    """Return (SMILES with its CXSMILES extension, what follows) of a line of a SMI file.

    >>> split_smiles_line("CC |^1:0| ethyl radical")
    ('CC |^1:0|', 'ethyl radical')
    """
    match = _SMI_LINE.fullmatch(line.strip())
    return (match[1], match[2].strip()) if match else ("", "")


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
            f"{kind} {shown(stripped)} has {len(stripped)} characters; the limit is {limit}",
        )
    odd = _NOT_IN_A_MOLECULE.search(stripped)
    if odd is None:
        return stripped
    character, position = odd[0], odd.start() + 1
    if character.isspace():
        raise RejectedMolecule(
            "white_space",
            f"{kind} {shown(stripped)} has white space at character {position}; "
            "give one molecule at a time",
        )
    raise RejectedMolecule(
        "character",
        f"{kind} {shown(stripped)} has {character_name(character)} at character "
        f"{position}; only printable ASCII is allowed",
    )


def _mol_of_smiles(smiles: str) -> Chem.Mol:
    try:
        with captured_log() as log:
            mol = Chem.MolFromSmiles(smiles)
    except (RuntimeError, ValueError) as error:
        raise RejectedMolecule(
            "syntax", f"SMILES {shown(smiles)}: {one_line(error)}; fix it or drop the row"
        ) from None
    if mol is None:
        code, reason = reason_in(log.messages)
        if ">" in smiles and "->" not in smiles and "<-" not in smiles:
            code, reason = "reaction", "is a reaction, not a molecule"
        raise RejectedMolecule(code, f"SMILES {shown(smiles)} {reason}; fix it or drop the row")
    _check_size(mol, f"SMILES {shown(smiles)}")
    if ":" in smiles:  # without one there is no map, and looking at every atom takes a while
        drop_atom_maps(mol)
    return mol


def _mol_of_cxsmiles(smiles: str, extension: str) -> Chem.Mol:
    """Read a SMILES with its extension; RDKit alone reads ``C[C@H](O)Cl |&1:1|`` as one isomer."""
    _mol_of_smiles(_checked_text(smiles, "SMILES", MAX_SMILES_CHARACTERS))
    whole = f"{smiles} {extension}"
    options: Any = Chem.SmilesParserParams()  # as above
    options.strictCXSMILES, options.parseName = True, False
    try:
        with captured_log():
            mol = Chem.MolFromSmiles(whole, options)
    except (RuntimeError, ValueError, KeyError, IndexError):
        mol = None
    if mol is None:
        raise RejectedMolecule(
            "cxsmiles",
            f"CXSMILES extension of {shown(whole)} cannot be read; fix it or leave it out",
        )
    groups = [group.GetGroupType() for group in mol.GetStereoGroups()]
    several = (
        any(group != Chem.StereoGroupType.STEREO_ABSOLUTE for group in groups)
        or any(atom.HasQuery() for atom in mol.GetAtoms())
        or Chem.GetMolSubstanceGroups(mol)
        or mol.HasProp("_molLinkNodes")
    )
    if several:
        raise RejectedMolecule(
            "cxsmiles",
            f"CXSMILES extension of {shown(whole)} makes it several molecules (stereo groups, "
            "variable or repeated parts); give one of them, without the extension",
        )
    return mol


def _check_size(mol: Chem.Mol, what: str) -> None:
    if mol.GetNumAtoms() == 0:
        raise RejectedMolecule("empty", f"{what} has no atoms")
    if mol.GetNumAtoms() > MAX_HEAVY_ATOMS:
        raise RejectedMolecule(
            "too_many_atoms",
            f"{what} has {mol.GetNumAtoms()} atoms; the limit is {MAX_HEAVY_ATOMS}",
        )


def _without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """Return a sanitised copy without the hydrogens that RDKit removes when it reads a SMILES."""
    copy = Chem.Mol(mol)
    for atom in copy.GetAtoms():
        atom.SetIntProp("_source_atom", atom.GetIdx())
    try:
        with captured_log() as log:
            copy = Chem.RemoveHs(copy)
    except (Chem.MolSanitizeException, RuntimeError, ValueError) as error:
        code, reason = reason_in(log.messages or str(error))
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
            "no_smiles", f"molecule {shown(smiles)} cannot be written as a SMILES and read back"
        )
    return order, smiles


def _keep_only_3d(mol: Chem.Mol) -> None:
    """Remove the drawings among the conformers, in place."""
    for conformer in list(mol.GetConformers()):
        if not conformer.Is3D():
            mol.RemoveConformer(conformer.GetId())


def drop_atom_maps(mol: Chem.Mol) -> None:
    """Drop the map numbers in place, and stereo that is there by them alone.

    ``[CH3:1][C@H](F)[CH3:2]`` is no chiral molecule.
    """
    mapped = [atom for atom in mol.GetAtoms() if atom.GetAtomMapNum()]
    for atom in mapped:
        atom.SetAtomMapNum(0)
    if mapped:
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)


class _NoSelfies(Exception):
    """Why a molecule has no SELFIES."""


def _encode_selfies(mol: Chem.Mol) -> SelfiesString:
    """Encode the molecule and say which atom each token is; `_NoSelfies` when it cannot be."""
    import selfies

    # Kekulised by RDKit, because selfies does its own and fails on some large ring systems.
    plain = Chem.Mol(mol)
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
    return f"selfies: {bond_line[1] if bond_line else one_line(error)}"


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


@lru_cache(maxsize=4096)
def _symbol(token: str) -> str:
    """Return the element of an atom token: ``[=13CH1]`` → ``C``."""
    match = re.fullmatch(r"\[[=#/\\-]?\d*([A-Z][a-z]?).*\]", token)
    if match and match[1] not in _ELEMENTS:  # [CH…] never reads as a two-letter element, [Hs] does
        return match[1][0]
    return match[1] if match else ""


_ELEMENTS = frozenset(Chem.GetPeriodicTable().GetElementSymbol(n) for n in range(1, 119))
