"""What people give as a molecule, read."""

from __future__ import annotations

import math
from numbers import Real

from rdkit import Chem

from collamo.chem.features import MoleculeFeatures
from collamo.chem.molecule import Molecule, parse_molecule
from collamo.chem.rejection import RejectedMolecule

#: SMILES, SELFIES or mol block; an RDKit Mol (its conformer is taken where it is 3D); or what
#: collamo made of one of them before.
MoleculeInput = str | Chem.Mol | Molecule | MoleculeFeatures


def read_molecule(molecule: MoleculeInput) -> Molecule | MoleculeFeatures:
    """Read text or an RDKit Mol; what was read before is returned as it is.

    Raises
    ------
    RejectedMolecule
        For what is no molecule, None and the NaN of an empty cell among it, or one outside the
        limits of `collamo.chem.molecule`.

    Examples
    --------
    >>> read_molecule(Chem.MolFromSmiles("OCC")).canonical_smiles
    'CCO'
    """
    if isinstance(molecule, Molecule | MoleculeFeatures):
        return molecule
    if isinstance(molecule, Chem.Mol):
        return Molecule.from_mol(molecule)
    if isinstance(molecule, str):
        return parse_molecule(molecule)
    if molecule is None or (isinstance(molecule, Real) and math.isnan(molecule)):
        raise RejectedMolecule(
            "empty",
            f"there is no molecule ({molecule}: an empty cell of a table?); give one or leave the "
            "row out",
        )
    raise RejectedMolecule(
        "type",
        "a molecule is SMILES, SELFIES or a mol block in a text, an RDKit Mol or a Molecule, "
        f"not {type(molecule).__name__}",
    )
