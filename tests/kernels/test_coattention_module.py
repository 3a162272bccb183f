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


def as_multihead_attention(layer):
    """nn.MultiheadAttention with the weights of a CoAttention."""
    torch_layer = nn.MultiheadAttention(
        *(layer.embed_dim, layer.num_heads, layer.dropout),
        bias=layer.query.bias is not None,
        batch_first=layer.batch_first,
        dtype=layer.query.weight.dtype,
    )
    with torch.no_grad():
        ours = layer.query, layer.key, layer.value
        torch_layer.in_proj_weight.copy_(torch.cat([x.weight for x in ours]))
        if torch_layer.in_proj_bias is not None:
            torch_layer.in_proj_bias.copy_(torch.cat([x.bias for x in ours]))
        torch_layer.out_proj.load_state_dict(layer.output.state_dict())
    return torch_layer


def test_without_relations_it_is_multihead_attention():
    layer = ck.CoAttention(12, 3).double()
    torch_layer = as_multihead_attention(layer)
    x, other = torch.randn(2, 2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch_layer(x, x, x)[0])
    torch.testing.assert_close(layer(x, key=other), torch_layer(x, other, other)[0])


class TestLikeMultiheadAttention:
    """What its users have, compared with it, in float64; B = 2, N = 5, M = 7, C = 12, H = 3."""

    X, KEY, VALUE = (torch.randn(2, n, 12, dtype=torch.float64) for n in (5, 7, 7))

    @staticmethod
    def layers(**options):
        layer = ck.CoAttention(12, 3, dtype=torch.float64, **options)
        return layer, as_multihead_attention(layer)

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("batch_first", [True, False])
    def test_other_keys_and_values_of_another_length(self, bias, batch_first):
        layer, torch_layer = self.layers(bias=bias, batch_first=batch_first)
        x, key, value = self.X, self.KEY, self.VALUE
        if not batch_first:
            x, key, value = (y.transpose(0, 1) for y in (x, key, value))
        options = {"average_attn_weights": False}
        expected, attention_map = torch_layer(x, key, value, **options)
        y, weights = layer(x, key=key, value=value, need_weights=True)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(weights, attention_map)
        torch.testing.assert_close(layer(x, key=key), torch_layer(x, key, key)[0])
        torch.testing.assert_close(layer(x), torch_layer(x, x, x)[0])

    def test_without_a_batch(self):
        layer, torch_layer = self.layers(batch_first=False)  # of no account without a batch
        x, key, value = self.X[0], self.KEY[0], self.VALUE[0]
        torch.testing.assert_close(layer(x), torch_layer(x, x, x)[0])
        mask, padding = torch.randn(3, 5, 7).double(), torch.arange(7) > 4
        masks = {"key_padding_mask": padding, "attn_mask": mask}
        y, weights = layer(x, key=key, value=value, need_weights=True, **masks)
        float_padding = torch.zeros(7).double().masked_fill(padding, -math.inf)
        masks |= {"key_padding_mask": float_padding}  # torch warns of a bool one beside a float one
        expected = torch_layer(x, key, value, average_attn_weights=False, **masks)
        torch.testing.assert_close((y, weights), expected)

    @pytest.mark.parametrize("per_head", [False, True], ids=["[N, M]", "[B·H, N, M]"])
    @pytest.mark.parametrize("kind", ["bool", "float"])
    @pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
    def test_masks(self, kind, per_head, cross):
        layer, torch_layer = self.layers()
        keys = self.KEY if cross else self.X
        m = keys.shape[1]
        shape = (6, 5, m) if per_head else (5, m)
        mask = torch.randn(shape, dtype=torch.float64)
        padding = torch.arange(m) >= torch.tensor([[4], [m]])
        if kind == "bool":
            mask = mask > 0.3
            mask[..., 0] = False
        else:
            padding = torch.randn(2, m, dtype=torch.float64).masked_fill(padding, -math.inf)
        masks = {"key_padding_mask": padding, "attn_mask": mask}
        key = {"key": keys} if cross else {}
        y = layer(self.X, **key, **masks)
        expected = torch_layer(self.X, keys, keys, **masks)[0]
        if kind == "bool" and not cross:  # then the queries are padding too
            assert y[0, 4:].abs().max() == 0
            expected = expected.masked_fill(padding[..., None], 0.0)
        torch.testing.assert_close(y, expected)

    def test_masks_beside_relations(self, batch):
        _, relations, place = batch
        layer = ck.CoAttention(12, 3).double()
        relations, x = relations.padded(), torch.randn(2, 5, 12).double()
        mask = torch.randn(5, 5).double().requires_grad_()
        bare = ck.Relations(relations.hops, relations.coordinates)
        y = layer(x, bare, key_padding_mask=~place.valid, attn_mask=mask)
        cotangent = torch.randn_like(y)
        bias = mask.detach().expand(2, 3, 5, 5).clone().requires_grad_()
        expected = layer(x, relations, bias=bias)
        torch.testing.assert_close(y, expected)
        y.backward(cotangent)
        expected.backward(cotangent)
        torch.testing.assert_close(mask.grad, bias.grad.sum((0, 1)))
        more = torch.zeros(2, 5) > 0
        more[0, 0] = True
        left_out = layer(x, relations, key_padding_mask=more)
        assert left_out[0, 0].abs().max() == 0
        assert left_out[1, 3:].abs().max() == 0
        assert left_out[0, 1:].abs().min() > 0

    @pytest.mark.parametrize("kind", ["bool", "float"])
    def test_nothing_to_attend_to_is_zero_and_no_nan(self, kind):
        layer = ck.CoAttention(12, 3, bias=False)
        mask = torch.ones(5, 7) > 0
        mask[1:] = False
        mask = mask if kind == "bool" else torch.zeros(5, 7).masked_fill(mask, -math.inf)
        x, key = self.X.float(), self.KEY.float().requires_grad_()
        y = layer(x, key=key, attn_mask=mask)
        assert y[:, 0].abs().max() == 0
        (gradient,) = torch.autograd.grad(y.sum(), key)
        assert gradient.isfinite().all()

    def test_garbage_among_other_keys_is_not_read(self):
        layer = ck.CoAttention(12, 3, dtype=torch.float64)
        padding = torch.arange(7) >= torch.tensor([[4], [7]])
        key = self.KEY.masked_fill(padding[..., None], math.nan)
        y = layer(self.X, key=key, key_padding_mask=padding)
        torch.testing.assert_close(y, layer(self.X, key=self.KEY, key_padding_mask=padding))
        y.backward(torch.randn_like(y))
        assert layer.key.weight.grad.isfinite().all()
        assert layer.value.weight.grad.isfinite().all()

    def test_a_bias_among_other_keys(self):
        layer, torch_layer = self.layers()
        bias = torch.randn(2, 3, 5, 7, dtype=torch.float64)
        expected = torch_layer(self.X, self.KEY, self.KEY, attn_mask=bias.flatten(0, 1))[0]
        torch.testing.assert_close(layer(self.X, key=self.KEY, bias=bias), expected)
        with pytest.raises(ValueError, match=r"bias has shape .*; it must be \[2, 3, 5, 7\]"):
            layer(self.X, key=self.KEY, bias=bias[..., :5])

    def test_a_sink_among_other_keys(self):
        layer = ck.CoAttention(12, 3, sink=True, dtype=torch.float64)
        y, weights = layer(self.X, key=self.KEY, value=self.VALUE, need_weights=True)
        assert weights.sum(-1).max() < 1
        values = layer.value(self.VALUE).unflatten(-1, (3, 4)).transpose(1, 2)
        by_hand = layer.output((weights @ values).transpose(1, 2).flatten(-2))
        torch.testing.assert_close(y, by_hand)
        masked = layer(self.X, key=self.KEY, attn_mask=torch.zeros(5, 7))
        torch.testing.assert_close(masked, layer(self.X, key=self.KEY))

    def test_dropout_among_other_keys(self):
        layer = ck.CoAttention(12, 3, dropout=0.5, dtype=torch.float64)
        assert not torch.equal(layer(self.X, key=self.KEY), layer(self.X, key=self.KEY))
        layer.eval()
        assert torch.equal(layer(self.X, key=self.KEY), layer(self.X, key=self.KEY))

    def test_one_molecule_with_relations(self, batch):
        _, relations, place = batch
        layer = ck.CoAttention(12, 3)
        one = ck.Relations(place.pad_pairs(relations.hops)[:1, :5, :5], torch.randn(1, 5, 3))
        x = torch.randn(5, 12)
        y, weights = layer(x, one, need_weights=True, bias=torch.zeros(3, 5, 5))
        batched, of_batch = layer(x[None], one, need_weights=True)
        assert torch.equal(y, batched[0])
        assert torch.equal(weights, of_batch[0])

    def test_the_batch_second_with_relations(self, batch):
        x, relations, place = batch
        layer = ck.CoAttention(12, 3)
        second = ck.CoAttention(12, 3, batch_first=False)
        second.load_state_dict(layer.state_dict())
        x, relations = place.pad(x), relations.padded()
        y = second(x.transpose(0, 1), relations)
        assert torch.equal(y.transpose(0, 1), layer(x, relations))

    def test_where_and_as_what_its_parameters_are_made(self, batch):
        x, relations, _ = batch
        layer = ck.CoAttention(12, 3, sink=True, device="meta", dtype=torch.bfloat16)
        assert {(str(p.device), p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
        layer.to_empty(device="cpu").reset_parameters()
        assert layer.sink.tolist() == [0.0, 1.5, 3.0]
        assert 0.01 < layer.hop_bias.float().std() < 0.04
        assert layer.radial.mu.max() > 1
        assert layer(x.bfloat16(), relations).isfinite().all()
        bare = ck.CoAttention(12, 3, bias=False)
        assert {name for name in bare.state_dict() if name.endswith("bias")} == {
            *("hop_bias", "radial.head.0.bias", "radial.head.2.bias")
        }


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
    y = layer(place.pad(x, math.nan), relations.padded(), key=place.pad(x, math.inf))
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
        y, weights = layer(x, relations.padded(), key=other, need_weights=True)
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
    two = ck.Relations.from_graphs(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 2, 3]))
    for shape in ((2, 4, 12), (1, 2, 12), (3, 12)):  # [2, 2, 12] has an atom of theirs each
        with pytest.raises(ValueError, match=r"x has .* with these relations .* \[2, 2, 12\]"):
            layer(torch.randn(shape), two)
    with pytest.raises(ValueError, match=r"key has shape \[7, 12\]; with relations it must be"):
        layer(x, relations, key=x[:-1])
    with pytest.raises(ValueError, match=r"value has shape .*; it needs a key as well"):
        layer(x, relations, value=x)
    with pytest.raises(ValueError, match=r"value has shape .*; it needs the shape of key"):
        layer(x, relations, key=x, value=x[:-1])
    with pytest.raises(ValueError, match="relations are packed, where nothing is padded"):
        layer(x, relations, key_padding_mask=torch.zeros(8) > 0)
    x = torch.randn(2, 5, 12)
    with pytest.raises(TypeError, match="the third argument is a Tensor without a name"):
        layer(x, x, x)
    with pytest.raises(TypeError, match="the third argument is a Tensor without a name"):
        layer(x, None, torch.zeros(2, 5) > 0)
    with pytest.raises(ValueError, match=r"key has shape \[3, 5, 12\]; it must be \[B, M, C\]"):
        layer(x, key=torch.randn(3, 5, 12))
    with pytest.raises(ValueError, match=r"key_padding_mask has shape \[5\]; it must be \[2, 5\]"):
        layer(x, key_padding_mask=torch.zeros(5) > 0)
    with pytest.raises(ValueError, match=r"attn_mask has shape .*\[5, 5\] or \[6, 5, 5\]"):
        layer(x, attn_mask=torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match=r"attn_mask has dtype torch.int64; it must be bool"):
        layer(x, attn_mask=torch.zeros(5, 5).long())
    with pytest.raises(ValueError, match="key_padding_mask is on meta; move it to x's device"):
        layer(x, key_padding_mask=torch.zeros(2, 5, device="meta") > 0)
