"""ETKDGv3 for many molecules at once on an NVIDIA GPU, by nvMolKit (Apache-2.0).

Of its interface only what has limits matters here: it places molecules of `MOST_ATOMS` at most, all
fragments together, writes into the molecules it is given, and leaves some without a conformer and
without a word. What it leaves, RDKit embeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from collamo.chem.molecule import Molecule

#: Atoms, hydrogens included, that its start from distances takes.
MOST_ATOMS = 256


def place_on_gpu(molecules: Sequence[Molecule | None], seed: int) -> list[np.ndarray | None]:
    """Return the places [N,3] float64 Å of the atoms of each molecule, its hydrogens last.

    They are those of `Chem.AddHs`, before any force field. None for what is left to RDKit: what is
    None, has coordinates of its own, several fragments or too many atoms, and what nvMolKit found
    no finite geometry for.

    Raises
    ------
    ImportError, RuntimeError
        nvMolKit is not installed, or finds no GPU it can use.
    """
    from nvmolkit.embedMolecules import EmbedMolecules

    full = {i: Chem.AddHs(m.mol) for i, m in enumerate(molecules) if m is not None and _suits(m)}
    full = {i: mol for i, mol in full.items() if mol.GetNumAtoms() <= MOST_ATOMS}
    if full:
        parameters: Any = rdDistGeom.ETKDGv3()  # as in `conformer`: RDKit's stubs are wrong
        parameters.randomSeed = seed
        EmbedMolecules(list(full.values()), parameters, confsPerMolecule=1)
    return [_places(full[i]) if i in full else None for i in range(len(molecules))]


def _suits(molecule: Molecule) -> bool:
    mol = molecule.mol
    return mol.GetNumConformers() == 0 and len(Chem.GetMolFrags(mol)) == 1


def _places(full: Chem.Mol) -> np.ndarray | None:
    if full.GetNumConformers() == 0:
        return None
    places = full.GetConformer().GetPositions()
    # All atoms on one spot are none; a single atom is on the origin by right.
    spread = len(places) == 1 or bool(np.ptp(places, axis=0).any())
    return places if spread and np.isfinite(places).all() else None


def refusal() -> str | None:
    """Return why nvMolKit places no molecule in this process; None where it does.

    It is tried on methane, because only that finds out about the driver and the GPU. A process that
    has called it must not be forked.
    """
    try:
        (places,) = place_on_gpu([Molecule.from_smiles("C")], 0)
    except ImportError as error:
        return f"nvMolKit cannot be imported ({error})"
    except Exception as error:  # whatever CUDA has to say
        lines = str(error).splitlines() or [type(error).__name__]
        return f"nvMolKit finds no GPU it can use ({lines[0][:200]})"
    return None if places is not None else "nvMolKit gave methane no geometry"
