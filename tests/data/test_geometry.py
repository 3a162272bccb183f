"""Numbers of a shape: by hand on a line, a disk, a sphere and a box, by RDKit, and unmoved by any
motion."""

import math

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import Descriptors3D, rdMolDescriptors

from collamo.chem.conformer import embed_conformer
from collamo.chem.molecule import Molecule
from collamo.data.geometry import (
    SHAPE_PROPERTIES,
    Skeleton,
    heteroatom_distances,
    heteroatom_words,
    shape,
)

# Every kind of shape there is: flat, long, round, one ring, several, branched, with stereo.
MOLECULES = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "OCCCCCCCCN",
    "C1C2CC3CC1CC(C2)(C3)O",
    "C[C@H](N)C(=O)OC",
    "Clc1ccc(Br)c2ccccc12",
)


def chain(places):
    """Return a molecule of carbons in a row, and places for them."""
    return Chem.MolFromSmiles("C" * len(places)), np.array(places, dtype=np.float32)


def numbers(places):
    return shape(*chain(places))


def ring(number):
    angles = 2 * np.pi * np.arange(number) / number
    return np.stack([np.cos(angles), np.sin(angles), np.zeros(number)], axis=1)


def test_a_line():
    """Atoms 1 Å apart: λ = (0, 0, λ₃), and the ends are 5 bonds and 5 Å apart."""
    line = numbers([[i, 0, 0] for i in range(6)])
    assert line == pytest.approx(
        {
            "asphericity": 1,
            "spherocity": 0,
            "plane_deviation": 0,
            "end_to_end_per_bond": 1,
            "closest_contact": 4,
        }
    )


def test_a_disk():
    """λ = (0, ½, ½) Å² on the unit circle, whatever regular polygon it is."""
    for number in (4, 6, 9):
        disk = numbers(ring(number))
        assert disk["asphericity"] == pytest.approx(1 / 4)
        assert disk["spherocity"] == pytest.approx(0, abs=1e-6)
        assert disk["plane_deviation"] == pytest.approx(0, abs=1e-6)


