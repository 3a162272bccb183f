"""Coordinates that came with a molecule: which of them are a geometry."""

from __future__ import annotations

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from collamo.chem.rejection import captured_log

COINCIDENT = "its atoms share a place"
FLAT = "a flat drawing tagged 3D"
NOT_FINITE = "not finite"
FAR = "its atoms are farther apart than 10,000 Å"

# Å. Our choice: the shortest bond, of H2, has 0.74; files have four decimals.
SAME_PLACE = 0.1
FLATNESS = 1e-3
# Å. Our choice: no molecule of a file of small ones is that long; a slipped column or exponent is.
FARTHEST = 1e4
# Å, RMS by which bonds and 1,3-distances of a planar geometry may miss RDKit's bounds. Our choice:
# of 385 planar geometries in GDB and PubChem records it refuses 16, all of them of radicals; of
# 2,184 drawings of the same molecules it keeps 50, small ones whose drawing is near their geometry.
DRAWN = 0.10


def refused_coordinates(mol: Chem.Mol, heavy: Chem.Mol) -> str | None:
    """Return why the 3D coordinates of a record are no geometry; None where they are or none came.

    A planar molecule is flat in earnest: what is flat is a drawing where a saturated atom has its
    neighbours in one plane, or where the distances are not those of such bonds.

    Parameters
    ----------
    mol
        The record with all its atoms.
    heavy
        The same molecule, sanitised, without hydrogens; its conformers are 3D.
    """
    if heavy.GetNumConformers() == 0:
        return None
    positions = heavy.GetConformer().GetPositions()
    if not np.isfinite(positions).all():
        return NOT_FINITE
    if (np.ptp(positions, axis=0) > FARTHEST).any():
        return FAR
    if _coincide(positions):
        return COINCIDENT
    whole = mol.GetConformer(heavy.GetConformer().GetId())
    height = whole.GetPositions()[:, 2]
    flat = len(height) > 1 and np.ptp(height) < FLATNESS
    return FLAT if flat and _is_drawn(mol, whole.GetPositions()) else None


def _coincide(positions: np.ndarray) -> bool:
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)  # [N, N]
    return bool((distance[np.triu_indices(len(positions), 1)] < SAME_PLACE).any())


def _is_drawn(mol: Chem.Mol, positions: np.ndarray) -> bool:
    """Return whether the flat `positions` [N,3] cannot be those of the molecule."""
    mol = Chem.Mol(mol)
    try:
        with captured_log():
            Chem.SanitizeMol(mol)
            if any(_saturated(atom) and atom.GetDegree() > 2 for atom in mol.GetAtoms()):
                return True
            # Upper triangle: upper bounds. Bonds and 1,3-distances need no smoothing.
            bounds = rdDistGeom.GetMoleculeBoundsMatrix(mol, doTriangleSmoothing=False)
    except (RuntimeError, ValueError):  # no bounds for some metals: nothing to compare with
        return False
    bonds_between = Chem.GetDistanceMatrix(mol)
    i, j = np.where(np.triu((bonds_between > 0) & (bonds_between <= 2)))
    if not len(i):
        return False
    distance = np.linalg.norm(positions[i] - positions[j], axis=-1)
    miss = np.maximum(0, np.maximum(distance - bounds[i, j], bounds[j, i] - distance))
    return bool(np.sqrt((miss**2).mean()) > DRAWN)


def _saturated(atom: Chem.Atom) -> bool:
    return atom.GetHybridization() == Chem.HybridizationType.SP3 and atom.GetAtomicNum() in (6, 14)
