from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from unimol_reference import unimol_reference

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
from collamo.model.encoders.gin import Edges, equal_atoms, flatten_edges
from collamo_kernels import use_backend
from collamo_kernels.testing import assert_accurate


def small_unimol():
    torch.manual_seed(1)
    sizes = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4}
    return UniMolEncoder(UniMolConfig(**sizes, num_gaussians=8, min_sigma=1e-2)).eval()


def small_gin(**options):
    torch.manual_seed(1)
    return GinEncoder(GinConfig(num_layers=3, hidden_size=16, **options)).eval()


@pytest.fixture
def batch(features):
    return batch_molecules([[m] for m in features.values()], {}).flat()


def gin_inputs(batch):
    names = ("atom_features", "edge_index", "edge_features", "atom_valid")
    return tuple(getattr(batch, name).clone() for name in names)


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
    # Å, up to 12 in float32: ten times the last place, 1e-6.
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
    assert list(levels) == list(range(6))
    for number, level in levels.items():
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


def unimol_inputs_of(batch):
    return unimol_inputs(batch.atomic_numbers, batch.coordinates, batch.atom_valid)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_unimol_without_padding_is_the_padded_formula(batch, backend):
    """Levels and logits, and the gradients of every weight."""
    encoder, inputs = small_unimol(), unimol_inputs_of(batch)
    inputs[0][0, 2] = 0  # padding may be anywhere
    real = inputs[0] != 0
    both = real[:, :, None] & real[:, None, :]

    def by_formula(encoder, inputs):
        levels, logits = unimol_reference(encoder, *inputs)
        return torch.stack(levels, 1), logits[-1].permute(0, 2, 3, 1)

    def ours(encoder, inputs):
        with use_backend(backend):
            levels = torch.stack(list(encoder.levels(*inputs).values()), 1)
            return levels, encoder(*inputs)[1]

    def run(function, dtype):
        encoder.to(dtype).zero_grad()
        tokens, distance, types = inputs
        levels, pair = function(encoder, (tokens, distance.to(dtype), types))
        generator = torch.Generator().manual_seed(2)
        answer = levels.transpose(1, 2)[real], pair[both]
        sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in answer).backward()
        gradients = {}  # the Gaussians' as one: what a few numbers err by is luck
        for name, parameter in encoder.named_parameters():
            key = "gbf" if name.startswith("gbf.") else name
            gradients.setdefault(key, []).append(parameter.grad.flatten())
        gradients = {name: torch.cat(parts) for name, parts in gradients.items()}
        return {"levels": answer[0], "pair": answer[1], **gradients}

    plain, found = run(by_formula, torch.float32), run(ours, torch.float32)
    exact = run(by_formula, torch.float64)
    for name, value in found.items():  # the factors of the error budget
        factor = {"levels": 2, "pair": 2, "gbf": 5}.get(name, 3)
        assert_accurate(value, plain[name], exact[name], factor=factor, name=name)


def test_unimol_padding_is_zero_and_unread(batch):
    encoder, (tokens, distance, types) = small_unimol(), unimol_inputs_of(batch)
    real = tokens != 0
    both = real[:, :, None] & real[:, None, :]
    representation, pair = encoder(tokens, distance, types)
    assert not representation[~real].any()
    assert not pair[~both].any()
    garbage = distance.masked_fill(~both, torch.nan), types.masked_fill(~both, 7)
    for one, other in zip((representation, pair), encoder(tokens, *garbage), strict=True):
        assert torch.equal(one, other)


def test_unimol_batch_is_its_singles(batch):
    encoder, inputs = small_unimol(), unimol_inputs_of(batch)
    together, _ = encoder(*inputs)
    for row, valid in enumerate(inputs[0] != 0):
        n = int(valid.sum())
        one, _ = encoder(
            *(x[row : row + 1, :n] if x.dim() == 2 else x[row : row + 1, :n, :n] for x in inputs)
        )
        torch.testing.assert_close(one[0], together[row, :n], atol=2e-6, rtol=0)


def test_unimol_wanted_levels_alone(batch):
    encoder, inputs = small_unimol(), unimol_inputs_of(batch)
    every = encoder.levels(*inputs)
    some = encoder.levels(*inputs, [0, 2])
    assert list(some) == [0, 2]
    assert all(torch.equal(level, every[number]) for number, level in some.items())


@pytest.mark.parametrize("molecules", [0, 2])
def test_unimol_of_nothing(molecules):
    tokens = torch.zeros(molecules, 3, dtype=torch.long)
    pairs = torch.zeros(molecules, 3, 3)
    representation, pair = small_unimol()(tokens, pairs, pairs.long())
    assert representation.shape == (molecules, 3, 32)
    assert pair.shape == (molecules, 3, 3, 4)
    assert not representation.any()


