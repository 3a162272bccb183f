"""The whole 3D branch, from coordinates to soft tokens: what it must not see, and odd molecules."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from collamo.chem.conformer import Conformer
from collamo.chem.features import featurize, unknown_to_unimol
from collamo.chem.molecule import parse_molecule
from collamo.data.batch import MoleculeBatch, batch_molecules

ODD = {
    "single atom": "C",
    "noble gas": "[He]",
    "salt": "CCC(=O)[O-].CC[NH3+]",
    "two ions": "[Na+].[Cl-]",
    "300 atoms": "C" * 300,
    "unknown elements": "C[Pt](Cl)(Cl)C.[U]",
}


def placed(smiles, seed=0):
    """Features with made-up places, as dense as a real molecule: the branch sees no chemistry."""
    molecule = parse_molecule(smiles)
    places = np.random.default_rng(seed).normal(size=(molecule.num_atoms, 3))
    places = (places * molecule.num_atoms ** (1 / 3)).astype(np.float32)  # Å
    return featurize(molecule, Conformer(places, "given", None, None, None))


@pytest.fixture(scope="module")
def batch():
    return batch_molecules([[placed(smiles)] for smiles in ODD.values()], {}, ("3d",))


@torch.no_grad()
def soft_tokens(model, batch):
    return model.get_molecule_features(batch)


def test_rotation_and_translation(model, batch):
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    places = batch.coordinates @ turn.T + torch.tensor([9.0, -4, 7])
    moved = dataclasses.replace(batch, coordinates=places)
    before, after = soft_tokens(model, batch), soft_tokens(model, moved)
    error = (before - after).abs().amax((1, 2, 3))
    assert (error <= 1e-4).all()
    stretched = dataclasses.replace(batch, coordinates=batch.coordinates * 1.5)
    change = (before - soft_tokens(model, stretched)).abs().amax((1, 2, 3))
    alone = batch.atom_valid[:, 0].sum(1) == 1
    assert (change[~alone] > 10 * error[~alone]).all()  # of 300 atoms every pair says little
    assert (change[alone] == 0).all()


def test_atom_permutation(model, batch):
    before = soft_tokens(model, batch)
    shuffled = {name: x.clone() for name, x in batch.tensors().items()}
    for row, valid in enumerate(batch.atom_valid[:, 0]):
        order = torch.randperm(int(valid.sum()), generator=torch.Generator().manual_seed(row))
        for name in ("coordinates", "atom_features"):
            shuffled[name][row, 0, : len(order)] = getattr(batch, name)[row, 0, order]
    assert not torch.equal(shuffled["coordinates"], batch.coordinates)
    assert (before - soft_tokens(model, MoleculeBatch(**shuffled))).abs().max() <= 1e-4


def test_a_batch_is_its_singles(model, batch):
    together = soft_tokens(model, batch)
    assert together.isfinite().all()
    for row, smiles in enumerate(ODD.values()):
        single = batch_molecules([[placed(smiles)]], {}, ("3d",))
        assert (soft_tokens(model, single)[0] - together[row]).abs().max() <= 1e-4


def test_elements_outside_the_dictionary_are_named(processor, caplog):
    features = placed(ODD["unknown elements"])
    assert unknown_to_unimol(features.atom_features) == {"Pt": 1, "U": 1}
    assert unknown_to_unimol(placed("C*").atom_features) == {"*": 1}
    assert unknown_to_unimol(placed("C[Se]C").atom_features) == {}
    with caplog.at_level(logging.WARNING, "collamo"):
        processor.feature_extractor([["[He].[He]"]])
        assert "Uni-Mol lacks He (2 atoms): its 3D encoder reads it as [UNK]" in caplog.text
        caplog.clear()
        processor.feature_extractor([["[He]"]], modalities=("1d", "2d"))
        processor.feature_extractor([["C"]])
        assert not caplog.text
