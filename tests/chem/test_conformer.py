"""Conformers: where they come from, and that absence is marked."""

import numpy as np

from collamo.chem.conformer import embed_conformer
from collamo.chem.molecule import parse_molecule


def distances(conformer):
    r = conformer.coordinates
    return np.linalg.norm(r[:, None] - r[None], axis=-1)


def test_ethanol_has_real_bond_lengths():
    conformer = embed_conformer(parse_molecule("CCO"))
    assert (conformer.method, conformer.seed, conformer.converged) == ("etkdgv3+mmff", 0, True)
    assert conformer.coordinates.dtype == np.float32
    d = distances(conformer)
    assert 1.48 < d[0, 1] < 1.56  # C-C, experiment 1.51 Å
    assert 1.38 < d[1, 2] < 1.47  # C-O, experiment 1.43 Å


def test_same_seed_same_bits_and_another_seed_another_geometry():
    molecule = parse_molecule("CCCCCCCO")
    first = embed_conformer(molecule, seed=3).coordinates
    assert (first == embed_conformer(molecule, seed=3).coordinates).all()
    assert not np.allclose(first, embed_conformer(molecule, seed=4).coordinates)


def test_stereo_is_kept():
    """The signed volume of a stereocentre's neighbours has opposite signs for R and S."""

    def volume(smiles):
        r = embed_conformer(parse_molecule(smiles)).coordinates.astype(float)
        return np.linalg.det(r[[0, 2, 3]] - r[1])

    assert volume("F[C@H](Cl)Br") * volume("F[C@@H](Cl)Br") < 0
    trans, cis = (embed_conformer(parse_molecule(s)) for s in ("F/C=C/F", "F/C=C\\F"))
    assert distances(trans)[0, 3] > distances(cis)[0, 3] + 0.5


def test_uff_where_mmff_has_no_parameters(capfd):
    assert embed_conformer(parse_molecule("C[Si](C)(C)B(O)O")).method == "etkdgv3+uff"
    embed_conformer(parse_molecule("CCCCCC=[N+](C)[Ni]SC#N"))  # UFF warns about nickel
    assert capfd.readouterr().err == ""


def test_fragments_of_a_salt_do_not_share_a_place():
    conformer = embed_conformer(parse_molecule("[Na+].CC(=O)[O-].[Cl-].[K+]"))
    assert distances(conformer)[np.triu_indices(7, 1)].min() > 1.0
    noble = embed_conformer(parse_molecule("[He].[Ne].[Ar]"))  # no force field moves them apart
    assert noble.method == "etkdgv3"
    assert distances(noble)[np.triu_indices(3, 1)].min() > 3.0


def test_rdkit_errors_are_an_absence_with_the_reason():
    # "bad lower bound", an exception inside RDKit
    smiles = "O1C2=CC=CC3=CC=C[N+](=C23)[Hg]14OC5=CC=CC6=CC=C[N+]4=C56"
    conformer = embed_conformer(parse_molecule(smiles))
    assert conformer.coordinates is None
    assert conformer.method == "none"
    assert "RDKit" in conformer.reason
    assert "\n" not in conformer.reason


def test_one_atom_and_hydrogen_have_coordinates():
    assert embed_conformer(parse_molecule("[He]")).coordinates.shape == (1, 3)
    d = distances(embed_conformer(parse_molecule("[H][H]")))
    assert 0.6 < d[0, 1] < 0.9  # experiment 0.74 Å