@pytest.mark.parametrize("half", ["weights", "autocast"])
def test_unimol_in_bfloat16(batch, half):
    encoder, inputs = small_unimol(), unimol_inputs_of(batch)
    real = inputs[0] != 0
    exact, _ = encoder(*inputs)
    encoder = encoder.bfloat16() if half == "weights" else encoder
    with torch.autocast("cpu", enabled=half == "autocast"):
        representation, pair = encoder(*inputs)
        plain = unimol_reference(encoder.float(), *inputs)[0][-1]
    assert pair.dtype == torch.float32
    # bfloat16 has 8 bits; the formula under autocast makes an error of the same size.
    error = (representation.float() - exact)[real].abs().mean()
    if half == "autocast":
        assert error <= 2 * (plain.float() - exact)[real].abs().mean()
    assert error <= 2e-2


def test_unimol_dropout_in_training(batch):
    torch.manual_seed(0)
    encoder, inputs = small_unimol().train(), unimol_inputs_of(batch)
    encoder.encoder.layers[0].self_attn.dropout = 0.5
    one, _ = encoder(*inputs)
    assert not torch.equal(one, encoder(*inputs)[0])
    one.sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


def rotated(coordinates):
    generator = torch.Generator().manual_seed(3)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    return coordinates @ turn.T + torch.tensor([5.0, -7.0, 11.0])


def test_unimol_does_not_see_rotation_and_translation(batch):
    encoder = small_unimol()
    atomic, valid = batch.atomic_numbers, batch.atom_valid
    with torch.no_grad():
        here, _ = encoder(*unimol_inputs(atomic, batch.coordinates, valid))
        there, _ = encoder(*unimol_inputs(atomic, rotated(batch.coordinates), valid))
        moved = batch.coordinates * 1.1
        other, _ = encoder(*unimol_inputs(atomic, moved, valid))
    # Distances after the move differ by float32 rounding of ~10 Å, 1e-6; 1e-4 is the promise.
    assert (here - there)[:, 1:-1][valid].abs().max() <= 1e-4
    assert (here - other)[:, 1:-1][valid].abs().max() > 1e-3


def test_unimol_absent_conformers_stay_finite(batch):
    valid = torch.zeros_like(batch.atom_valid)
    places = torch.full_like(batch.coordinates, torch.nan)
    inputs = unimol_inputs(batch.atomic_numbers, places, valid)
    representation, pair = small_unimol()(*inputs)
    assert representation.isfinite().all()
    assert pair.isfinite().all()


# --- frozen ----------------------------------------------------------------------------------


def levels_of(encoder, batch):
    if isinstance(encoder, GinEncoder):
        return encoder.levels(*gin_inputs(batch))
    return encoder.levels(*unimol_inputs_of(batch))


@pytest.mark.parametrize("make", [small_unimol, small_gin])
def test_frozen_encoders_leave_tensors_that_autograd_can_save(batch, make):
    encoder = make()
    learned = levels_of(encoder, batch)
    encoder.requires_grad_(False)
    seen = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda *_: seen.append(torch.is_inference_mode_enabled())
    )
    frozen = levels_of(encoder, batch)
    hook.remove()
    assert seen
    assert all(seen)
    for number, level in frozen.items():
        assert learned[number].requires_grad
        assert not level.requires_grad
        assert not level.is_inference()
        torch.testing.assert_close(level, learned[number].detach(), atol=2e-6, rtol=0)
    head = nn.Linear(frozen[1].shape[-1], 1)
    head(frozen[1]).sum().backward()
    assert head.weight.grad.abs().sum() > 0
    if isinstance(encoder, GinEncoder):
        graph = (
            batch.atom_features[0],
            torch.zeros(2, 0, dtype=torch.long),
            torch.zeros(0, 3).long(),
        )
        assert not any(level.is_inference() for level in encoder(*graph))


def test_a_frozen_unimol_still_differentiates_distances(batch):
    encoder = small_unimol().requires_grad_(False)
    tokens, distance, types = unimol_inputs_of(batch)
    distance.requires_grad_()
    encoder(tokens, distance, types)[0].sum().backward()
    assert distance.grad.abs().sum() > 0


# --- GIN -------------------------------------------------------------------------------------


def test_gin_ignores_garbage_in_padding(batch):
    encoder, inputs = small_gin(), gin_inputs(batch)
    atoms, edges, bonds, valid = gin_inputs(batch)
    atoms[~valid] = 1
    edges[edges < 0] = atoms.shape[1] - 1  # an edge to an atom that only the largest one has
    edges[1] = inputs[1][1]
    levels, same = encoder.levels(*inputs), encoder.levels(atoms, edges, bonds, valid)
    assert all(torch.equal(levels[number], same[number]) for number in range(4))


