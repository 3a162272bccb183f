"""Molecules as people give them, made ready to be asked about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rdkit import Chem

from collamo.chem.conformer_workers import embed_conformers
from collamo.chem.features import MoleculeFeatures, featurize, unknown_to_unimol
from collamo.chem.molecule import Molecule, parse_molecule
from collamo.errors import MoleculeError

#: SMILES, SELFIES or mol block; an RDKit Mol (its conformer is taken where it is 3D); or what
#: collamo made of one of them before.
MoleculeInput = str | Chem.Mol | Molecule | MoleculeFeatures


def read_molecule(molecule: MoleculeInput) -> Molecule | MoleculeFeatures:
    """Read text or an RDKit Mol; what was read before is returned as it is.

    Raises
    ------
    MoleculeError
        For what is no molecule, or one outside the limits of `collamo.chem.molecule`.

    Examples
    --------
    >>> read_molecule(Chem.MolFromSmiles("OCC")).canonical_smiles
    'CCO'
    """
    if isinstance(molecule, Molecule | MoleculeFeatures):
        return molecule
    if isinstance(molecule, Chem.Mol):
        return Molecule.from_mol(molecule)
    if not isinstance(molecule, str):
        raise MoleculeError(
            f"a molecule is SMILES, SELFIES or a mol block in a text, an RDKit Mol or a Molecule, "
            f"not {type(molecule).__name__}"
        )
    return parse_molecule(molecule)


def read_molecules(molecules: Sequence[MoleculeInput]) -> list[Molecule | MoleculeFeatures]:
    """Read each of a list.

    Raises
    ------
    MoleculeError
        One for the whole list, with the places of all that cannot be read.
    """
    read, errors = [], {}
    for place, molecule in enumerate(molecules):
        try:
            read.append(read_molecule(molecule))
        except MoleculeError as error:
            errors[place] = error
    if errors:
        first, *more = errors
        others = f" (as bad: {', '.join(f'molecules[{place}]' for place in more)})" if more else ""
        raise MoleculeError(f"molecules[{first}]: {errors[first]}{others}")
    return read


def molecule_features(
    molecules: Sequence[Molecule | MoleculeFeatures],
    *,
    seed: int = 0,
    seconds: float = 30.0,
    workers: int | None = None,
) -> Iterator[MoleculeFeatures]:
    """Yield what the encoders read of each molecule, in order; conformers are embedded as needed.

    A conformer that is not found within `seconds` is absent; `notes` says so. Arguments as for
    `collamo.chem.conformer_workers.embed_conformers`.
    """
    unembedded = [molecule for molecule in molecules if isinstance(molecule, Molecule)]
    conformers = embed_conformers(unembedded, seed, seconds, workers)
    for molecule in molecules:
        if isinstance(molecule, Molecule):
            yield featurize(molecule, next(conformers))
        else:
            yield molecule


def notes(features: MoleculeFeatures) -> list[str]:
    """Return what somebody who reads an answer about this molecule should know."""
    if features.conformer.coordinates is None:
        return [f"answered without 3D: {features.conformer.reason}"]
    elements = unknown_to_unimol(features.atom_features)
    return [f"the 3D encoder reads {element} as [UNK]" for element in elements]
