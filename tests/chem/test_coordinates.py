"""Coordinates of a record: a geometry is kept; drawings and coincident atoms are embedded anew."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom, rdForceFieldHelpers

from collamo.chem.conformer import embed_conformer
from collamo.chem.molecule import Molecule

# Paracetamol, ibuprofen, pentane, trans-stilbene, caffeine.
DRAWN = [
    "CC(=O)Nc1ccc(O)cc1",
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "CCCC(C)C",
    "c1ccccc1/C=C/c1ccccc1",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
]


def block_of(mol, positions):
    """Return a mol block that is tagged 3D, with `positions` [N,3]."""
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.Set3D(True)
    conformer.SetPositions(np.asarray(positions, dtype=float))
    mol = Chem.Mol(mol)
    mol.RemoveAllConformers()
    mol.AddConformer(conformer)
    return Chem.MolToMolBlock(mol)


def drawing(smiles, hydrogens=False):
    mol = Chem.MolFromSmiles(smiles)
    mol = Chem.AddHs(mol) if hydrogens else mol
    rdDepictor.Compute2DCoords(mol)
    return mol, mol.GetConformer().GetPositions()


@pytest.mark.parametrize("hydrogens", [False, True])
@pytest.mark.parametrize("smiles", DRAWN)
@pytest.mark.parametrize("height", [0.0, 2.5])
def test_a_flat_drawing_tagged_3d_is_embedded_anew(smiles, hydrogens, height):
    mol, positions = drawing(smiles, hydrogens)
    block = block_of(mol, positions + np.array([0.0, 0.0, height]))
    assert Chem.MolFromMolBlock(block).GetConformer().Is3D()
    molecule = Molecule.from_molblock(block)
    conformer = embed_conformer(molecule)
    assert conformer.method == "etkdgv3+mmff"
    assert conformer.reason == (
        "the record's coordinates are no geometry: a flat drawing tagged 3D"
    )
    # As if the record had not been tagged.
    rdDepictor.Compute2DCoords(mol)
    untagged = Molecule.from_molblock(Chem.MolToMolBlock(mol))
    np.testing.assert_array_equal(conformer.coordinates, embed_conformer(untagged).coordinates)


@pytest.mark.parametrize("smiles", ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "F/C(C)=C\\CC"])
def test_the_stereo_of_a_drawing_tagged_3d_is_read_from_the_drawing(smiles):
    mol, _ = drawing(smiles)
    block = Chem.MolToMolBlock(mol).replace("RDKit          2D", "RDKit          3D")
    molecule = Molecule.from_molblock(block)
    assert molecule.refused_coordinates == "a flat drawing tagged 3D"
    assert molecule.canonical_smiles == Chem.CanonSmiles(smiles)
    assert molecule.text == block


@pytest.mark.parametrize("smiles", ["c1ccccc1", "C=C", "c1ccc2ncccc2c1", "O", "C#CC#N", "NC=O"])
@pytest.mark.parametrize("hydrogens", [True, False])
def test_a_planar_molecule_is_flat_in_earnest(smiles, hydrogens):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=4)
    rdForceFieldHelpers.MMFFOptimizeMolecule(mol)
    positions = mol.GetConformer().GetPositions()
    positions = positions - positions.mean(0)
    _, _, axes = np.linalg.svd(positions)
    flat = positions @ axes.T
    flat[:, 2] = 0.0
    mol = mol if hydrogens else Chem.RemoveHs(mol)
    block = block_of(mol, flat[: mol.GetNumAtoms()])
    molecule = Molecule.from_molblock(block)
    if molecule.num_atoms > 1:
        assert (embed_conformer(molecule).method, molecule.refused_coordinates) == ("given", None)


@pytest.mark.parametrize("place", [0.0, 1.7])
def test_coincident_atoms_are_no_conformer(place):
    mol = Chem.MolFromSmiles("CCOC(=O)C")
    molecule = Molecule.from_molblock(block_of(mol, np.full((6, 3), place)))
    conformer = embed_conformer(molecule)
    assert conformer.method == "etkdgv3+mmff"
    assert conformer.reason == "the record's coordinates are no geometry: its atoms share a place"


def test_two_atoms_at_one_place_are_no_conformer_either():
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    positions = mol.GetConformer().GetPositions()
    assert embed_conformer(Molecule.from_molblock(block_of(mol, positions))).method == "given"
    positions[2] = positions[0]
    assert embed_conformer(Molecule.from_molblock(block_of(mol, positions))).method != "given"


def test_a_drawing_that_says_so_is_passed_over_without_a_note():
    mol, _ = drawing("CCOC(=O)C")
    molecule = Molecule.from_molblock(Chem.MolToMolBlock(mol))
    assert molecule.refused_coordinates is None
    assert embed_conformer(molecule).reason is None


def test_the_geometry_of_a_mol_is_taken_where_it_has_a_drawing_too():
    mol, _ = drawing("CCOC(=O)C")
    whole = Chem.AddHs(mol)
    assert rdDistGeom.EmbedMolecule(whole, randomSeed=2, clearConfs=False) > 0
    assert whole.GetNumConformers() == 2
    molecule = Molecule.from_mol(whole)
    expected = whole.GetConformer(1).GetPositions()[list(molecule.source_atoms)]
    coordinates = embed_conformer(molecule).coordinates  # float32, of float64
    np.testing.assert_allclose(coordinates, expected, atol=1e-5)


def test_a_flat_conformer_of_a_mol_is_no_geometry():
    mol = Chem.MolFromMolBlock(block_of(*drawing("CC(C)Cc1ccccc1")))
    assert Molecule.from_mol(mol).refused_coordinates == "a flat drawing tagged 3D"


def test_a_molecule_of_a_hundred_kilometres_is_no_geometry():
    """An exponent that slipped: float32 holds it, and all other numbers are nothing beside it."""
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    mol.GetConformer().SetAtomPosition(0, (1e15, 0.0, 0.0))
    molecule = Molecule.from_molblock(Chem.MolToV3KMolBlock(mol))
    assert molecule.refused_coordinates == "its atoms are farther apart than 10,000 Å"
    assert embed_conformer(molecule).method.startswith("etkdg")
