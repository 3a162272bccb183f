"""Conformers: where they come from, and a marked absence when there is none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from rdkit.ForceField.rdForceField import ForceField

from collamo.chem.minimiser import minimise
from collamo.chem.molecule import Molecule
from collamo.chem.rejection import captured_log

# Our choice, measured on 150 NCI molecules against the same minimisation run to its end: mean error
# of a heavy-atom distance 0.18 Å after ETKDG alone, 0.054 Å after 100 steps (11 ms), 0.014 Å after
# 200 (17 ms, RDKit's default), 0.0004 Å after 500 (22 ms). 0.014 Å is far below the width of any
# Gaussian in Φ3d.
FORCE_FIELD_STEPS = 200
# Our choice: atoms, hydrogens included, from which `minimiser` takes the place of RDKit's own. 200
# steps then end lower and take less time. Above the long run (median), PubChem molecules: 7 of 160
# atoms and more 17 instead of 44 kcal/mol in 0.4 times the time; 14 of 110 to 160 atoms 12 instead
# of 19 in half the time; 10 of 70 to 110 atoms 7.5 instead of 8.1 in 0.6 times.
LARGE = 70
# Our choice: the largest force [kcal/mol/Å] on a coordinate of a large molecule that has converged.
FORCE_TOLERANCE = 0.01
# Our choice: starts from embedded distances (RDKit: ten per atom). Of 300 PubChem molecules 246
# embed within 30; the other 54 need hundreds or never do, and took five sixths of the time.
DISTANCE_STARTS = 30
# Our choice: MMFF minimises afterwards, so ETKDG's own minimiser may stop at a looser force
# (kcal/mol/Å) than its default 1e-3; 10 % less time, as many successes.
DISTANCE_FORCE_TOLERANCE = 0.0135
# Our choice: after those, starts from random coordinates. They lie further off, and a minimiser
# that stops early leaves a geometry that RDKit refuses: at 0.0135 three of the 54 got none in 50
# starts; at 0.005 all embed, the worst at the eighth. Counted, not timed, so that a busy machine
# finds the same.
RANDOM_STARTS = 20
RANDOM_FORCE_TOLERANCE = 0.005
# Å between fragments before they are minimised: about the contact distance of two carbons.
FRAGMENT_GAP = 3.5
OUT_OF_MEMORY = "ran out of memory"


@dataclass(frozen=True)
class Conformer:
    """One geometry of a molecule, or its absence.

    Attributes
    ----------
    coordinates
        float32 ``[N, 3]`` in Å, atom order of `Molecule.mol`; None = absent, never zeros or 2D.
    method
        ``"etkdgv3+mmff"``, ``"etkdgv3+uff"`` (MMFF has no parameters), ``"etkdgv3"`` (neither has),
        the same with ``nvmolkit`` for ``etkdgv3`` (ETKDGv3 on a GPU, `gpu_conformers`),
        ``"given"``, how the source computed it (``"b3lyp/6-31g(2df,p)"``) or ``"none"``.
    seed
        Of the embedding; None where nothing was embedded.
    converged
        Whether the force field converged within its steps; None where none ran.
    reason
        Why coordinates are absent, or why those of the record were not taken; None otherwise.
    """

    coordinates: np.ndarray | None
    method: str
    seed: int | None = None
    converged: bool | None = None
    reason: str | None = None


def absent_conformer(reason: str, seed: int | None = None) -> Conformer:
    """Return the marked absence of a conformer."""
    return Conformer(coordinates=None, method="none", seed=seed, reason=reason)


def given_conformer(molecule: Molecule) -> Conformer | None:
    """Return the 3D coordinates that came with the molecule (an SDF record), or None."""
    if molecule.mol.GetNumConformers() == 0:
        return None
    return _with_coordinates(molecule.mol.GetConformer().GetPositions(), "given", None, None)


def embed_conformer(
    molecule: Molecule,
    seed: int = 0,
    steps: int = FORCE_FIELD_STEPS,
    large_steps: int | None = None,
    start: np.ndarray | None = None,
) -> Conformer:
    """Return a conformer: the given one, else ETKDGv3 + MMFF (UFF where MMFF has no parameters).

    The force field takes at most `steps`, of a molecule of `LARGE` atoms or more `large_steps`
    (None: as many); without steps the geometry is ETKDG's. `start` [N,3] Å, hydrogens last, is a
    geometry that nvMolKit has embedded, which is minimised alone.

    Hydrogens are added for the embedding and removed after; atom i of the result is atom i of
    `molecule.mol`. Where the embedding fails it is tried again from random coordinates. RDKit puts
    every fragment of a salt on the origin; they are set side by side and minimised with their
    interaction. (Embedding them together takes RDKit over 30 s for 8 of the 4,991 NCI molecules.)
    Same molecule, seed and steps of the force field, same bits; RDKit takes seed 0 for 1.

    Runs in this process without a time limit (RDKit's own is not reliable: it was passed ten times
    over); `conformer_workers.embed_conformer_limited` has one.
    """
    own = given_conformer(molecule)
    if own is not None:
        return own
    conformer = _embedded(molecule, seed, steps, large_steps, start)
    refusal = refusal_note(molecule)
    if refusal is None or conformer.coordinates is None:
        return conformer
    return replace(conformer, reason=refusal)


def refusal_note(molecule: Molecule) -> str | None:
    """Return why the record's own coordinates were not taken; None where they were, or none came.

    >>> refusal_note(Molecule.from_smiles("CCO"))
    """
    refusal = molecule.refused_coordinates
    return None if refusal is None else f"the record's coordinates are no geometry: {refusal}"


def _embedded(
    molecule: Molecule,
    seed: int,
    steps: int,
    large_steps: int | None,
    start: np.ndarray | None,
) -> Conformer:
    try:
        with captured_log():
            full = Chem.AddHs(molecule.mol)
            if start is not None:
                conformer = Chem.Conformer(full.GetNumAtoms())
                conformer.SetPositions(start)
                full.AddConformer(conformer, assignId=True)
            elif not _embed(full, seed):
                return absent_conformer("ETKDGv3 found no geometry", seed)
            if large_steps is not None and full.GetNumAtoms() >= LARGE:
                steps = large_steps
            method, converged = _minimise(full, steps)
            if start is not None:
                method = method.replace("etkdgv3", "nvmolkit")
    except MemoryError:
        return absent_conformer(OUT_OF_MEMORY, seed)
    except (RuntimeError, ValueError) as error:
        # e.g. "bad lower bound" for a mercury complex in NCI
        cause = str(error).split("Violation occurred")[0].replace("Invariant Violation", "")
        return absent_conformer(f"RDKit: {' '.join(cause.split())[:120]}", seed)
    positions = full.GetConformer().GetPositions()[: molecule.num_atoms]
    return _with_coordinates(positions, method, seed, converged)


def _with_coordinates(
    positions: np.ndarray, method: str, seed: int | None, converged: bool | None
) -> Conformer:
    coordinates = np.ascontiguousarray(positions, dtype=np.float32)
    if not np.isfinite(coordinates).all():
        return absent_conformer(f"{method} gave coordinates that are not finite", seed)
    return Conformer(coordinates, method, seed, converged)


def _embed(full: Chem.Mol, seed: int) -> bool:
    """Embed in place with ETKDGv3, a second time from random coordinates; True on success."""
    parameters: Any = rdDistGeom.ETKDGv3()  # RDKit's stubs give every option the object's own type
    parameters.randomSeed = seed
    for random_start, starts, tolerance in (
        (False, DISTANCE_STARTS, DISTANCE_FORCE_TOLERANCE),
        (True, RANDOM_STARTS, RANDOM_FORCE_TOLERANCE),
    ):
        parameters.useRandomCoords, parameters.maxIterations = random_start, starts
        parameters.optimizerForceTol = tolerance
        if rdDistGeom.EmbedMolecule(full, parameters) == 0:
            _spread(full)
            return True
    return False


def _spread(full: Chem.Mol) -> None:
    """Put the fragments in a row along x, in place, `FRAGMENT_GAP` between them."""
    fragments = Chem.GetMolFrags(full)
    if len(fragments) == 1:
        return
    conformer = full.GetConformer()
    positions = conformer.GetPositions()
    edge = 0.0
    for atoms in map(list, fragments):
        positions[atoms, 0] += edge - positions[atoms, 0].min()
        edge = positions[atoms, 0].max() + FRAGMENT_GAP
    conformer.SetPositions(positions)


def _minimise(full: Chem.Mol, steps: int) -> tuple[str, bool | None]:
    """Minimise in place; return (method, converged)."""
    field: ForceField | None = None
    method = "etkdgv3"
    if not steps:
        return method, None
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(full):
        method = "etkdgv3+mmff"
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(full)
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(
            full, properties, ignoreInterfragInteractions=False
        )
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(full):
        method = "etkdgv3+uff"
        field = rdForceFieldHelpers.UFFGetMoleculeForceField(
            full, ignoreInterfragInteractions=False
        )
    if field is None:
        return "etkdgv3", None
    field.Initialize()
    if full.GetNumAtoms() < LARGE:
        return method, field.Minimize(maxIts=steps) == 0
    conformer = full.GetConformer()
    positions, converged = minimise(
        field.CalcEnergy,
        field.CalcGrad,
        conformer.GetPositions().ravel(),
        steps,
        FORCE_TOLERANCE,
    )
    conformer.SetPositions(positions.reshape(-1, 3))
    return method, converged
