"""Make ``data/nci.npz``: graphs and conformers for benchmarks on machines without RDKit.

    python benchmarks/make_molecules.py

The first 5,000 molecules of the NCI set that comes with RDKit (BSD-3), with hydrogens, at most 100
atoms; one that RDKit cannot parse or embed is left out. Arrays of the file, without pickles:

    atoms        uint8 [B]    atoms of each molecule
    bonds        uint8 [B]    bonds of each molecule
    ends         uint8 [Σ bonds, 2]   the two atoms of each bond, numbered inside the molecule
    coordinates  int16 [Σ atoms, 3]   thousandths of an Å, one ETKDG conformer, seed 7

About a minute on one core: 4,740 molecules, mean 29.6 atoms, 0.84 MB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import AllChem

HERE = Path(__file__).parent
LARGEST = 100  # atoms
MOST_BONDS = 255


def embedded(smiles: str) -> Chem.Mol | None:
    """Return the molecule with hydrogens and a conformer, or None where there is none to have."""
    mol = Chem.MolFromSmiles(smiles)
    mol = None if mol is None else Chem.AddHs(mol)
    if mol is None or not 1 <= mol.GetNumAtoms() <= LARGEST or mol.GetNumBonds() > MOST_BONDS:
        return None
    try:
        failed = AllChem.EmbedMolecule(mol, randomSeed=7, maxAttempts=5)
    except RuntimeError:  # bounds that contradict each other
        return None
    return None if failed else mol


def main() -> None:
    """Write the file and say what is in it."""
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
    with rdBase.BlockLogs():
        mols = [mol for line in lines if (mol := embedded(line.split()[0])) is not None]
    ends = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for mol in mols for b in mol.GetBonds()]
    positions = np.concatenate([mol.GetConformer().GetPositions() for mol in mols])
    np.savez_compressed(
        HERE / "data" / "nci.npz",
        atoms=np.array([mol.GetNumAtoms() for mol in mols], np.uint8),
        bonds=np.array([mol.GetNumBonds() for mol in mols], np.uint8),
        ends=np.array(ends, np.uint8),
        coordinates=np.round(1000 * positions).astype(np.int16),
    )
    print(f"{len(mols)} of {len(lines)} molecules, mean {len(positions) / len(mols):.1f} atoms")


if __name__ == "__main__":
    main()
