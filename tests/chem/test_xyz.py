"""XYZ blocks: read where SMILES and geometry are one molecule, refused with a reason elsewhere."""

import numpy as np
import pytest
from rdkit import Chem

from collamo.chem.conformer import embed_conformer
from collamo.chem.molecule import parse_molecule
from collamo.chem.rejection import RejectedMolecule
from collamo.chem.xyz import molecule_from_xyz


def block(smiles, written=None, seed=0):
    """The geometry of `smiles` with its hydrogens, under the SMILES `written`."""
    from rdkit.Chem import rdDistGeom

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=seed)
    rows = zip(mol.GetAtoms(), mol.GetConformer().GetPositions(), strict=True)
    atoms = [f"{atom.GetSymbol()} {x:.6f} {y:.6f} {z:.6f}" for atom, (x, y, z) in rows]
    return "\n".join([str(len(atoms)), f"{written or smiles} name", *atoms]) + "\n"


@pytest.mark.parametrize(
    "smiles",
    ["CCO", "O=C1CCCO1", "[NH3+]CC([O-])=O", "C1=COC=C1", "C", "F/C=C/F", "N[C@@H](C)O"],
)
def test_graph_and_geometry_of_one_molecule(smiles):
    text = block(smiles)
    molecule = molecule_from_xyz(text)
    assert molecule.canonical_smiles == parse_molecule(smiles).canonical_smiles
    conformer = embed_conformer(molecule)
    assert conformer.method == "given"
    heavy = [line.split()[1:] for line in text.splitlines()[2:] if not line.startswith("H ")]
    places = np.array(heavy, dtype=float)[list(molecule.source_atoms)]
    np.testing.assert_allclose(conformer.coordinates, places, atol=1e-5)


def test_the_geometry_says_the_stereo_that_the_smiles_leaves_open():
    left, right = (molecule_from_xyz(block(s, "NC(C)O")) for s in ("N[C@@H](C)O", "N[C@H](C)O"))
    assert {left.canonical_smiles, right.canonical_smiles} == {"C[C@@H](N)O", "C[C@H](N)O"}


@pytest.mark.parametrize(
    ("smiles", "written", "code", "words"),
    [
        ("CCO", "CCN", "elements", "has other heavy atoms"),
        ("CCO", "COC", "elements", "in another order"),
        ("OCC=O", "O=CCO", "hydrogens", r"has 0 hydrogens at atom 0 \(O\), the geometry 1"),
        ("C1CC1", "CC=C", "hydrogens", "hydrogens at atom 0"),
        ("C1CCCC1", "C1CCCC1.C", "elements", "other heavy atoms"),
        ("N[C@@H](C)O", "N[C@H](C)O", "stereo", "another stereo isomer"),
        ("F/C=C/F", r"F/C=C\F", "stereo", "another stereo isomer"),
    ],
)
def test_disagreement_has_a_reason(smiles, written, code, words):
    with pytest.raises(RejectedMolecule, match=words) as refusal:
        molecule_from_xyz(block(smiles, written))
    assert refusal.value.code == f"geometry_{code}"


def test_a_bond_that_is_broken_or_not_in_the_smiles():
    stretched = "2\nFF x\nF 0 0 0\nF 0 0 1.9\n"
    near = "2\nF.F x\nF 0 0 0\nF 0 0 1.2\n"
    with pytest.raises(RejectedMolecule, match="has a bond between atoms 0 and 1, which are 1"):
        molecule_from_xyz(stretched)
    with pytest.raises(RejectedMolecule) as refusal:
        molecule_from_xyz(near)
    assert refusal.value.code in ("geometry_bonds", "geometry_hydrogens")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1\n\nC 0 0 0\n", "no_smiles"),
        ("", "no_smiles"),
        ("2\nC x\nC 0 0 0\n", "syntax"),
        ("x\nC x\nC 0 0 0\n", "syntax"),
        ("1\nC x\nC 0 0\n", "syntax"),
        ("1\nC x\nC a b c\n", "syntax"),
        ("0\nC x\n", "syntax"),
        ("1\nC1CC x\nC 0 0 0\n", "unclosed_ring"),
        ("1\nF x\nF nan 0 0\n", "syntax"),
    ],
)
def test_what_is_no_block_is_refused(text, code):
    with pytest.raises(RejectedMolecule) as refusal:
        molecule_from_xyz(text)
    assert refusal.value.code == code
