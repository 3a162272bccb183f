"""Batches: padded, batch first, hops agree with the edges, nothing of an absent modality."""

import dataclasses

import numpy as np
import pytest
import torch
from rdkit import Chem

from collamo.chem.conformer import absent_conformer, embed_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.data.batch import MOLECULE_TENSORS, MoleculeBatch, batch_molecules
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
    tensors = batch.tensors()
    assert set(tensors) == set(SHAPES)
    for name, (*shape, dtype) in SHAPES.items():
        assert tensors[name].shape == tuple(sizes.get(size, size) for size in shape), name
        assert tensors[name].dtype == dtype, name
    assert batch.molecule_valid.tolist() == [[True, True], [True, False], [True, True]]
    assert batch.has_1d.tolist() == [[True, True], [True, False], [False, True]]
    assert batch.has_3d.tolist() == [[True, False], [True, False], [False, True]]
    assert batch.atom_valid.sum(-1).tolist() == [[13, 2], [1, 0], [2, 3]]


def test_hops_are_rdkit_distances():
    hops = batch_molecules(ROWS, {}).hops
    for r, row in enumerate(ROWS):
        for m, molecule in enumerate(row):
            expected = np.full((13, 13), 255)
            found = Chem.GetDistanceMatrix(Chem.MolFromSmiles(molecule.smiles))
            expected[: len(found), : len(found)] = np.where(found > 1e6, 255, found)
            assert (hops[r, m].numpy() == expected).all()
    assert (hops[1, 1] == 255).all()


def test_tokens_and_edges():
    batch = batch_molecules([[features("CCO")]], {"[C]": 2})
    assert batch.selfies_ids[0, 0].tolist() == [2, 2, 1]  # [O] is not in this vocabulary
    assert batch.edge_index[0, 0].tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    padded = batch_molecules(ROWS, {})
    assert (padded.edge_index[1] == -1).all()
    assert (padded.edge_features[1] == 0).all()


def test_a_batch_holds_its_singles():
    both, alone = batch_molecules(ROWS, {"[C]": 2}), batch_molecules([ROWS[2]], {"[C]": 2})
    for name, single in alone.tensors().items():
        inside = getattr(both, name)[2]
        for size, dim in zip(single.shape[1:], range(inside.dim()), strict=True):
            inside = inside.narrow(dim, 0, size)
        assert torch.equal(inside, single[0]), name


@pytest.mark.parametrize("modalities", [("1d",), ("2d",), ("3d",), ("1d", "3d"), ()])
def test_absent_modalities_leave_nothing_to_read(modalities):
    batch = batch_molecules(ROWS, {"[C]": 2}, modalities)
    assert batch.atom_valid.sum() == 21
    for name in ("1d", "2d", "3d"):
        if name not in modalities:
            assert not getattr(batch, f"has_{name}").any()
    if "1d" not in modalities:
        assert not batch.selfies_ids.any()
    if "2d" not in modalities:
        assert (batch.hops == 255).all()
        assert batch.edge_index.shape[2] == 0
        assert not batch.atom_features[..., 1:].any()
    if "3d" not in modalities:
        assert not batch.coordinates.any()
    if "3d" in modalities and "2d" not in modalities:
        assert batch.atom_features[0, 0, :, 0].any()
        assert not batch.atom_features[0, 1].any()  # neither 2D nor a conformer


def test_bond_directions():
    rows = [[features("F/C=C/F")], [features("CO")]]
    batch = batch_molecules(rows, {})
    assert batch.bond_directions[:, 0].tolist() == [[1, 1, 0, 0, 1, 1], [0] * 6]
    assert batch_molecules(rows, {}, ("1d", "3d")).bond_directions.shape == (2, 1, 0)


def test_unknown_modality():
    with pytest.raises(UsageError, match="use 1d, 2d, 3d"):
        batch_molecules(ROWS, {}, ("3D",))


def test_no_molecules():
    batch = batch_molecules([[], []], {})
    assert batch.molecule_valid.shape == (2, 0)
    assert batch.hops.shape == (2, 0, 0, 0)


# --- the batch itself ------------------------------------------------------------------------


def assert_same(one, two):
    one, two = one.tensors(), two.tensors()
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype, name
        assert torch.equal(tensor, two[name]), name


