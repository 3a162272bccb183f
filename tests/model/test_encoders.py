from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from collamo.data.batch import batch_molecules
from collamo.model import load_gin
from collamo.model.configuration import GinConfig, SelfiesEncoderConfig, UniMolConfig
from collamo.model.encoders import (
    UNIMOL_DICTIONARY,
    GinEncoder,
    SelfiesEncoder,
    UniMolEncoder,
    unimol_inputs,
)


def small_unimol():
    torch.manual_seed(1)
    sizes = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4}
    return UniMolEncoder(UniMolConfig(**sizes, num_gaussians=8, min_sigma=1e-2)).eval()


def small_gin(**options):
    torch.manual_seed(1)
    return GinEncoder(GinConfig(num_layers=3, hidden_size=16, **options)).eval()


@pytest.fixture
def batch(features):
    tensors = batch_molecules([[m] for m in features.values()], {})
    return {name: tensor.flatten(0, 1) for name, tensor in tensors.items()}


def gin_inputs(batch):
    names = ("atom_features", "edge_index", "edge_features", "atom_valid")
    return tuple(batch[name].clone() for name in names)


# --- official outputs ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["padded", "nopad"])
def test_unimol_inputs_are_the_official_ones(shared_golden, name):
    data = load_file(shared_golden / f"unimol_{name}.safetensors")
    numbers, places, ptr = (data[f"raw.{key}"] for key in ("atomic_numbers", "coords", "ptr"))
    heavy = [(numbers[a:b] != 1).nonzero()[:, 0] + a for a, b in pairwise(ptr)]
    shape = (len(heavy), data["in.src_tokens"].shape[1] - 2)
    atomic, valid = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    coordinates = torch.full((*shape, 3), torch.nan)
    for row, atoms in enumerate(heavy):
        atomic[row, : len(atoms)] = numbers[atoms]
        coordinates[row, : len(atoms)] = places[atoms]
        valid[row, : len(atoms)] = True
    tokens, distance, types = unimol_inputs(atomic, coordinates, valid)
    assert torch.equal(tokens, data["in.src_tokens"])
    assert torch.equal(types, data["in.src_edge_type"])
    torch.testing.assert_close(distance, data["in.src_distance"], atol=1e-5, rtol=0)


def test_gin_in_a_padded_batch_gives_the_official_levels(shared_golden):
    encoder = load_gin(shared_golden / "gin_checkpoint_ogb136.safetensors")
    data = load_file(shared_golden / "gin_io.safetensors")
    x, edges, bonds, molecule = (data[f"in.{k}"] for k in ("x", "edge_index", "edge_attr", "batch"))
    # As one molecule with an atom of padding: GIN does not care which atoms hang together.
    valid = torch.ones(1, len(x) + 1, dtype=torch.bool)
    valid[0, -1] = False
    padded = torch.cat([x, torch.zeros_like(x[:1])])[None]
    with torch.no_grad():
        levels = encoder.levels(padded, edges.T[None], bonds[None], valid)
    assert len(molecule) == len(x)
    for number, level in enumerate(levels):
        torch.testing.assert_close(level[valid], data[f"mid.h{number}"], atol=1e-5, rtol=0)


# --- Uni-Mol ---------------------------------------------------------------------------------


def test_dictionary():
    assert len(UNIMOL_DICTIONARY) == 31
    assert UNIMOL_DICTIONARY[:5] == ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "C")
    tokens, _, _ = unimol_inputs(
        torch.tensor([[6, 92, 3, 119]]), torch.zeros(1, 4, 3), torch.ones(1, 4, dtype=torch.bool)
    )
    names = [UNIMOL_DICTIONARY[i] for i in tokens[0]]
    assert names == ["[CLS]", "C", "[UNK]", "Li", "[UNK]", "[SEP]"]


def test_centroid_is_where_cls_and_sep_sit():
    places = torch.tensor([[[1.0, 0, 0], [3.0, 0, 0], [9e9, 9e9, 9e9]]])
    valid = torch.tensor([[True, True, False]])
    _, distance, _ = unimol_inputs(torch.tensor([[6, 6, 0]]), places, valid)
    expected = torch.tensor([0.0, 1, 1, 0, 0])  # [CLS] C C [SEP] [PAD]
    assert torch.equal(distance[0, 0], expected)
    assert torch.equal(distance[0, 3], expected)


def rotated(coordinates):
    generator = torch.Generator().manual_seed(3)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    return coordinates @ turn.T + torch.tensor([5.0, -7.0, 11.0])


