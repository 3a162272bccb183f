from dataclasses import replace
from itertools import product

import pytest
import torch

from collamo.data.batch import MoleculeBatch
from collamo.model.configuration import MODALITIES, ProjectorConfig
from collamo.model.projector import (
    CoProjector,
    CrossAttention,
    LearnedQueries,
    LevelInputs,
    RelationBias,
    drop_modalities,
    without_phi,
)

SUBSETS = [subset for subset in product([False, True], repeat=3) if any(subset)]
WIDTHS = {"1d": 6, "2d": 8, "3d": 10}
LEVELS = {"1d": 1, "2d": 3, "3d": 4}


def projector(**options):
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "num_gaussians": 6}
    config = ProjectorConfig(
        **{**sizes, "num_layers": 2, "num_query_tokens": 3, "hop_buckets": 8, **options}
    )
    return CoProjector(config, WIDTHS, LEVELS, text_width=12).eval()


def case(present=(True, True, True), atoms=5, tokens=4, batch=2, seed=0):
    """Random levels and relations of `batch` molecules, the last atom and token padding."""
    g = torch.Generator().manual_seed(seed)
    present = torch.tensor([present] * batch)
    length = {"1d": tokens, "2d": atoms, "3d": atoms}
    levels = {
        m: tuple(torch.randn(batch, length[m], WIDTHS[m], generator=g) for _ in range(LEVELS[m]))
        for m in MODALITIES
    }
    chain = (torch.arange(atoms)[:, None] - torch.arange(atoms)).abs().to(torch.uint8)
    hops = chain.expand(batch, -1, -1).clone()
    hops[:, -1], hops[:, :, -1] = 255, 255
    hops[~present[:, 1]] = 255
    molecules = MoleculeBatch(
        selfies_ids=(torch.arange(tokens) < tokens - 1).long().expand(batch, -1),
        atom_features=torch.zeros(batch, atoms, 9, dtype=torch.long),
        atom_valid=(torch.arange(atoms) < atoms - 1).expand(batch, -1),
        edge_index=torch.empty(batch, 0, 2, dtype=torch.long),
        edge_features=torch.empty(batch, 0, 3, dtype=torch.long),
        bond_directions=torch.empty(batch, 0, dtype=torch.long),
        hops=hops,
        coordinates=torch.randn(batch, atoms, 3, generator=g),
        **{f"has_{m}": present[:, i] for i, m in enumerate(MODALITIES)},
        molecule_valid=torch.ones(batch, dtype=torch.bool),
    )
    return levels, molecules


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("multi_level", [True, False])
@pytest.mark.parametrize("zero_attention", [True, False])
@pytest.mark.parametrize("sinks", [True, False])
def test_every_parameter_gets_gradient(share, multi_level, zero_attention, sinks):
    model = projector(
        share_relation_bias=share,
        multi_level=multi_level,
        zero_attention=zero_attention,
        sinks=sinks,
    )
    out = model(*case())
    assert out.shape == (2, 3, 12)
    (out * torch.randn_like(out)).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in silent if not _is_inert(name, zero_attention, sinks)] == []


def _is_inert(name, zero_attention, sinks=False):
    """Whether softmax ignores a parameter: it shifts a whole row of logits.

    A key's bias and the last bias of Φ3d do; beside a zero key or a sink they count.
    """
    if name.endswith("radial.head.2.bias"):
        return not sinks
    counts = zero_attention if "gather" in name else sinks and "1d" not in name
    return name.endswith("attention.key.bias") and not counts


@pytest.mark.parametrize("present", SUBSETS)
def test_absent_modalities_are_not_read(present):
    """Encoder garbage, hops and coordinates of an absent modality change no bit."""
    model = projector()
    levels, molecules = case(present)
    for i, m in enumerate(MODALITIES):
        if not present[i]:
            levels[m][-1].fill_(torch.nan)
            levels[m][0].fill_(torch.nan)
    if not present[2]:
        molecules.coordinates.fill_(torch.nan)
    out = model(*case(present))
    assert out.isfinite().all()
    assert torch.equal(out, model(levels, molecules))


