"""Workers: same conformers, their order kept; what hangs or crashes is an absence."""

import os
import signal

import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

import collamo.chem.conformer as conformer_module
from collamo.chem.conformer import embed_conformer
from collamo.chem.conformer_workers import (
    embed_conformer_limited,
    embed_conformers,
    worker_context,
)
from collamo.chem.molecule import parse_molecule


def test_limited_gives_the_same_conformer():
    molecule = parse_molecule("CC(=O)Oc1ccccc1C(=O)O")
    here, there = embed_conformer(molecule), embed_conformer_limited(molecule)
    assert (here.coordinates == there.coordinates).all()
    assert there.method == here.method


@pytest.mark.timeout(60)  # it ends at all
def test_a_molecule_beyond_the_limit_is_killed_and_absent():
    """RDKit needs minutes for this chain and its own time-out is not honoured."""
    conformer = embed_conformer_limited(parse_molecule("C" * 400), seconds=1.0)
    assert conformer.coordinates is None
    assert conformer.reason == "no geometry within 1 s"


@pytest.mark.parametrize("workers", [1, 3])
def test_parallel_conformers_come_in_order(workers):
    """The first and the last take longest; a hang costs its own conformer only."""
    placed = parse_molecule(Chem.MolToMolBlock(embedded("CCN")))
    molecules = [parse_molecule(s) for s in ("C" * 30, "CCO", "C" * 400, "C")] + [placed]
    found = list(embed_conformers(molecules, seconds=5.0, workers=workers))
    for molecule, conformer in zip(molecules, found, strict=True):
        if molecule.num_atoms == 400:
            assert (conformer.coordinates, conformer.reason) == (None, "no geometry within 5 s")
        else:
            assert (conformer.coordinates == embed_conformer(molecule).coordinates).all()
    assert found[-1].method == "given"
    assert list(embed_conformers([], workers=workers)) == []


def embedded(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=0) == 0
    return mol


def test_a_crash_is_an_absence(monkeypatch):
    if worker_context().get_start_method() != "fork":
        pytest.skip("the crash is put in by patching, which only a forked worker inherits")
    monkeypatch.setattr(conformer_module, "_embed", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    conformer = embed_conformer_limited(parse_molecule("CCO"))
    assert conformer.coordinates is None
    assert conformer.reason == "RDKit crashed (exit code -9)"
