"""XYZ: a SMILES and the place of each atom, read where the two are one molecule.

The format has no bonds. They come from a SMILES in the comment line, whose heavy atoms stand in the
order of the file's; hydrogens stand anywhere and belong to the nearest heavy atom.
"""

from __future__ import annotations

import numpy as np
from rdkit import Chem
from rdkit.Geometry import Point3D

from collamo.chem.molecule import Molecule
from collamo.chem.rejection import RejectedMolecule, captured_log, shown

# In sums of two covalent radii. Our choice, measured on 8,000 molecules of QM9: no bond is longer
# than 1.15 of them, and no two heavy atoms without one are nearer than 1.16 (in cages).
LONGEST_BOND = 1.3
NEAREST_CONTACT = 1.1


def molecule_from_xyz(text: str) -> Molecule:
    """Read an XYZ block: the number of atoms, ``SMILES name``, and a line ``C x y z`` an atom [Å].

    Raises
    ------
    RejectedMolecule
        For what is no such block, or no such SMILES; and where SMILES and geometry disagree:
        ``geometry_elements`` (other heavy atoms, or in another order), ``geometry_hydrogens``,
        ``geometry_bonds`` (one is broken, or not in the SMILES), ``geometry_stereo``.

    Examples
    --------
    >>> water = "3\\nO water\\nO 0 0 0.12\\nH 0 0.76 -0.47\\nH 0 -0.76 -0.47\\n"
    >>> molecule_from_xyz(water).mol.GetNumConformers()
    1
    """
    smiles, symbols, places = _parsed(text)
    mol = Chem.Mol(Molecule.from_smiles(smiles).mol)
    heavy = np.array([symbol != "H" for symbol in symbols], dtype=bool)
    if [s for s, is_heavy in zip(symbols, heavy, strict=True) if is_heavy] != _symbols(mol):
        raise _disagreement(
            "elements", smiles, "has other heavy atoms than the geometry, or in another order"
        )
    _check_hydrogens(mol, smiles, places[heavy], places[~heavy])
    _check_bonds(mol, smiles, places[heavy])
    return Molecule.from_mol(_with_places(mol, smiles, places[heavy]), text=text)


def _parsed(text: str) -> tuple[str, list[str], np.ndarray]:
    """Return (SMILES, element of each atom, places float64 [N,3])."""
    count, _, rest = text.strip("\n").partition("\n")
    comment, _, atoms = rest.partition("\n")
    words = comment.split()
    if not words:
        raise RejectedMolecule(
            "no_smiles",
            "XYZ block has no SMILES in its comment line, and no bonds; write one there",
        )
    try:
        rows = [line.split() for line in atoms.splitlines() if line.strip()]
        symbols = [row[0] for row in rows]
        places = np.array([[float(number) for number in row[1:4]] for row in rows])
        complete = len(rows) == int(count) and places.shape == (len(rows), 3)
        complete = complete and bool(np.isfinite(places).all())
    except (ValueError, IndexError):
        complete = False
    if not complete:
        raise RejectedMolecule(
            "syntax",
            f"XYZ block of {shown(words[0])} is not {count.strip()[:20]} lines of an element and "
            "three finite numbers; fix it or drop the record",
        )
    return words[0], symbols, places


def _symbols(mol: Chem.Mol) -> list[str]:
    return [atom.GetSymbol() for atom in mol.GetAtoms()]


def _check_hydrogens(mol: Chem.Mol, smiles: str, heavy: np.ndarray, hydrogens: np.ndarray) -> None:
    """Raise unless each heavy atom is nearest to as many hydrogens as the SMILES gives it."""
    distance = np.linalg.norm(hydrogens[:, None] - heavy[None], axis=-1)  # [H, N]
    nearest = distance.argmin(1) if len(heavy) else np.zeros(0, dtype=int)
    counts = np.bincount(nearest, minlength=len(heavy))
    for atom, count in zip(mol.GetAtoms(), counts, strict=True):
        if atom.GetTotalNumHs() != count:
            raise _disagreement(
                "hydrogens",
                smiles,
                f"has {atom.GetTotalNumHs()} hydrogens at atom {atom.GetIdx()} "
                f"({atom.GetSymbol()}), the geometry {count}",
            )


def _check_bonds(mol: Chem.Mol, smiles: str, places: np.ndarray) -> None:
    """Raise where a bond is too long for one, or atoms without one are too near."""
    table = Chem.GetPeriodicTable()
    radius = np.array([table.GetRcovalent(atom.GetAtomicNum()) for atom in mol.GetAtoms()])
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    stretch = distance / (radius[:, None] + radius[None])  # [N, N]
    bonded = Chem.GetAdjacencyMatrix(mol).astype(bool)
    apart = ~bonded & ~np.eye(len(radius), dtype=bool)
    wrong = (bonded & (stretch > LONGEST_BOND)) | (apart & (stretch < NEAREST_CONTACT))
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        has = "has a" if bonded[i, j] else "has no"
        raise _disagreement(
            "bonds",
            smiles,
            f"{has} bond between atoms {i} and {j}, which are {distance[i, j]:.2f} Å apart",
        )


def _with_places(mol: Chem.Mol, smiles: str, places: np.ndarray) -> Chem.Mol:
    """Return the molecule with its conformer, and the stereo of that where the SMILES has none."""
    conformer = Chem.Conformer(len(places))
    for atom, place in enumerate(places.tolist()):
        conformer.SetAtomPosition(atom, Point3D(*place))
    conformer.Set3D(True)
    written = _stereo(mol)
    mol.AddConformer(conformer)
    with captured_log():
        Chem.AssignStereochemistryFrom3D(mol)
    geometric = _stereo(mol)
    if any(geometric.get(place) != label for place, label in written.items()):
        raise _disagreement("stereo", smiles, "has another stereo isomer than the geometry")
    return mol


def _stereo(mol: Chem.Mol) -> dict[tuple[str, int], object]:
    """Return the label of each stereo centre and double bond that has one."""
    centres = Chem.FindMolChiralCenters(mol, useLegacyImplementation=False)
    labels: dict[tuple[str, int], object] = {("atom", place): label for place, label in centres}
    for bond in mol.GetBonds():
        if bond.GetStereo() not in (Chem.BondStereo.STEREONONE, Chem.BondStereo.STEREOANY):
            labels["bond", bond.GetIdx()] = bond.GetStereo()
    return labels


def _disagreement(kind: str, smiles: str, reason: str) -> RejectedMolecule:
    return RejectedMolecule(f"geometry_{kind}", f"SMILES {shown(smiles)} {reason}; drop the record")