def test_unimol_does_not_see_rotation_and_translation(batch):
    encoder = small_unimol()
    atomic, valid = batch["atom_features"][..., 0] + 1, batch["atom_valid"]
    with torch.no_grad():
        here, _ = encoder(*unimol_inputs(atomic, batch["coordinates"], valid))
        there, _ = encoder(*unimol_inputs(atomic, rotated(batch["coordinates"]), valid))
        moved = batch["coordinates"] * 1.1
        other, _ = encoder(*unimol_inputs(atomic, moved, valid))
    # Distances after the move differ by float32 rounding of ~10 Å, 1e-6; 1e-4 is the promise.
    assert (here - there)[:, 1:-1][valid].abs().max() <= 1e-4
    assert (here - other)[:, 1:-1][valid].abs().max() > 1e-3


def test_unimol_absent_conformers_stay_finite(batch):
    valid = torch.zeros_like(batch["atom_valid"])
    places = torch.full_like(batch["coordinates"], torch.nan)
    inputs = unimol_inputs(batch["atom_features"][..., 0] + 1, places, valid)
    representation, pair = small_unimol()(*inputs)
    assert representation.isfinite().all()
    assert pair.isfinite().all()


# --- GIN -------------------------------------------------------------------------------------


def test_gin_ignores_garbage_in_padding(batch):
    encoder, inputs = small_gin(), gin_inputs(batch)
    atoms, edges, bonds, valid = gin_inputs(batch)
    atoms[~valid] = 1
    edges[edges < 0] = atoms.shape[1] - 1  # an edge to an atom that only the largest one has
    edges[1] = inputs[1][1]
    assert all(
        map(torch.equal, encoder.levels(*inputs), encoder.levels(atoms, edges, bonds, valid))
    )


def test_gin_batch_statistics_do_not_see_padding(features):
    alone = batch_molecules([[features["CCO"]]], {})
    beside = batch_molecules([[features["CCO"], features["CC(=O)Oc1ccccc1C(=O)O"]]], {})
    statistics = []
    for batch in (alone, beside):
        encoder = small_gin().train()
        flat = {name: tensor.flatten(0, 1)[:1] for name, tensor in batch.items()}
        encoder.levels(*gin_inputs(flat))
        statistics.append(encoder.batch_norms[0].running_mean)
    assert torch.equal(*statistics)


@pytest.mark.parametrize("atoms", [0, 1])
def test_gin_trains_on_a_single_atom_and_on_none(features, atoms):
    batch = batch_molecules([[features["C"]]], {})
    flat = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
    flat["atom_valid"][:] = bool(atoms)
    encoder = small_gin().train()
    out = encoder.levels(*gin_inputs(flat))[-1]
    out.sum().backward()
    assert out.isfinite().all()
    assert torch.equal(encoder.batch_norms[0].running_mean, torch.zeros(16))


def test_gin_permutation(features):
    batch = batch_molecules([[features["CC(=O)Oc1ccccc1C(=O)O"]]], {})
    atoms, edges, bonds, valid = gin_inputs({n: t.flatten(0, 1) for n, t in batch.items()})
    order = torch.randperm(atoms.shape[1])
    place = order.argsort()
    encoder = small_gin()
    with torch.no_grad():
        one = encoder.levels(atoms, edges, bonds, valid)[-1]
        two = encoder.levels(atoms[:, order], place[edges], bonds, valid)[-1]
    # Sums in another order: float32 rounding only.
    torch.testing.assert_close(one[:, order], two, atol=1e-5, rtol=0)


# --- SELFIES ---------------------------------------------------------------------------------


def test_selfies_order_matters_and_padding_does_not():
    encoder = SelfiesEncoder(SelfiesEncoderConfig(vocab_size=9, hidden_size=8, max_positions=4))
    encoder.eval()
    ids = torch.tensor([[2, 3, 4, 5, 6, 0]])
    out = encoder(ids, ids > 0)
    assert out.shape == (1, 6, 8)
    assert not out[0, 5].any()
    swapped = encoder(ids[:, [1, 0, 2, 3, 4, 5]], ids > 0)
    assert not torch.equal(out[0, 0], swapped[0, 1])
    same = torch.tensor([[2, 2, 2, 2, 2, 2]])
    late = encoder(same, same > 0)[0]
    assert torch.equal(late[3], late[5])  # positions past the last share it
    assert not torch.equal(late[2], late[3])