def test_a_sphere():
    """The corners of an octahedron and of a cube: all λ alike."""
    octahedron = [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]
    cube = [[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    for places in (octahedron, cube):
        assert numbers(places)["asphericity"] == pytest.approx(0, abs=1e-6)
        assert numbers(places)["spherocity"] == pytest.approx(1)


def test_a_box():
    """The corners at (±1, ±2, ±3): λ = (1, 4, 9) Å², every corner 1 Å from the middle plane."""
    box = numbers([[x, 2 * y, 3 * z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    assert box["asphericity"] == pytest.approx(0.5 * (9 + 64 + 25) / 14**2)
    assert box["spherocity"] == pytest.approx(3 / 14)
    assert box["plane_deviation"] == pytest.approx(1)


def test_ends_and_contacts_of_a_folded_chain():
    """Six atoms on three sides of a rectangle: the ends, 5 bonds apart, are 1 Å apart."""
    hairpin = [[0, 0, 0], [2, 0, 0], [4, 0, 0], [4, 1, 0], [2, 1, 0], [0, 1, 0]]
    assert numbers(hairpin)["end_to_end_per_bond"] == pytest.approx(1 / 5)
    assert numbers(hairpin)["closest_contact"] == pytest.approx(1)
    # Equally long paths count alike: of the star's three ends, pairs are 2, 2 and √8 Å apart.
    star = Chem.MolFromSmiles("C(CC)(CC)CC")
    places = np.array(
        [[0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 1, 0], [2, 2, 0], [1, 0, 1], [2, 0, 2]], np.float32
    )
    expected = (2 + 2 + math.sqrt(8)) / 3 / 4
    assert shape(star, places)["end_to_end_per_bond"] == pytest.approx(expected)


def test_the_offset_of_heteroatoms():
    """A row of four with oxygen at one end: its place, 3, less the mean, 1.5 Å."""
    row = np.array([[i, 0, 0] for i in range(4)], dtype=np.float32)
    assert shape(Chem.MolFromSmiles("CCCO"), row)["heteroatom_offset"] == pytest.approx(1.5)
    assert shape(Chem.MolFromSmiles("OCCO"), row)["heteroatom_offset"] == pytest.approx(0)
    assert "heteroatom_offset" not in shape(Chem.MolFromSmiles("CCCC"), row)


@pytest.mark.parametrize("smiles", MOLECULES)
def test_rdkit_says_the_same(smiles):
    molecule = Molecule.from_smiles(smiles)
    values = shape(molecule.mol, embed_conformer(molecule).coordinates)
    mol = with_conformer(molecule)
    # Its moments of inertia: I = N (Σ λ - λᵢ).
    moments = (Descriptors3D.PMI1, Descriptors3D.PMI2, Descriptors3D.PMI3)
    inertia = np.array([moment(mol, useAtomicMasses=False) for moment in moments])
    spread = ((inertia[:, None] - inertia) ** 2).sum() / 2
    expected = spread / 2 / (inertia.sum() / 2) ** 2
    assert values["asphericity"] == pytest.approx(expected, abs=1e-4)
    assert values["spherocity"] == pytest.approx(Descriptors3D.SpherocityIndex(mol), abs=1e-4)
    assert values["plane_deviation"] == pytest.approx(rdMolDescriptors.CalcPBF(mol), abs=1e-4)


def with_conformer(molecule):
    mol = Chem.Mol(molecule.mol)
    mol.RemoveAllConformers()
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(embed_conformer(molecule).coordinates.astype(np.float64))
    mol.AddConformer(conformer)
    return mol


@pytest.mark.parametrize("smiles", MOLECULES)
def test_turning_moving_mirroring_and_renumbering_change_nothing(smiles):
    molecule = Molecule.from_smiles(smiles)
    places = embed_conformer(molecule).coordinates.astype(np.float64)
    generator = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    expected = shape(molecule.mol, places)
    assert set(expected) >= {entry.target for entry in SHAPE_PROPERTIES}
    for motion in (rotation, -rotation):
        moved = places @ motion.T + generator.normal(size=3)
        assert shape(molecule.mol, moved) == pytest.approx(expected)
    order = generator.permutation(molecule.num_atoms).tolist()
    renumbered = Chem.RenumberAtoms(molecule.mol, order)
    assert shape(renumbered, places[order]) == pytest.approx(expected)


@pytest.mark.parametrize("smiles", ["C", "CC", "CCO", "[2H]C([2H])([2H])O[2H]", "CCO.CCO"])
def test_small_molecules_and_fragments_have_no_shape(smiles):
    molecule = Molecule.from_smiles(smiles)
    assert shape(molecule.mol, embed_conformer(molecule).coordinates) == {}


def test_atoms_in_one_place_have_no_shape():
    assert numbers([[1, 2, 3]] * 4) == {}


def test_a_short_molecule_has_no_contact():
    assert "closest_contact" not in numbers([[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0]])


def distances(smiles):
    """Return the distances of heteroatoms where every atom is 1 Å from the last, in a line."""
    mol = Chem.MolFromSmiles(smiles)
    places = np.array([[i, 0, 0] for i in range(mol.GetNumAtoms())], dtype=np.float32)
    return heteroatom_distances(Skeleton(mol, places))


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("NCCO", {"heteroatom_distance N O": 3}),
        ("OCCCO", {"heteroatom_distance O O": 4}),
        ("NCCOCCN", {}),  # which nitrogen? And the two are 6 bonds apart
        ("NCCOCN", {}),  # two nitrogens 5 bonds apart, and two of them stand by one oxygen
        ("NCO", {}),  # two bonds: the angle says it
        ("OCCOCCO", {}),  # three oxygens
        ("ClCCNCCCO", {"heteroatom_distance Cl N": 3, "heteroatom_distance N O": 4}),
    ],
)
def test_heteroatoms_are_named_where_one_pair_can_be_meant(smiles, expected):
    assert distances(smiles) == pytest.approx(expected)


def test_words_for_two_heteroatoms():
    assert heteroatom_words("heteroatom_distance O O") == "distance between the two oxygen atoms"
    words = "distance between the chlorine atom and the nitrogen atom"
    assert heteroatom_words("heteroatom_distance Cl N") == words
