"""Motif counts of molecules counted by hand."""

import pytest
from rdkit import Chem

from collamo.chem.molecule import parse_molecule
from collamo.chem.motifs import MOTIFS, count_motifs, functional_groups

BY_HAND = {
    "CCO": {"hydroxyl group": 1},
    "O": {},
    "C": {},
    "[Na+].[Cl-]": {},
    "CCOCC": {"ethoxy group": 2},
    "CC(C)(C)O": {"hydroxyl group": 1, "tert-butyl group": 1},
    # every methyl is attached to a different tert-butyl
    "CC(C)(C)C": {"tert-butyl group": 4},
    "O=Cc1ccc(O)c(OC)c1": {  # vanillin
        "aldehyde group": 1,
        "hydroxyl group": 1,
        "methoxy group": 1,
        "double-bonded oxygen atom": 1,
        "aromatic ring": 1,
        "6-membered ring": 1,
    },
    "Cc1c([N+](=O)[O-])cc([N+](=O)[O-])cc1[N+](=O)[O-]": {  # TNT
        "nitro group": 3,
        "double-bonded oxygen atom": 3,
        "aromatic ring": 1,
        "6-membered ring": 1,
    },
    "CC(=O)Oc1ccccc1C(=O)O": {  # aspirin
        "carboxylic acid group": 1,
        "acetyl group": 1,
        "hydroxyl group": 1,
        "double-bonded oxygen atom": 2,
        "aromatic ring": 1,
        "6-membered ring": 1,
    },
    "CC(=O)[O-].[Na+]": {
        "carboxylic acid group": 1,
        "acetyl group": 1,
        "double-bonded oxygen atom": 1,
    },
    "Nc1ccc(S(N)(=O)=O)cc1": {  # sulfanilamide
        "amino group": 2,
        "primary sulfonamide group": 1,
        "double-bonded oxygen atom": 2,
        "aromatic ring": 1,
        "6-membered ring": 1,
    },
    "CN(C)N=O": {"nitroso group": 1, "double-bonded oxygen atom": 1},
    "CC(C)=NO": {"oxime group": 1, "hydroxyl group": 1},
    "N[C@@H](CS)C(=O)O": {  # cysteine
        "amino group": 1,
        "thiol group": 1,
        "carboxylic acid group": 1,
        "hydroxyl group": 1,
        "double-bonded oxygen atom": 1,
    },
    "N#CCC#C": {"cyano group": 1, "triple-bonded nitrogen atom": 1, "terminal alkyne group": 1},
    "FC(F)(F)C1CC1": {
        "halogen atom": 3,
        "trifluoromethyl group": 1,
        "cyclopropyl group": 1,
        "aliphatic ring": 1,
        "3-membered ring": 1,
    },
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C": {  # caffeine
        "double-bonded oxygen atom": 2,
        "aromatic ring": 2,
        "heterocyclic ring": 2,
        "5-membered ring": 1,
        "6-membered ring": 1,
    },
    "C12C3C4C1C5C2C3C45": {"aliphatic ring": 6, "4-membered ring": 6},  # cubane
}


@pytest.mark.parametrize("smiles", BY_HAND)
def test_counts_by_hand(smiles):
    counts = count_motifs(parse_molecule(smiles))
    assert {name: count for name, count in counts.items() if count} == BY_HAND[smiles]
    assert tuple(counts) == MOTIFS


def test_each_of_the_39_groups_is_found_in_some_molecule():
    groups = functional_groups()
    assert len(groups) == 39
    assert len({group.name for group in groups}) == 39
    examples = {
        "acetamido group": "CNC(C)=O",
        "methyl ester group": "CC(=O)OC",
        "primary amide group": "CC(N)=O",
        "acetyl group": "CC(C)=O",
        "isocyanate group": "CN=C=O",
        "isothiocyanate group": "CN=C=S",
        "N-methylimine group": "CC=NC",
        "methyleneamino group": "CN=C",
        "methyldiazenyl group": "CN=NC",
        "diazenyl group": "CN=N",
        "diazonium group": "C[N+]#N",
        "methanesulfonamido group": "CNS(C)(=O)=O",
        "sulfonic acid group": "CS(=O)(=O)O",
        "methyl sulfonate group": "CS(=O)(=O)OC",
        "methylsulfonyl group": "CS(C)(=O)=O",
        "sulfonyl chloride group": "CS(=O)(=O)Cl",
        "methylsulfinyl group": "CS(C)=O",
        "methylthio group": "CSC",
        "double-bonded sulfur atom": "CC(C)=S",
        "methoxy group": "COC",
        "terminal imino group": "CC(C)=N",
    }
    for name, smiles in examples.items():
        assert count_motifs(parse_molecule(smiles))[name] >= 1, name
    shown = {name for counts in BY_HAND.values() for name in counts} | set(examples)
    assert {group.name for group in groups} <= shown


def test_sharpened_patterns_do_not_count_what_their_label_denies():
    nitro = count_motifs(parse_molecule("C[N+](=O)[O-]"))
    assert nitro["nitroso group"] == nitro["oxime group"] == nitro["hydroxyl group"] == 0
    assert count_motifs(parse_molecule("CC(C)=O"))["aldehyde group"] == 0


def test_counts_do_not_depend_on_the_order_of_atoms():
    mol = Chem.MolFromSmiles("CC(=O)Nc1ccc(OC)c([N+](=O)[O-])c1C(F)(F)F")
    written = {Chem.MolToSmiles(mol, doRandom=True) for _ in range(20)}
    counts = [count_motifs(parse_molecule(smiles)) for smiles in written]
    assert all(count == counts[0] for count in counts)


@pytest.mark.parametrize(
    ("labelled", "plain"),
    [
        ("[2H]C([2H])([2H])C([2H])([2H])O[2H]", "CCO"),
        ("[3H]OC(=O)c1ccccc1", "OC(=O)c1ccccc1"),
        ("[2H]C([2H])([2H])N(C)C(C)=O", "CN(C)C(C)=O"),
        ("[2H]SC([2H])([2H])[2H]", "SC"),
        ("[2H]N([2H])CC", "NCC"),
        ("[2H]C(=O)CC", "O=CCC"),
        ("[2H]O[2H]", "O"),
        ("[H]/N=C(/C)CC", "N=C(C)CC"),
    ],
)
def test_an_isotope_of_hydrogen_counts_as_hydrogen(labelled, plain):
    assert count_motifs(parse_molecule(labelled)) == count_motifs(parse_molecule(plain))
