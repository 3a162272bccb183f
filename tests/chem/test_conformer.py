"""Conformers: where they come from, and that absence is marked."""

import os
import signal
import time

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

import collamo.chem.conformer as conformer_module
from collamo.chem.conformer import (
    embed_conformer,
    embed_conformer_limited,
    embed_conformers,
)
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


def test_limited_gives_the_same_conformer():
    molecule = parse_molecule("CC(=O)Oc1ccccc1C(=O)O")
    here, there = embed_conformer(molecule), embed_conformer_limited(molecule)
    assert (here.coordinates == there.coordinates).all()
    assert there.method == here.method


def test_a_molecule_beyond_the_limit_is_killed_and_absent():
    """RDKit needs minutes for this chain and its own time-out is not honoured."""
    start = time.monotonic()
    conformer = embed_conformer_limited(parse_molecule("C" * 400), seconds=1.0)
    assert conformer.coordinates is None
    assert conformer.reason == "no geometry within 1 s"
    assert time.monotonic() - start < 30  # it ended at all; not a timing


@pytest.mark.parametrize("workers", [1, 3])
def test_parallel_conformers_come_in_order(workers):
    """The first and the last take longest; a hang costs its own conformer only."""
    given = parse_molecule(Chem.MolToMolBlock(embedded("CCN")))
    molecules = [parse_molecule(s) for s in ("C" * 30, "CCO", "C" * 400, "C")] + [given]
    found = list(embed_conformers(molecules, seconds=1.0, workers=workers))
    for molecule, conformer in zip(molecules, found, strict=True):
        if molecule.num_atoms == 400:
            assert (conformer.coordinates, conformer.reason) == (None, "no geometry within 1 s")
        else:
            assert (conformer.coordinates == embed_conformer(molecule).coordinates).all()
    assert found[-1].method == "given"
    assert list(embed_conformers([], workers=workers)) == []


def embedded(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=0) == 0
    return mol


def test_a_crash_is_an_absence(monkeypatch):
    if conformer_module.worker_context().get_start_method() != "fork":
        pytest.skip("the crash is put in by patching, which only a forked worker inherits")
    monkeypatch.setattr(conformer_module, "_embed", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    conformer = embed_conformer_limited(parse_molecule("CCO"))
    assert conformer.coordinates is None
    assert conformer.reason == "RDKit crashed (exit code -9)"


def test_one_atom_and_hydrogen_have_coordinates():
    assert embed_conformer(parse_molecule("[He]")).coordinates.shape == (1, 3)
    d = distances(embed_conformer(parse_molecule("[H][H]")))
    assert 0.6 < d[0, 1] < 0.9  # experiment 0.74 Å
