"""Molecules as people give them, made ready to be asked about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from collamo.chem.conformer_workers import embed_conformers
from collamo.chem.features import MoleculeFeatures, featurize, unknown_to_unimol
from collamo.chem.inputs import MoleculeInput, read_molecule
from collamo.chem.molecule import Molecule
from collamo.errors import MoleculeError


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


def reading(features: MoleculeFeatures, modalities: Sequence[str]) -> dict[str, Any]:
    """Return what a model that sees these modalities reads of a molecule, and where 3D comes from.

    Examples
    --------
    >>> (ethanol,) = molecule_features([read_molecule("CCO")])
    >>> reading(ethanol, ["1d", "3d"])["views"]
    ['1d', '3d']
    """
    conformer = features.conformer
    there = {"1d": features.selfies is not None, "3d": conformer.coordinates is not None}
    return {
        "smiles": features.smiles,
        "views": [view for view in modalities if there.get(view, True)],
        "conformer": {
            "method": conformer.method,
            "seed": conformer.seed,
            "converged": conformer.converged,
            "reason": conformer.reason,
        },
        "notes": notes(features) if "3d" in modalities else [],
    }