@pytest.mark.parametrize("present", SUBSETS)
def test_every_subset_gives_its_own_tokens(present):
    model = projector()
    full, part = model(*case()), model(*case(present))
    assert part.isfinite().all()
    assert (part == full).all() == all(present)


def test_queries_are_the_base_and_the_modalities_present():
    queries = LearnedQueries(3, 4)
    present = torch.tensor([[True, False, True], [False, False, False]])
    p = queries(present)
    base, (one, _, three) = queries.base, queries.modality
    torch.testing.assert_close(p[0], base + one + three)
    assert torch.equal(p[1], base)


@pytest.mark.parametrize("sinks", [True, False])
@pytest.mark.parametrize("share", [True, False])
def test_absent_2d_adds_no_hop_bias(share, sinks):
    """One hop value throughout is no Φ2d: the table's values do not matter, nor get gradient."""
    model = projector(share_relation_bias=share, sinks=sinks)
    tables = [bias.hop_bias for bias in model.modules() if isinstance(bias, RelationBias)]
    inputs = case((True, False, True))
    before = model(*inputs)
    with torch.no_grad():
        for table in tables:
            table.mul_(100).add_(1)
    after = model(*inputs)
    # The constant is added to float32 logits, so it costs their last bits: 1e-5 of values near 1.
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    after.sum().backward()
    assert max(table.grad.abs().max() for table in tables) < 1e-6
    assert not torch.allclose(model(*case()), before, atol=1e-2)  # with 2D it does matter


@pytest.mark.parametrize("sinks", [True, False])
def test_absent_3d_adds_no_distance_bias(sinks):
    model = projector(sinks=sinks)
    inputs = case((True, True, False))
    model(*inputs).sum().backward()
    assert all(not p.grad.any() for p in model.relation_bias.radial.parameters())


@pytest.mark.parametrize("sinks", [True, False])
@pytest.mark.parametrize("zero_attention", [True, False])
def test_a_padding_molecule_is_zero_forward_and_backward(zero_attention, sinks):
    model = projector(zero_attention=zero_attention, sinks=sinks)
    inputs = case((False, False, False))
    out = model(*inputs)
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(not g.any() for g in grads)


@pytest.mark.parametrize("sinks", [True, False])
def test_garbage_in_padding_changes_nothing(sinks):
    model, (levels, molecules) = projector(sinks=sinks), case()
    for m in MODALITIES:
        for level in levels[m]:
            level[:, -1] = torch.nan
    molecules.coordinates[:, -1] = torch.nan
    molecules.hops[:, -1] = 3
    molecules.hops[:, :, -1] = 7
    assert torch.equal(model(*case()), model(levels, molecules))


def test_no_layer_works_on_padding():
    """Rows that linear maps see: of 2 molecules 3 real tokens, 4 real atoms and 3 queries each."""
    model, rows = projector(), {}

    def count(part):
        return lambda module, args, _: rows.update({part: args[0].shape[:-1].numel()})

    for name, module in model.layers[1].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count(name))
    model(*case())
    wanted = {"branches.1d": 6, "branches.2d": 8, "branches.3d": 8, "gather": 6}
    wanted = {name: wanted[name.rsplit(".", 2)[0]] for name in rows}
    wanted |= {f"gather.attention.{name}": 6 + 8 + 8 for name in ("key", "value")}
    assert rows == wanted
    assert len(rows) == 3 * 6 + 6


def test_rotation_translation_and_permutation_of_atoms():
    model, (levels, molecules) = projector(), case(atoms=7)
    before = model(levels, molecules)
    turn, _ = torch.linalg.qr(torch.randn(3, 3))
    moved = replace(molecules, coordinates=molecules.coordinates @ turn.T + 3)
    torch.testing.assert_close(before, model(levels, moved), atol=1e-4, rtol=0)
    order = torch.randperm(7)
    levels = {
        m: tuple(level if m == "1d" else level[:, order] for level in levels[m]) for m in MODALITIES
    }
    shuffled = replace(
        molecules,
        atom_valid=molecules.atom_valid[:, order],
        hops=molecules.hops[:, order][:, :, order],
        coordinates=molecules.coordinates[:, order],
    )
    torch.testing.assert_close(before, model(levels, shuffled), atol=1e-4, rtol=0)


