"""The real molecules that benchmarks run on."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import AllChem

PUBCHEM = Path(os.environ.get("COLLAMO_SHARED", Path(__file__).parents[2] / "shared"))
LARGEST = 100  # atoms


def read(count: int) -> tuple[str, list[Chem.Mol]]:
    """Return the name of the set and its first `count` molecules of 1 to 100 atoms.

    PubChem (``shared/data/pubchem_3k.jsonl`` beside the repository) where it is there, else the
    NCI molecules that come with RDKit.
    """
    pubchem = PUBCHEM / "data" / "pubchem_3k.jsonl"
    if pubchem.exists():
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