def test_gin_batch_statistics_do_not_see_padding(features):
    alone = batch_molecules([[features["CCO"]]], {})
    beside = batch_molecules([[features["CCO"], features["CC(=O)Oc1ccccc1C(=O)O"]]], {})
    statistics = []
    for batch in (alone, beside):
        encoder = small_gin().train()
        encoder.levels(*(tensor[:1] for tensor in gin_inputs(batch.flat())))
        statistics.append(encoder.batch_norms[0].running_mean)
    assert torch.equal(*statistics)


@pytest.mark.parametrize("atoms", [0, 1])
def test_gin_trains_on_a_single_atom_and_on_none(features, atoms):
    flat = batch_molecules([[features["C"]]], {}).flat()
    flat.atom_valid[:] = bool(atoms)
    encoder = small_gin().train()
    out = encoder.levels(*gin_inputs(flat))[3]
    out.sum().backward()
    assert out.isfinite().all()
    assert torch.equal(encoder.batch_norms[0].running_mean, torch.zeros(16))


def test_gin_permutation(features):
    batch = batch_molecules([[features["CC(=O)Oc1ccccc1C(=O)O"]]], {})
    atoms, edges, bonds, valid = gin_inputs(batch.flat())
    order = torch.randperm(atoms.shape[1])
    place = order.argsort()
    encoder = small_gin()
    with torch.no_grad():
        one = encoder.levels(atoms, edges, bonds, valid)[3]
        two = encoder.levels(atoms[:, order], place[edges], bonds, valid)[3]
    # Sums in another order: float32 rounding only.
    torch.testing.assert_close(one[:, order], two, atol=1e-5, rtol=0)


def flat_graph(batch):
    atoms, edges, bonds, valid = gin_inputs(batch)
    return atoms[valid], *flatten_edges(edges, bonds, valid)


def test_equal_atoms_are_those_that_refinement_by_hand_cannot_tell_apart(batch):
    x, edges, bonds = flat_graph(batch)
    colours = [tuple(row) for row in x.tolist()]
    bonds_of = list(zip(*edges.tolist(), bonds.tolist(), strict=True))
    kind = small_gin().gnns[0].bond_encoder.kinds(bonds)
    found = equal_atoms(x, Edges.sorted_by_target(edges, kind, len(x)), 4)
    assert len(found) == 5
    for classes in found:
        distinct = sorted(set(classes.tolist()))
        assert distinct == list(range(len(set(colours))))
        assert len(set(zip(classes.tolist(), colours, strict=True))) == len(distinct)
        around = [sorted((colours[s], b) for s, t, b in bonds_of if t == i) for i in range(len(x))]
        colours = [hash((own, str(rows))) for own, rows in zip(colours, around, strict=True)]
    assert len(distinct) < len(x)  # some are equal to the end


@pytest.mark.parametrize("flavour", ["ogb", "pretrain-gnns"])
def test_a_frozen_gin_works_equal_atoms_out_once(batch, flavour):
    """The levels are those of the path that learns, and rows are fewer."""
    graph = flat_graph(batch)
    if flavour == "pretrain-gnns":
        graph = graph[0][:, :2], graph[1], graph[2][:, :2].clamp(max=2)
        graph[0][:, 1].clamp_(max=2)
    encoder, rows = small_gin(flavour=flavour), []
    for norm in encoder.batch_norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    encoder.gnns[0].register_forward_hook(lambda _, __, out: rows.append(len(out)))
    plain, exact = encoder(*graph), encoder.double()(*graph)
    frozen = encoder.float().requires_grad_(False)(*graph)
    assert rows[0] == rows[1] == len(graph[0]) > rows[2]
    for ours, theirs, truth in zip(frozen, plain, exact, strict=True):
        assert_accurate(ours, theirs, truth)


def test_a_gin_in_training_mode_without_gradients_sees_every_atom(batch):
    """Equal atoms count as often as they are there in batch statistics."""
    one, other = small_gin().train(), small_gin().train()
    graph = flat_graph(batch)
    one(*graph)
    with torch.no_grad():
        other(*graph)
    for ours, theirs in zip(other.batch_norms, one.batch_norms, strict=True):
        assert torch.equal(ours.running_mean, theirs.running_mean)


@pytest.mark.parametrize("frozen", ["before", "after"])
def test_frozen_batch_statistics_do_not_drift(batch, frozen):
    """Whichever came first, freezing or training mode, and although other weights train."""
    encoder = small_gin().eval()
    with torch.no_grad():
        expected = encoder(*flat_graph(batch))
    encoder.train(frozen == "after")
    for norm in (m for m in encoder.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.requires_grad_(False)
    encoder.train()
    statistics = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    levels = encoder(*flat_graph(batch))
    levels[-1].square().sum().backward()
    assert all(torch.equal(x, statistics[name]) for name, x in encoder.named_buffers())
    assert encoder.gnns[0].mlp[0].weight.grad.any()
    for ours, theirs in zip(levels, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


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