def test_distance_and_hops_matter():
    model, (levels, molecules) = projector(), case()
    before = model(levels, molecules)
    moved = replace(molecules, coordinates=2 * molecules.coordinates)
    assert not torch.equal(before, model(levels, moved))
    nearer = replace(molecules, hops=molecules.hops.clamp(max=1))
    assert not torch.equal(before, model(levels, nearer))


def packed(tokens):
    """Tokens [B,T,C] as the attention takes them, all of them real: [B·T,C] and their places."""
    tokens = tokens.flatten(0, 1)
    return tokens, torch.arange(len(tokens))


def test_zero_attention_counts_and_the_plain_average_does_not():
    p, token = torch.ones(1, 1, 4), torch.tensor([[[1.0, 0, 0, 0]]])
    results = {}
    for zero_attention in (True, False):
        torch.manual_seed(0)
        attention = CrossAttention(4, 1, zero_attention)
        results[zero_attention] = [
            attention(p, *packed(token.expand(1, n, 4)), torch.ones(1, 1, n, dtype=torch.bool))
            for n in (1, 4)
        ]
    one, four = results[False]
    torch.testing.assert_close(one, four)
    one, four = results[True]
    assert not torch.allclose(one, four, atol=1e-3)


def test_a_head_counts_to_where_its_zero_key_is():
    """n tokens of logit 0 against a zero key of logit z are n/(n + e^z)."""
    attention = CrossAttention(8, 4, zero_attention=True, sinks=True).double()
    assert attention.zero_logit.tolist() == pytest.approx([1, 7 / 3, 11 / 3, 5])
    torch.nn.init.zeros_(attention.query.weight)
    torch.nn.init.zeros_(attention.query.bias)
    p, reach = torch.ones(1, 1, 8).double(), torch.ones(1, 1, 20, dtype=torch.bool)
    weights = attention.weights(p, *packed(torch.randn(1, 20, 8).double()), reach)
    expected = 20 / (20 + attention.zero_logit.exp())
    torch.testing.assert_close(weights[0, :, 0, :20].sum(-1), expected)


@pytest.mark.parametrize("sinks", [True, False])
@pytest.mark.parametrize("zero_attention", [True, False])
def test_the_weights_are_those_of_the_forward_pass(zero_attention, sinks):
    attention = CrossAttention(8, 2, zero_attention, sinks).double()
    p, tokens = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 8).double()
    reach = torch.rand(2, 3, 5) < 0.6
    reach[1, 2] = False  # a query that may see nothing
    weights = attention.weights(p, *packed(tokens), reach)
    assert weights.shape == (2, 2, 3, 5 + zero_attention)
    torch.testing.assert_close(weights.sum(-1), reach.any(-1).double()[:, None].expand(2, 2, 3))
    assert (weights[..., :5][~reach[:, None].expand(2, 2, 3, 5)] == 0).all()
    values = attention.value(tokens).unflatten(-1, (2, 4)).transpose(1, 2)
    read = (weights[..., :5] @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.output(read), attention(p, *packed(tokens), reach))


def test_zero_attention_is_that_of_multihead_attention():
    torch.manual_seed(0)
    ours = CrossAttention(8, 2, zero_attention=True).double()
    theirs = torch.nn.MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True).double()
    with torch.no_grad():
        parts = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    p, tokens = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 8).double()
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    expected, _ = theirs(p, tokens, tokens, key_padding_mask=~valid)
    torch.testing.assert_close(ours(p, *packed(tokens), valid[:, None]), expected)


ABLATIONS = ({"phi2d": False}, {"phi3d": False}, {"collaboration": False})


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_what_an_ablation_leaves_out_is_not_read(ablation, share):
    model, (levels, molecules) = projector(share_relation_bias=share, **ablation), case()
    before = model(levels, molecules)
    other_hops = model(levels, replace(molecules, hops=molecules.hops.clamp(max=1)))
    moved = model(levels, replace(molecules, coordinates=2 * molecules.coordinates))
    assert torch.equal(before, other_hops) == ("phi3d" not in ablation)
    assert torch.equal(before, moved) == ("phi2d" not in ablation)
    (before * torch.randn_like(before)).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in silent if not _is_inert(name, zero_attention=True)] == []


