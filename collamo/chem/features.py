"""Atom and bond features with the integers of OGB 1.3.6, and the record that a shard row holds.

Schema: ogb.utils.features (MIT), https://github.com/snap-stanford/ogb. Values outside a column's
list take its last index, which OGB calls ``misc``. Bond directions, which OGB has not, are those of
pretrain-gnns (MIT), https://github.com/snap-stanford/pretrain-gnns, chem/loader.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from rdkit import Chem

from collamo.chem.conformer import Conformer
from collamo.chem.molecule import Molecule
from collamo.chem.rejection import captured_log

ATOM_FEATURES = (
    "atomic_number",
    "chirality",
    "degree",
    "formal_charge",
    "hydrogens",
    "radical_electrons",
    "hybridization",
    "is_aromatic",
    "is_in_ring",
)
ATOM_FEATURE_SIZES = (119, 5, 12, 12, 10, 6, 6, 2, 2)
BOND_FEATURES = ("bond_type", "stereo", "is_conjugated")
BOND_FEATURE_SIZES = (5, 6, 2)

#: Atomic numbers of the elements in Uni-Mol's dictionary, in the order of its tokens.
UNIMOL_ELEMENTS = {
    **{"C": 6, "N": 7, "O": 8, "S": 16, "H": 1, "Cl": 17, "F": 9, "Br": 35, "I": 53, "Si": 14},
    **{"P": 15, "B": 5, "Na": 11, "K": 19, "Al": 13, "Ca": 20, "Sn": 50, "As": 33, "Hg": 80},
    **{"Fe": 26, "Zn": 30, "Cr": 24, "Se": 34, "Gd": 64, "Au": 79, "Li": 3},
}

_CHIRALITY = {
    Chem.ChiralType.CHI_UNSPECIFIED: 0,
    Chem.ChiralType.CHI_TETRAHEDRAL_CW: 1,
    Chem.ChiralType.CHI_TETRAHEDRAL_CCW: 2,
    Chem.ChiralType.CHI_OTHER: 3,
}
_HYBRIDIZATION = {
    Chem.HybridizationType.SP: 0,
    Chem.HybridizationType.SP2: 1,
    Chem.HybridizationType.SP3: 2,
    Chem.HybridizationType.SP3D: 3,
    Chem.HybridizationType.SP3D2: 4,
}
_BOND_TYPE = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.DOUBLE: 1,
    Chem.BondType.TRIPLE: 2,
    Chem.BondType.AROMATIC: 3,
}
# OGB has no index for atropisomers and would raise; STEREOANY is the nearest in meaning.
_STEREO = {
    Chem.BondStereo.STEREONONE: 0,
    Chem.BondStereo.STEREOZ: 1,
    Chem.BondStereo.STEREOE: 2,
    Chem.BondStereo.STEREOCIS: 3,
    Chem.BondStereo.STEREOTRANS: 4,
    Chem.BondStereo.STEREOANY: 5,
}

#: Bonds beside a double bond of known configuration; all others are 0.
_DIRECTION = {Chem.BondDir.ENDUPRIGHT: 1, Chem.BondDir.ENDDOWNRIGHT: 2}


@dataclass(frozen=True)
class MoleculeFeatures:
    """What the encoders read of one molecule: numpy arrays and text, no RDKit. N atoms, E edges.

    Attributes
    ----------
    smiles
        `Molecule.smiles`: parsing it gives the atoms in this order.
    selfies
        SELFIES tokens; None = 1D is absent.
    atom_features
        uint8 ``[N, 9]``, columns `ATOM_FEATURES`, values below `ATOM_FEATURE_SIZES`.
    edge_index
        int32 ``[2, E]``, each bond as (i, j) then (j, i).
    edge_features
        uint8 ``[E, 3]``, columns `BOND_FEATURES`, values below `BOND_FEATURE_SIZES`.
    conformer
        Coordinates in Å with their provenance, or their absence with the reason.
    bond_directions
        uint8 ``[E]``: 1 up ("/"), 2 down ("\\"), else 0; see `bond_directions`.
    encoded
        "2d" or "3d" → ``[N, L, C]``: stored outputs of a frozen encoder, L levels of C channels.
    """

    smiles: str
    selfies: tuple[str, ...] | None
    atom_features: np.ndarray
    edge_index: np.ndarray
    edge_features: np.ndarray
    conformer: Conformer
    bond_directions: np.ndarray
    encoded: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_atoms(self) -> int:
        """Atoms of the molecule."""
        return len(self.atom_features)


def unknown_to_unimol(atom_features: np.ndarray) -> dict[str, int]:
    """Return element → atoms of those that Uni-Mol's dictionary lacks; it reads them as [UNK].

    ``[N, 9]``; atoms that are no element ("*") count as ``*``.
    """
    numbers = Counter(int(number) + 1 for number in atom_features[:, 0])
    known = set(UNIMOL_ELEMENTS.values())
    table = Chem.GetPeriodicTable()
    return {
        table.GetElementSymbol(number) if number <= 118 else "*": count
        for number, count in sorted(numbers.items())
        if number not in known
    }


def featurize(molecule: Molecule, conformer: Conformer) -> MoleculeFeatures:
    """Return the features of `molecule` with `conformer` (Å, same atom order).

    Raises
    ------
    ValueError
        The conformer has another number of atoms.
    """
    coordinates = conformer.coordinates
    if coordinates is not None and coordinates.shape != (molecule.num_atoms, 3):
        raise ValueError(
            f"conformer has shape {list(coordinates.shape)} for the {molecule.num_atoms} atoms of "
            f"{molecule.smiles!r}; embed this very molecule"
        )
    edge_index, edge_features = _edges(molecule.mol)
    return MoleculeFeatures(
        smiles=molecule.smiles,
        selfies=molecule.selfies.tokens if molecule.selfies else None,
        atom_features=np.array([_atom(a) for a in molecule.mol.GetAtoms()], dtype=np.uint8),
        edge_index=edge_index,
        edge_features=edge_features,
        conformer=conformer,
        bond_directions=_directions_as_written(molecule, edge_index),
    )


def _directions_as_written(molecule: Molecule, edge_index: np.ndarray) -> np.ndarray:
    if not {"/", "\\"} & set(molecule.smiles):
        return np.zeros(edge_index.shape[1], dtype=np.uint8)
    if molecule.source_atoms is None:
        return bond_directions(molecule.mol, edge_index)
    with captured_log():  # it warns of a bare proton
        return bond_directions(Chem.MolFromSmiles(molecule.smiles), edge_index)


def bond_directions(mol: Chem.Mol, edge_index: np.ndarray) -> np.ndarray:
    """Return the direction of each edge of ``[2,E]`` as uint8 ``[E]``: 1 up, 2 down, else 0.

    `mol` is what ``Chem.MolFromSmiles(features.smiles)`` gives, as in pretrain-gnns: a direction is
    how the SMILES writes a double bond's configuration, so ``F/C=C/F`` and ``F\\C=C\\F``, which are
    one molecule, differ. Both edges of a bond have the direction of the bond.
    """
    directions = np.zeros(edge_index.shape[1], dtype=np.uint8)
    for bond in mol.GetBonds():
        direction = _DIRECTION.get(bond.GetBondDir())
        if direction is not None:
            ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            directions[np.isin(edge_index, ends).all(0)] = direction
    return directions


def _atom(atom: Chem.Atom) -> tuple[int, ...]:
    number = atom.GetAtomicNum()
    return (
        number - 1 if 1 <= number <= 118 else 118,
        _CHIRALITY.get(atom.GetChiralTag(), 4),
        _capped(atom.GetTotalDegree(), 11),
        _capped(atom.GetFormalCharge() + 5, 11),
        _capped(atom.GetTotalNumHs(), 9),
        _capped(atom.GetNumRadicalElectrons(), 5),
        _HYBRIDIZATION.get(atom.GetHybridization(), 5),
        int(atom.GetIsAromatic()),
        int(atom.IsInRing()),
    )


def _capped(value: int, misc: int) -> int:
    return value if 0 <= value < misc else misc


def _edges(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray]:
    """Return ([2,E] int32, [E,3] uint8), both directions of each bond next to each other."""
    pairs, features = [], []
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        pairs += [(i, j), (j, i)]
        features += [_bond(bond)] * 2
    edge_index = np.array(pairs, dtype=np.int32).reshape(-1, 2).T
    return np.ascontiguousarray(edge_index), np.array(features, dtype=np.uint8).reshape(-1, 3)


def _bond(bond: Chem.Bond) -> tuple[int, int, int]:
    return (
        _BOND_TYPE.get(bond.GetBondType(), 4),
        _STEREO.get(bond.GetStereo(), 5),
        int(bond.GetIsConjugated()),
    )
