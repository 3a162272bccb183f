"""Train, validation and test by Murcko scaffold."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from collamo.chem.rejection import captured_log

# Our choice: a scaffold with more molecules than a tenth of the test split goes to train, so that
# no single ring system decides the scores.
LARGEST_HELD_OUT_SHARE = 0.1


def scaffold_of(canonical_smiles: str) -> str:
    """Return the Murcko scaffold without stereo, "" for an acyclic molecule.

    A function of the canonical SMILES, so that equal molecules have equal scaffolds however they
    were written.
    """
    with captured_log():
        mol = Chem.MolFromSmiles(canonical_smiles)
        if mol is None:  # RDKit cannot read a few SMILES that it wrote; such a molecule is alone
            return canonical_smiles
        return MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False)


def split_by_scaffold(
    molecules: Sequence[tuple[str, str]], fractions: tuple[float, float, float], seed: int
) -> list[str]:
    """Return the split of each (canonical SMILES, scaffold).

    Molecules with one scaffold stay together; acyclic ones group by canonical SMILES. Large groups
    go to train; the others, in an order set by the seed, fill test, then validation, then train.

    Examples
    --------
    >>> split_by_scaffold([("CCO", ""), ("CCO", "")], (0.8, 0.1, 0.1), seed=0)
    ['train', 'train']
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for position, (canonical, scaffold) in enumerate(molecules):
        groups[scaffold or f"acyclic {canonical}"].append(position)
    total = len(molecules)
    quota = {"test": fractions[2] * total, "validation": fractions[1] * total}
    splits = ["train"] * total
    for key in sorted(groups, key=lambda key: _rank(key, seed)):
        for name, room in quota.items():
            size = len(groups[key])
            if size <= room and size <= max(1.0, LARGEST_HELD_OUT_SHARE * fractions[2] * total):
                quota[name] -= size
                for position in groups[key]:
                    splits[position] = name
                break
    return splits


def _rank(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {key}".encode()).digest()