@pytest.mark.parametrize("zero_attention", [True, False])
def test_without_collaboration_a_query_reads_one_modality(zero_attention):
    model = projector(collaboration=False, num_query_tokens=7, zero_attention=zero_attention)
    before, of_query = model(*case()), [0, 0, 0, 1, 1, 2, 2]
    for i, m in enumerate(MODALITIES):
        levels, molecules = case()
        for level in levels[m]:
            level.neg_()
        changed = (model(levels, molecules) != before).any(-1)
        assert changed.tolist() == [[k == i for k in of_query]] * 2


@pytest.mark.parametrize("probability", [0.2, 0.9, 1.0])
def test_modality_dropout_never_drops_all_and_never_invents(probability):
    torch.manual_seed(0)
    present = torch.tensor(SUBSETS * 300 + [(False, False, False)] * 10)
    kept = drop_modalities(present, probability)
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(1), present.any(1))
    alone = kept[present.all(1)].double().mean(0)
    # 300 draws each: four standard errors of the expected share.
    share = (1 - probability) + probability**3 / 3
    assert (alone - share).abs().max() < 4 * (share * (1 - share) / 300) ** 0.5 + 1e-9


def test_multi_level_takes_spread_levels_and_ends_at_the_output():
    def levels(num_layers, num_levels, multi_level=True):
        config = ProjectorConfig(num_layers=num_layers, hidden_size=8, multi_level=multi_level)
        return LevelInputs(config, 4, num_levels).level

    assert levels(5, 6) == [1, 2, 3, 4, 5]  # GIN
    assert levels(5, 16) == [3, 6, 9, 12, 15]  # Uni-Mol
    assert levels(5, 1) == [0]  # SELFIES has one level
    assert levels(5, 6, multi_level=False) == [5]


def test_same_relations_are_shared_or_owned():
    shared, owned = projector(), projector(share_relation_bias=False)
    count = sum("hop_bias" in name for name, _ in shared.named_parameters())
    assert count == 1
    names = [name for name, _ in owned.named_parameters() if "hop_bias" in name]
    assert len(names) == 2 * 2  # layers × atom branches
    assert not any("1d" in name for name in names)


def test_sinks_stand_where_atoms_attend_and_in_the_gathering():
    names = {name for name, _ in projector(sinks=True).named_parameters()}
    added = names - {name for name, _ in projector().named_parameters()}
    layers, branches = range(2), ("2d", "3d")
    expected = {f"layers.{i}.branches.{m}.attention.sink" for i in layers for m in branches}
    assert added == expected | {f"layers.{i}.gather.attention.zero_logit" for i in layers}


def test_with_sinks_attention_over_atoms_counts():
    """Twice the same molecule, with nothing but its atoms: a plain average cannot tell."""

    def soft(sinks, atoms):
        model = projector(sinks=sinks, phi2d=False, phi3d=False, zero_attention=False)
        levels, molecules = case((False, True, False), atoms=atoms + 1, batch=1)
        levels = {m: tuple(torch.ones_like(level) for level in levels[m]) for m in levels}
        return model(levels, molecules)

    torch.testing.assert_close(soft(False, 4), soft(False, 8))
    assert not torch.allclose(soft(True, 4), soft(True, 8), atol=1e-3)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("relations", [{"phi2d"}, {"phi3d"}, {"phi2d", "phi3d"}, set()])
def test_without_phi_is_a_table_of_zeros_and_comes_back(share, relations):
    model, inputs = projector(share_relation_bias=share, sinks=True), case()
    before, names = model(*inputs), [name for name, _ in model.named_parameters()]
    with without_phi(model, relations):
        taken = model(*inputs)
    assert torch.equal(taken, before) == (not relations)
    assert torch.equal(model(*inputs), before)
    assert [name for name, _ in model.named_parameters()] == names
    with torch.no_grad():
        for bias in model.modules():
            if isinstance(bias, RelationBias):
                if "phi2d" in relations:
                    bias.hop_bias.zero_()
                if "phi3d" in relations:
                    bias.radial.head[-1].weight.zero_()
                    bias.radial.head[-1].bias.zero_()
    torch.testing.assert_close(model(*inputs), taken)
