"""Molecules from InChI."""

from __future__ import annotations

from rdkit import Chem

from collamo.chem.molecule import Molecule
from collamo.chem.rejection import RejectedMolecule, captured_log

MAX_INCHI_CHARACTERS = 10_000  # our choice: InChI's own reader is not meant for polymers


def is_inchi(text: str) -> bool:
    """Return whether a text is an InChI, which no SMILES is.

    >>> is_inchi("InChI=1S/CH4/h1H4"), is_inchi("CCO")
    (True, False)
    """
    return text.lstrip()[:6].lower() == "inchi="


def molecule_from_inchi(text: str) -> Molecule:
    """Read an InChI; its tautomer is the one that RDKit makes of it.

    Raises
    ------
    RejectedMolecule
        Over 10,000 characters, not an InChI, or what `Molecule.from_mol` refuses.

    Examples
    --------
    >>> molecule_from_inchi("InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3").canonical_smiles
    'CCO'
    """
    inchi = text.strip()
    if len(inchi) > MAX_INCHI_CHARACTERS:
        raise RejectedMolecule(
            "too_long",
            f"InChI {inchi[:50]!a}… has {len(inchi)} characters; the limit is "
            f"{MAX_INCHI_CHARACTERS}",
        )
    try:
        with captured_log():
            mol = Chem.MolFromInchi(inchi)
    except (RuntimeError, UnicodeEncodeError, ValueError):
        mol = None
    if mol is None or not mol.GetNumAtoms():
        raise RejectedMolecule(
            "syntax", f"InChI {inchi[:60]!a} cannot be read; fix it or drop the row"
        )
    return Molecule.from_mol(mol, text=text)
