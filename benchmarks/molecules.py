"""The real molecules that benchmarks run on: through RDKit, or ready-made where it is absent."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

try:
    from rdkit import Chem, RDConfig, rdBase
    from rdkit.Chem import AllChem
except ImportError:
    Chem = None

STORED = Path(__file__).parent / "data" / "nci.npz"  # by make_molecules.py, which describes it
TEST_DATA = os.environ.get("COLLAMO_TEST_DATA")
LARGEST = 100  # atoms


class Batch(NamedTuple):
    """Molecules one after the other: edge_index [2, E], ptr [B + 1], coordinates [T, 3] in Å."""

    name: str
    edges: torch.Tensor
    ptr: torch.Tensor
    coordinates: torch.Tensor


def batch(count: int) -> Batch:
    """Return `count` molecules without hydrogens, or `stored` ones where RDKit is absent."""
    if Chem is None:
        return stored(count)
    name, mols = read(count)
    return Batch(name, *graphs(mols), coordinates(mols))


def stored(count: int) -> Batch:
    """Return `count` molecules of the file, hydrogens and all (mean 29.6 atoms, 100 at most).

    They are spread over the file, so that any number of them has the sizes of all.
    """
    with np.load(STORED, allow_pickle=False) as file:
        atoms, bonds = file["atoms"].astype(np.int64), file["bonds"].astype(np.int64)
        ends, thousandths = file["ends"].astype(np.int64), file["coordinates"]
    if count > len(atoms):
        raise ValueError(f"{count} molecules asked for; {STORED.name} has {len(atoms)}")
    chosen = np.linspace(0, len(atoms) - 1, count).round().astype(np.int64)
    first_atom, first_bond = np.cumsum(atoms) - atoms, np.cumsum(bonds) - bonds
    ptr = np.cumsum([0, *atoms[chosen]])
    columns, places = [np.zeros((2, 0), np.int64)], [np.zeros((0, 3), np.int16)]
    for number, molecule in enumerate(chosen):
        one_way = ends[first_bond[molecule] :][: bonds[molecule]].T + ptr[number]
        columns += [one_way, one_way[::-1]]
        places.append(thousandths[first_atom[molecule] :][: atoms[molecule]])
    x = torch.from_numpy(np.concatenate(places)).float() / 1000
    edges = torch.from_numpy(np.concatenate(columns, 1))
    return Batch("stored NCI", edges, torch.from_numpy(ptr), x)


def read(count: int) -> tuple[str, list[Chem.Mol]]:
    """Return the name of the set and its first `count` molecules of 1 to 100 atoms.

    PubChem (``data/pubchem_3k.jsonl`` in the folder that COLLAMO_TEST_DATA names) where that is
    set, else the NCI molecules that come with RDKit.
    """
    if TEST_DATA:
        pubchem = Path(TEST_DATA) / "data" / "pubchem_3k.jsonl"
        name, lines = "pubchem", (json.loads(line)["smiles"] for line in pubchem.open())
    else:
        nci = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
        name, lines = "nci", (line.split()[0] for line in nci.open())
    with rdBase.BlockLogs():
        mols = (Chem.MolFromSmiles(smiles) for smiles in lines)
        return name, list(islice((m for m in mols if m and 1 <= m.GetNumAtoms() <= LARGEST), count))


def edges(mol: Chem.Mol) -> np.ndarray:
    """Both directions of each bond, [2, E] int64."""
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    one_way = np.array(bonds, dtype=np.int64).reshape(-1, 2).T
    return np.concatenate([one_way, one_way[::-1]], axis=1)


def graphs(mols: list[Chem.Mol]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batch as (edge_index [2, E], ptr [B + 1])."""
    ptr = np.cumsum([0, *(mol.GetNumAtoms() for mol in mols)])
    index = np.concatenate([edges(mol) + start for mol, start in zip(mols, ptr, strict=False)], 1)
    return torch.from_numpy(index), torch.from_numpy(ptr)


def coordinates(mols: list[Chem.Mol]) -> torch.Tensor:
    """[T, 3] float32 Å of one conformer each; of the drawing where embedding fails."""
    positions = []
    with rdBase.BlockLogs():
        for mol in mols:
            if AllChem.EmbedMolecule(mol, randomSeed=7, maxAttempts=2) != 0:
                AllChem.Compute2DCoords(mol)
            positions.append(mol.GetConformer().GetPositions())
    return torch.from_numpy(np.concatenate(positions)).float()
