"""Batches: padded, batch first, hops agree with the edges, nothing of an absent modality."""

import dataclasses

import numpy as np
import pytest
import torch
from rdkit import Chem

from collamo.chem.conformer import absent_conformer, embed_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.data.batch import batch_molecules
from collamo.errors import UsageError

SHAPES = {
    "selfies_ids": (3, 2, "L", torch.int64),
    "atom_features": (3, 2, "N", 9, torch.int64),
    "atom_valid": (3, 2, "N", torch.bool),
    "edge_index": (3, 2, "E", 2, torch.int64),
    "edge_features": (3, 2, "E", 3, torch.int64),
    "bond_directions": (3, 2, "E", torch.int64),
    "hops": (3, 2, "N", "N", torch.uint8),
    "coordinates": (3, 2, "N", 3, torch.float32),
    "has_1d": (3, 2, torch.bool),
    "has_2d": (3, 2, torch.bool),
    "has_3d": (3, 2, torch.bool),
    "molecule_valid": (3, 2, torch.bool),
}


def features(smiles, embed=True):
    molecule = parse_molecule(smiles)
    return featurize(molecule, embed_conformer(molecule) if embed else absent_conformer("no"))


ROWS = [
    [features("CC(=O)Oc1ccccc1C(=O)O"), features("[Na+].[Cl-]", embed=False)],
    [features("[He]")],
    [features("C*", embed=False), features("CCO")],
]


def test_keys_shapes_and_dtypes():
    batch = batch_molecules(ROWS, {"[C]": 2})
    sizes = {"N": 13, "L": len(ROWS[0][0].selfies), "E": 26}
    assert set(batch) == set(SHAPES)
    for name, (*shape, dtype) in SHAPES.items():
        assert batch[name].shape == tuple(sizes.get(size, size) for size in shape), name
        assert batch[name].dtype == dtype, name
    assert batch["molecule_valid"].tolist() == [[True, True], [True, False], [True, True]]
    assert batch["has_1d"].tolist() == [[True, True], [True, False], [False, True]]
    assert batch["has_3d"].tolist() == [[True, False], [True, False], [False, True]]
    assert batch["atom_valid"].sum(-1).tolist() == [[13, 2], [1, 0], [2, 3]]


def test_hops_are_rdkit_distances():
    hops = batch_molecules(ROWS, {})["hops"]
    for r, row in enumerate(ROWS):
        for m, molecule in enumerate(row):
            expected = np.full((13, 13), 255)
            found = Chem.GetDistanceMatrix(Chem.MolFromSmiles(molecule.smiles))
            expected[: len(found), : len(found)] = np.where(found > 1e6, 255, found)
            assert (hops[r, m].numpy() == expected).all()
    assert (hops[1, 1] == 255).all()


def test_tokens_and_edges():
    batch = batch_molecules([[features("CCO")]], {"[C]": 2})
    assert batch["selfies_ids"][0, 0].tolist() == [2, 2, 1]  # [O] is not in this vocabulary
    assert batch["edge_index"][0, 0].tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    padded = batch_molecules(ROWS, {})
    assert (padded["edge_index"][1] == -1).all()
    assert (padded["edge_features"][1] == 0).all()


def test_a_batch_holds_its_singles():
    both, alone = batch_molecules(ROWS, {"[C]": 2}), batch_molecules([ROWS[2]], {"[C]": 2})
    for name, single in alone.items():
        inside = both[name][2]
        for size, dim in zip(single.shape[1:], range(inside.dim()), strict=True):
            inside = inside.narrow(dim, 0, size)
        assert torch.equal(inside, single[0]), name


@pytest.mark.parametrize("modalities", [("1d",), ("2d",), ("3d",), ("1d", "3d"), ()])
def test_absent_modalities_leave_nothing_to_read(modalities):
    batch = batch_molecules(ROWS, {"[C]": 2}, modalities)
    assert batch["atom_valid"].sum() == 21
    for name in ("1d", "2d", "3d"):
        if name not in modalities:
            assert not batch[f"has_{name}"].any()
    if "1d" not in modalities:
        assert not batch["selfies_ids"].any()
    if "2d" not in modalities:
        assert (batch["hops"] == 255).all()
        assert batch["edge_index"].shape[2] == 0
        assert not batch["atom_features"][..., 1:].any()
    if "3d" not in modalities:
        assert not batch["coordinates"].any()
    if "3d" in modalities and "2d" not in modalities:
        assert batch["atom_features"][0, 0, :, 0].any()
        assert not batch["atom_features"][0, 1].any()  # neither 2D nor a conformer


def test_bond_directions_need_every_molecule():
    rows = [[features("F/C=C/F")], [features("CO")]]
    batch = batch_molecules(rows, {})
    assert batch["bond_directions"][:, 0].tolist() == [[1, 1, 0, 0, 1, 1], [0] * 6]
    old = dataclasses.replace(rows[1][0], bond_directions=None)  # as format 1 has them
    assert "bond_directions" not in batch_molecules([rows[0], [old]], {})
    assert "bond_directions" in batch_molecules([rows[0], [old]], {}, ("1d", "3d"))


def test_unknown_modality():
    with pytest.raises(UsageError, match="use 1d, 2d, 3d"):
        batch_molecules(ROWS, {}, ("3D",))


def test_no_molecules():
    batch = batch_molecules([[], []], {})
    assert batch["molecule_valid"].shape == (2, 0)
    assert batch["hops"].shape == (2, 0, 0, 0)
