"""CoAttention, the layer."""

import math

import pytest
import torch
from torch import nn

import collamo_kernels as ck
from collamo_kernels.testing import random_graphs

SINKS = pytest.mark.parametrize("sink", [False, True], ids=["plain", "sink"])


@pytest.fixture
def batch():
    """x packed, relations packed, and where atoms go in the padded layout."""
    edges, ptr = random_graphs((5, 3), torch.Generator().manual_seed(0))
    relations = ck.Relations.from_graphs(edges, ptr, torch.randn(8, 3), layout="packed")
    return torch.randn(8, 12), relations, relations.packed_layout()


# The names in saved models. Whoever changes this list breaks every checkpoint.
STATE = (
    "hop_bias",
    "query.weight", "query.bias",
    "key.weight", "key.bias",
    "value.weight", "value.bias",
    "output.weight", "output.bias",
    "radial.mu", "radial.sigma",
    "radial.head.0.weight", "radial.head.0.bias",
    "radial.head.2.weight", "radial.head.2.bias",
)  # fmt: skip


def test_state_names_are_stable(batch):
    layer = ck.CoAttention(12, 3, hop_buckets=9)
    assert tuple(layer.state_dict()) == STATE
    assert layer.hop_bias.shape == (3, 9)
    bare = ck.CoAttention(12, 3, hop_buckets=0, radial=None)
    assert tuple(bare.state_dict()) == STATE[1:9]
    x, relations, _ = batch
    layer(x, relations)  # a table is made, and is no part of the state
    assert tuple(layer.state_dict()) == STATE
    again = ck.CoAttention(12, 3, hop_buckets=9)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x, relations), layer(x, relations))
    with_sink = ck.CoAttention(12, 3, hop_buckets=9, sink=True)
    assert set(with_sink.state_dict()) == {*STATE, "sink"}


def test_without_relations_it_is_multihead_attention():
    layer = ck.CoAttention(12, 3).double()
    torch_layer = nn.MultiheadAttention(12, 3, batch_first=True).double()
    with torch.no_grad():
        ours = layer.query, layer.key, layer.value
        torch_layer.in_proj_weight.copy_(torch.cat([x.weight for x in ours]))
        torch_layer.in_proj_bias.copy_(torch.cat([x.bias for x in ours]))
        torch_layer.out_proj.load_state_dict(layer.output.state_dict())
    x, other = torch.randn(2, 2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch_layer(x, x, x)[0])
    torch.testing.assert_close(layer(x, key_value=other), torch_layer(x, other, other)[0])


def test_sink_starts_apart_in_every_head_and_is_learned(batch):
    x, relations, _ = batch
    layer = ck.CoAttention(12, 3, sink=True)
    assert layer.sink.tolist() == [0.0, 1.5, 3.0]
    assert ck.CoAttention(12, 1, sink=True).sink.tolist() == [0.0]
    layer(x, relations).backward(torch.randn(8, 12))
    assert layer.sink.grad.abs().min() > 0
    assert "sink=True" in repr(layer)
    assert ck.CoAttention(12, 3).sink is None


@SINKS
def test_packed_is_padded(batch, sink):
    x, relations, place = batch
    layer = ck.CoAttention(12, 3, sink=sink)
    padded = layer(place.pad(x, math.nan), relations.padded())
    torch.testing.assert_close(place.pack(padded), layer(x, relations))
    assert padded[~place.valid].abs().max() == 0


def test_garbage_in_the_padding_reaches_no_parameter(batch):
    x, relations, place = batch
    layer = ck.CoAttention(12, 3)
    y = layer(place.pad(x, math.nan), relations.padded(), key_value=place.pad(x, math.inf))
    y.backward(torch.randn_like(y))
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in (
        layer.query.weight, layer.value.bias, layer.output.weight, layer.hop_bias, layer.radial.mu,
    ))  # fmt: skip