def encoded(molecule, dtype=np.float16, levels=2, **modalities):
    """The molecule with made-up outputs of frozen encoders."""
    shape = molecule.num_atoms, levels, 3
    outputs = {m: np.full(shape, value, dtype) for m, value in modalities.items()}
    return dataclasses.replace(molecule, encoded=outputs)


def test_by_name_and_back():
    batch = batch_molecules(ROWS, {"[C]": 2})
    assert_same(
        batch, MoleculeBatch.from_tensors({"input_ids": torch.ones(3, 4)} | batch.tensors())
    )
    assert MoleculeBatch.from_tensors({"input_ids": torch.ones(3, 4), "hops": None}) is None
    partial = {n: x for n, x in batch.tensors().items() if n not in ("hops", "bond_directions")}
    with pytest.raises(ValueError, match=r"missing: bond_directions, hops$"):
        MoleculeBatch.from_tensors(partial)


def test_beams_repeat_each_prompt():
    """The way `generate` repeats the tensors one by one."""
    rows = [[encoded(molecule, **{"2d": 1, "3d": 2}) for molecule in row] for row in ROWS]
    batch = batch_molecules(rows, {"[C]": 2})
    assert set(batch.tensors()) == set(MOLECULE_TENSORS)
    beams = batch.repeat_interleave(3)
    assert_same(beams, batch_molecules([row for row in rows for _ in range(3)], {"[C]": 2}))


PARTS = {
    "of other sizes": (ROWS[:1], ROWS[1:]),
    "the larger ones last": (ROWS[1:], ROWS[:1]),
    "three": (ROWS[2:], ROWS[1:2], ROWS[:1]),
    "without molecules": ([[]], ROWS[1:], [[], []]),
    "one": (ROWS,),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_concatenation_is_the_batch_of_all_rows(parts):
    batches = [batch_molecules(rows, {"[C]": 2}) for rows in parts]
    together = batch_molecules([row for rows in parts for row in rows], {"[C]": 2})
    assert_same(MoleculeBatch.cat(batches), together)


def test_concatenation_of_other_modalities():
    flat, whole = batch_molecules(ROWS[:1], {}, ("1d",)), batch_molecules(ROWS[1:], {})
    both = MoleculeBatch.cat([flat, whole])
    assert both.has_2d.tolist() == [[False, False], [True, False], [True, True]]
    assert (both.hops[0] == 255).all()
    assert not both.coordinates[0].any()
    assert (both.edge_index[0] == -1).all()


def test_concatenation_keeps_stored_outputs_where_every_molecule_has_them():
    ring = [[encoded(features("C1CC1"), **{"2d": 1, "3d": 2})]]
    flat = [[encoded(features("CCO", embed=False), **{"2d": 3})]]  # needs none of 3D
    batches = [batch_molecules(rows, {}) for rows in (ring, flat, [[]])]
    assert batches[1].encoded_3d is None
    both = MoleculeBatch.cat(batches)
    assert_same(both, batch_molecules([*ring, *flat, []], {}))
    assert both.encoded_3d[:, 0, 0, 0, 0].tolist() == [2, 0, 0]
    plain = batch_molecules([[features("CC")]], {})
    mixed = MoleculeBatch.cat([batches[0], plain])
    assert mixed.encoded_2d is None
    assert mixed.encoded_3d is None
    deeper = batch_molecules([[encoded(features("CC"), levels=4, **{"2d": 1, "3d": 1})]], {})
    with pytest.raises(ValueError, match=r"encoded_2d has levels and channels \[2, 3\], \[4, 3\]"):
        MoleculeBatch.cat([batches[0], deeper])


def test_nothing_to_concatenate():
    with pytest.raises(ValueError, match="give at least one"):
        MoleculeBatch.cat([])


def test_a_dtype_is_for_stored_outputs_alone():
    batch = batch_molecules([[encoded(features("CCO"), **{"2d": 1, "3d": 2})]], {})
    narrow = batch.to("cpu", torch.bfloat16)
    assert {narrow.encoded_2d.dtype, narrow.encoded_3d.dtype} == {torch.bfloat16}
    others = {n: x for n, x in batch.tensors().items() if not n.startswith("encoded")}
    assert all(torch.equal(getattr(narrow, name), x) for name, x in others.items())
    assert narrow.coordinates.dtype == torch.float32
    assert_same(batch.to("cpu"), batch)
    assert {x.device.type for x in batch.to("meta").tensors().values()} == {"meta"}


def test_pinning_asks_every_tensor(monkeypatch):
    """Without a GPU nothing can be pinned: each tensor is asked, and what it answers is kept."""
    batch = batch_molecules(ROWS, {"[C]": 2})
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: asked.append(x) or x.clone())
    pinned = batch.pin_memory()
    assert len(asked) == len(batch.tensors())
    assert_same(pinned, batch)
    assert pinned.hops is not batch.hops


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning and moving need a GPU")
def test_pinned_and_moved_to_the_gpu():
    batch = batch_molecules(ROWS, {"[C]": 2})
    pinned = batch.pin_memory()
    assert all(x.is_pinned() for x in pinned.tensors().values())
    moved = pinned.to("cuda", non_blocking=True)
    assert {x.device.type for x in moved.tensors().values()} == {"cuda"}
    assert_same(moved.to("cpu"), batch)


