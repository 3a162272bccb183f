"""Atom and bond integers equal those of OGB 1.3.6."""

import gzip
import json

import numpy as np
import pytest
from rdkit import Chem

from collamo.chem.conformer import Conformer, absent_conformer
from collamo.chem.features import ATOM_FEATURE_SIZES, BOND_FEATURE_SIZES, featurize
from collamo.chem.molecule import Molecule, parse_molecule


def features_of(smiles):
    return featurize(parse_molecule(smiles), absent_conformer("not needed"))


def test_methanol_by_hand():
    features = features_of("CO")
    # atomic number - 1, chirality, degree with H, charge + 5, H, radicals, sp3 = 2, aromatic, ring
    assert features.atom_features.tolist() == [
        [5, 0, 4, 5, 3, 0, 2, 0, 0],
        [7, 0, 2, 5, 1, 0, 2, 0, 0],
    ]
    assert features.edge_index.tolist() == [[0, 1], [1, 0]]
    assert features.edge_features.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_equals_ogb(shared_golden):
    with gzip.open(shared_golden / "ogb_features.jsonl.gz", "rt") as lines:
        records = [json.loads(line) for line in lines]
    assert len(records) == 321
    for record in records:
        molecule = Molecule.from_smiles(record["smiles"])
        features = featurize(molecule, absent_conformer("not needed"))
        assert features.atom_features.tolist() == record["node_feat"], record["smiles"]
        assert features.edge_index.tolist() == record["edge_index"], record["smiles"]
        assert features.edge_features.tolist() == record["edge_feat"], record["smiles"]


@pytest.mark.parametrize(
    ("smiles", "directions"),
    [
        ("F/C=C/F", [1, 0, 1]),
        ("F\\C=C\\F", [2, 0, 2]),  # the same molecule
        ("F/C=C\\F", [1, 0, 2]),
        ("CC(/F)=C/F", [0, 1, 0, 1]),
        ("C/C=C", [0, 0]),  # a mark beside no stereo bond says nothing
        ("C[C@H](N)O", [0, 0, 0]),
        ("C", []),
    ],
)
def test_bond_directions(smiles, directions):
    features = features_of(smiles)
    assert features.bond_directions.tolist() == [d for d in directions for _ in range(2)]
    assert features.bond_directions.dtype == np.uint8


def test_directions_are_those_of_the_smiles_that_is_stored():
    """A mol block writes no directions, an RDKit Mol those of another text."""
    mol = Chem.MolFromSmiles("F\\C=C\\F")
    block = Chem.MolFromMolBlock(Chem.MolToMolBlock(mol))
    for molecule in (Molecule.from_mol(mol), Molecule.from_mol(block)):
        found = featurize(molecule, absent_conformer("not needed")).bond_directions.tolist()
        assert found == features_of(molecule.smiles).bond_directions.tolist()
        assert any(found)


@pytest.mark.parametrize(
    "smiles", ["*", "[He]", "[C+99]", "[U]", "[Fe-4]", "F[P-](F)(F)(F)(F)F", "N->[Pt]", "[CH3]"]
)
def test_odd_values_stay_inside_the_tables(smiles):
    features = features_of(smiles)
    assert (features.atom_features < np.array(ATOM_FEATURE_SIZES)).all()
    assert (features.edge_features < np.array(BOND_FEATURE_SIZES)).all()
    assert features.edge_index.shape == (2, len(features.edge_features))


def test_a_conformer_of_another_molecule_is_refused():
    other = Conformer(np.zeros((2, 3), dtype=np.float32), "given")
    with pytest.raises(ValueError, match="3 atoms"):
        featurize(parse_molecule("CCO"), other)


def test_a_bare_proton_in_a_mol_is_nothing_to_print(capfd):
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("[H+].[Cl-]"))
    capfd.readouterr()
    featurize(parse_molecule(block), absent_conformer("not needed"))
    assert capfd.readouterr().err == ""