class TestWeights:
    def test_with_a_sink_rows_sum_to_less_than_one(self, batch):
        x, relations, place = batch
        layer = ck.CoAttention(12, 3, sink=True)
        _, weights = layer(place.pad(x), relations.padded(), need_weights=True)
        rows = weights.sum(-1).transpose(1, 2)
        assert rows[place.valid].min() > 0
        assert rows[place.valid].max() < 1
        assert rows[~place.valid].abs().max() == 0

    def test_padded(self, batch):
        x, relations, place = batch
        _, weights = ck.CoAttention(12, 3)(place.pad(x), relations.padded(), need_weights=True)
        assert weights.shape == (2, 3, 5, 5)
        rows = place.valid[:, None].float().expand(2, 3, 5)
        torch.testing.assert_close(weights.sum(-1), rows)
        assert weights.masked_select(~place.pair_valid[:, None]).abs().max() == 0

    @SINKS
    def test_packed(self, batch, sink):
        x, relations, place = batch
        layer = ck.CoAttention(12, 3, sink=sink)
        _, padded = layer(place.pad(x), relations.padded(), need_weights=True)
        _, packed = layer(x, relations, need_weights=True)
        assert packed.shape == (3, relations.num_pairs)
        torch.testing.assert_close(packed, place.pack_pairs(padded.permute(0, 2, 3, 1)).t())

    @SINKS
    def test_they_are_the_weights_used(self, batch, sink):
        x, relations, place = batch
        layer = ck.CoAttention(12, 3, sink=sink).double()
        x = place.pad(x).double()
        y, weights = layer(x, relations.padded(), need_weights=True)
        values = layer.value(x).unflatten(-1, (3, 4)).transpose(1, 2)
        by_hand = layer.output((weights @ values).transpose(1, 2).flatten(-2))
        torch.testing.assert_close(y[place.valid], by_hand[place.valid])

    def test_they_are_the_weights_used_for_other_keys_and_values(self, batch):
        x, relations, place = batch
        layer = ck.CoAttention(12, 3).double()
        x, other = place.pad(x).double(), place.pad(torch.randn(8, 12)).double()
        y, weights = layer(x, relations.padded(), key_value=other, need_weights=True)
        values = layer.value(other).unflatten(-1, (3, 4)).transpose(1, 2)
        by_hand = layer.output((weights @ values).transpose(1, 2).flatten(-2))
        torch.testing.assert_close(y[place.valid], by_hand[place.valid])
        assert not torch.equal(weights, layer(x, relations.padded(), need_weights=True)[1])


class TestSharedRelationBias:
    def test_given_at_call_time(self, batch):
        x, relations, _ = batch
        owner = ck.CoAttention(12, 3, hop_buckets=9)
        bare = ck.CoAttention(12, 3, hop_buckets=0, radial=None)
        bare.load_state_dict(owner.state_dict(), strict=False)
        shared = bare(x, relations, hop_bias=owner.hop_bias, radial=owner.radial)
        assert torch.equal(shared, owner(x, relations))
        assert not torch.equal(shared, bare(x, relations))

    def test_two_owners_are_an_error(self, batch):
        x, relations, _ = batch
        layer = ck.CoAttention(12, 3)
        with pytest.raises(ValueError, match="hop_bias is given, but the layer has its own"):
            layer(x, relations, hop_bias=layer.hop_bias)
        with pytest.raises(ValueError, match="radial is given"):
            layer(x, relations, radial=layer.radial)


def test_dropout_only_while_training(batch):
    x, relations, _ = batch
    layer = ck.CoAttention(12, 3, dropout=0.5)
    assert not torch.equal(layer(x, relations), layer(x, relations))
    layer.eval()
    assert torch.equal(layer(x, relations), layer(x, relations))


def test_any_module_can_be_the_radial(batch):
    x, relations, _ = batch

    class Inverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.strength = nn.Parameter(torch.ones(3))

        def forward(self, distances):
            return self.strength / (1 + distances[:, None])

    layer = ck.CoAttention(12, 3, radial=Inverse())
    layer(x, relations).sum().backward()
    assert layer.radial.strength.grad.abs().max() > 0


def test_autocast(batch):
    x, relations, _ = batch
    layer = ck.CoAttention(12, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, relations)
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@SINKS
def test_training_moves_every_parameter(batch, sink):
    x, relations, _ = batch
    layer = ck.CoAttention(12, 3, hop_buckets=6, sink=sink)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(x, relations).backward(torch.randn(8, 12))
    optimizer.step()
    still = {name for name, p in layer.named_parameters() if torch.equal(p, before[name])}
    # The softmax does not see what is the same for every key: two gradients are of rounding size,
    # unless there is a sink.
    assert still <= (set() if sink else {"key.bias", "radial.head.2.bias"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "embed_dim 12 is not a multiple of num_heads 5"),
        ({"hop_buckets": 1}, "hop_buckets is 1"),
        ({"radial": "bessel"}, "radial is 'bessel'"),
    ],
)
def test_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ck.CoAttention(**({"embed_dim": 12, "num_heads": 3} | options))


def test_wrong_input_is_named(batch):
    x, relations, _ = batch
    layer = ck.CoAttention(12, 3)
    with pytest.raises(ValueError, match="relations is a Tensor; make it Relations"):
        layer(x, torch.ones(x.shape[:-1]) > 0)
    with pytest.raises(ValueError, match="x is a list; make it a tensor"):
        layer(x.tolist(), relations)
    with pytest.raises(ValueError, match="x has shape"):
        layer(x[None], relations)
    with pytest.raises(ValueError, match="key_value has shape"):
        layer(x, relations, key_value=x[:-1])