def test_accelerate_moves_it():
    """Hooks of a model that lies on several devices move arguments that have `to`."""
    from accelerate.utils import send_to_device

    (moved,) = send_to_device((batch_molecules(ROWS, {}),), "meta", non_blocking=True)
    assert moved.hops.device.type == "meta"


def test_the_flat_view_and_its_relations():
    batch = batch_molecules(ROWS, {"[C]": 2})
    flat = batch.flat()
    assert flat.molecule_valid.tolist() == [True, True, True, False, True, True]
    assert torch.equal(flat.hops[4], batch.hops[2, 0])
    for relations in (batch.relations(), flat.relations()):
        assert not relations.packed
        assert torch.equal(relations.hops, flat.hops)
        assert torch.equal(relations.coordinates, flat.coordinates)
        assert torch.equal(relations.valid, flat.atom_valid)
        assert relations.has_3d.tolist() == [True, False, True, False, False, True]


def test_attention_with_its_relations_ignores_garbage_in_padding():
    from collamo_kernels import CoAttention

    torch.manual_seed(0)
    batch = batch_molecules(ROWS, {})
    attention, x = CoAttention(8, 2), torch.randn(6, 13, 8)
    clean = attention(x, batch.relations())
    padding = ~batch.atom_valid
    batch.coordinates[padding] = torch.nan
    batch.coordinates[~batch.has_3d] = torch.nan
    batch.hops[padding] = 2
    batch.hops.transpose(-1, -2)[padding] = 2
    dirty = attention(x, batch.relations())
    assert torch.equal(clean, dirty)
    assert not dirty[~batch.flat().atom_valid].any()


def test_what_is_there_to_be_read():
    batch = batch_molecules(ROWS, {"[C]": 2})
    assert batch.present[0].tolist() == [[True, True, True], [True, True, False]]
    assert batch.present[1].tolist() == [[True, True, True], [False, False, False]]
    assert batch.valid("1d").sum(-1)[1:].tolist() == [[1, 0], [0, 3]]  # no SELFIES for a dummy atom
    assert batch.valid("2d").sum(-1).tolist() == [[13, 2], [1, 0], [2, 3]]
    assert batch.valid("3d").sum(-1).tolist() == [[13, 0], [1, 0], [0, 3]]
    assert batch.atomic_numbers[2, 1, :3].tolist() == [6, 6, 8]
    # A slot without a molecule stays one, whatever stands in its tensors.
    for name in ("has_1d", "has_2d", "has_3d", "atom_valid", "selfies_ids"):
        getattr(batch, name)[1, 1] = 1
    assert not batch.present[1, 1].any()
    assert not any(batch.valid(m)[1, 1].any() for m in ("1d", "2d", "3d"))


def test_narrowing_takes_hops_away_with_2d():
    batch = batch_molecules(ROWS, {"[C]": 2}).flat()
    present = batch.present & torch.tensor([True, False, True])
    narrow = batch.narrowed_to(present)
    assert torch.equal(narrow.present, present)
    assert (narrow.hops == 255).all()
    assert narrow.hops.dtype == torch.uint8
    assert torch.equal(narrow.coordinates, batch.coordinates)
    assert_same(batch.narrowed_to(batch.present), batch)
