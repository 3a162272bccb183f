"""Exact counts of functional groups and rings.

The groups are the 39 of ``Data/FunctionalGroups.txt`` in the RDKit wheel (BSD-3), read when first
asked for. The counting rule:

- In each pattern the first atom is where the group is attached; it is not part of the group.
- A group is the set of its atoms without the attachment. Two matches with the same set are one
  group, so symmetric matches count once; a chlorine atom is one halogen whatever it sits on.
- Each pattern is counted on its own. Patterns overlap, as the names in chemistry do: acetic acid
  has one carboxylic acid group, one hydroxyl group and one double-bonded oxygen atom.
- Where nothing is attached there is no group: water has no hydroxyl group.
- Deuterium and tritium are hydrogen: CD3OD has one hydroxyl group, as methanol has.
- Anions count with their acids where the pattern says so (carboxylic and sulfonic acids).

Rings are RDKit's symmetrised smallest set (cubane has six).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rdkit import Chem, RDConfig
from rdkit.Chem import rdMolDescriptors

from collamo.chem.molecule import Molecule, without_isotopes_of_hydrogen
from collamo.chem.patterns import PatternSet
from collamo.errors import CollamoError

# RDKit's label → our name; every name ends in a word that takes a plural s.
GROUP_NAMES = {
    "-NC(=O)CH3": "acetamido group",
    "-C(=O)O": "carboxylic acid group",
    "-C(=O)OMe": "methyl ester group",
    "-C(=O)H": "aldehyde group",
    "-C(=O)N": "primary amide group",
    "-C(=O)CH3": "acetyl group",
    "-N=C=O": "isocyanate group",
    "-N=C=S": "isothiocyanate group",
    "-NO2": "nitro group",
    "-N=O": "nitroso group",
    "=N-O": "oxime group",
    "=NCH3": "N-methylimine group",
    "-N=CH2": "methyleneamino group",
    "-N=NCH3": "methyldiazenyl group",
    "-N=N": "diazenyl group",
    "-N#N": "diazonium group",
    "-C#N": "cyano group",
    "-SO2NH2": "primary sulfonamide group",
    "-NHSO2CH3": "methanesulfonamido group",
    "-SO3H": "sulfonic acid group",
    "-SO3CH3": "methyl sulfonate group",
    "-SO2CH3": "methylsulfonyl group",
    "-SO2Cl": "sulfonyl chloride group",
    "-SOCH3": "methylsulfinyl group",
    "-SCH3": "methylthio group",
    "-S": "thiol group",
    "=S": "double-bonded sulfur atom",
    "-X": "halogen atom",
    "-tBu": "tert-butyl group",
    "-CF3": "trifluoromethyl group",
    "-C#CH": "terminal alkyne group",
    "-cPropyl": "cyclopropyl group",
    "-OEt": "ethoxy group",
    "-OMe": "methoxy group",
    "-O": "hydroxyl group",
    "=O": "double-bonded oxygen atom",
    "-N": "amino group",
    "=N": "terminal imino group",
    "#N": "triple-bonded nitrogen atom",
}

# The file is meant to be read in order, larger groups first. Counted on its own, these patterns
# match what their label denies, so they are sharpened (ours):
_SHARPENED = {
    "-C(=O)H": "*-[C;D2;H1]=[O;D1]",  # the file asks for a methyl: the same as -C(=O)CH3
    "-N=O": "*-[N;R0;D2]=[O;D1]",  # without D2 every nitro group is one
    "=N-O": "[#6]=[N;R0]-[O;D1]",  # from an oxygen, every nitro group is one
    "-O": "*-[O;D1;H1]",  # without H1 every nitro group and carboxylate is one
    "-S": "*-[S;D1;H1]",  # without H1 every thiolate and thiocarboxylate is one
}

_RING_SIZES = (3, 4, 5, 6, 7, 8)
RING_NAMES = (
    "aromatic ring",
    "aliphatic ring",
    "heterocyclic ring",
    *(f"{size}-membered ring" for size in _RING_SIZES),
)
MOTIFS: tuple[str, ...] = (*GROUP_NAMES.values(), *RING_NAMES)


@dataclass(frozen=True)
class FunctionalGroup:
    """One pattern: RDKit's label, our name, the SMARTS that is matched, and its compiled query."""

    label: str
    name: str
    smarts: str
    query: Chem.Mol


@lru_cache(maxsize=1)
def functional_groups() -> tuple[FunctionalGroup, ...]:
    """Return the 39 functional groups in the order of RDKit's file."""
    path = Path(RDConfig.RDDataDir) / "FunctionalGroups.txt"
    patterns = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("//"):
            label, smarts = line.split("\t")[0].strip(), line.split("\t", 1)[1].split()[0]
            patterns[label] = _SHARPENED.get(label, smarts)
    if set(patterns) != set(GROUP_NAMES):
        odd = ", ".join(sorted(set(patterns) ^ set(GROUP_NAMES)))
        raise CollamoError(
            f"{path} differs from the 39 groups that collamo names: {odd}; "
            "use an RDKit whose file has them"
        )
    return tuple(
        FunctionalGroup(label, GROUP_NAMES[label], smarts, Chem.MolFromSmarts(smarts))
        for label, smarts in patterns.items()
    )


def count_motifs(molecule: Molecule) -> dict[str, int]:
    """Return the count of every motif in `MOTIFS`, zeros included, by the rule of this module.

    Examples
    --------
    >>> from collamo.chem.molecule import parse_molecule
    >>> counts = count_motifs(parse_molecule("OCC(O)C(=O)O"))
    >>> counts["hydroxyl group"], counts["carboxylic acid group"], counts["nitro group"]
    (3, 1, 0)
    """
    mol = without_isotopes_of_hydrogen(molecule.mol)
    groups = functional_groups()
    present = (groups[place] for place in _group_queries().matches(mol))
    counts = dict.fromkeys((group.name for group in groups), 0)
    counts |= {group.name: _count_group(mol, group.query) for group in present}
    return counts | _count_rings(mol)


@lru_cache(maxsize=1)
def _group_queries() -> PatternSet:
    return PatternSet(group.query for group in functional_groups())


def _count_group(mol: Chem.Mol, query: Chem.Mol) -> int:
    # uniquify=False: RDKit's own uniquify compares sets that include the attachment and would
    # merge the four tert-butyl groups of neopentane into one.
    matches = mol.GetSubstructMatches(query, uniquify=False, maxMatches=1_000_000)
    return len({frozenset(match[1:]) for match in matches})


def _count_rings(mol: Chem.Mol) -> dict[str, int]:
    sizes = Counter(len(ring) for ring in mol.GetRingInfo().AtomRings())
    return {
        "aromatic ring": rdMolDescriptors.CalcNumAromaticRings(mol),
        "aliphatic ring": rdMolDescriptors.CalcNumAliphaticRings(mol),
        "heterocyclic ring": rdMolDescriptors.CalcNumHeterocycles(mol),
        **{f"{size}-membered ring": sizes[size] for size in _RING_SIZES},
    }
