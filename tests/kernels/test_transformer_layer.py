"""TransformerEncoderLayer with relations, against torch's own."""

import math

import pytest
import torch
from torch import nn

import collamo_kernels as ck
from collamo_kernels.nn import TransformerEncoderLayer
from collamo_kernels.testing import random_graphs


def pair_of_layers(**options):
    """Ours and nn.TransformerEncoderLayer with its weights, in float64, without dropout."""
    ours = TransformerEncoderLayer(12, 3, 20, dropout=0.0, dtype=torch.float64, **options)
    theirs = nn.TransformerEncoderLayer(
        *(12, 3, 20),
        **({"dropout": 0.0, "dtype": torch.float64, "batch_first": True} | options),
    )
    state = dict(ours.state_dict())
    names = [name for name in state if name.startswith("self_attn.")]
    attention = {name.removeprefix("self_attn."): state.pop(name) for name in names}
    for part in ("weight", "bias"):
        if f"query.{part}" in attention:
            inputs = [attention[f"{name}.{part}"] for name in ("query", "key", "value")]
            state[f"self_attn.in_proj_{part}"] = torch.cat(inputs)
            state[f"self_attn.out_proj.{part}"] = attention[f"output.{part}"]
    theirs.load_state_dict(state)  # so the names of all else are the same
    return ours, theirs


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": False}, {"activation": "gelu"}, {"bias": False, "layer_norm_eps": 0.1}],
    ids=str,
)
def test_without_relations_it_is_torchs(norm_first, options):
    ours, theirs = pair_of_layers(norm_first=norm_first, **options)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    batch, n = x.shape[:2] if ours.self_attn.batch_first else (5, 2)
    padding = torch.arange(n).expand(batch, n) >= n - 1
    padding = padding & (torch.arange(batch) == 1)[:, None]  # one molecule ends early
    mask = torch.randn(n, n, dtype=torch.float64) > 1
    mask[:, 0] = False
    y = ours(x, src_mask=mask, src_key_padding_mask=padding)
    rows = padding if ours.self_attn.batch_first else padding.t()
    expected = theirs(x, src_mask=mask, src_key_padding_mask=padding)
    torch.testing.assert_close(y, expected.masked_fill(rows[..., None], 0.0))


@pytest.mark.parametrize("norm_first", [False, True])
def test_packed_is_padded_and_garbage_in_the_padding_is_not_read(norm_first):
    edges, ptr = random_graphs((5, 3), torch.Generator().manual_seed(0))
    packed = ck.Relations.from_graphs(edges, ptr, torch.randn(8, 3), layout="packed")
    place, x = packed.packed_layout(), torch.randn(8, 12)
    layer = TransformerEncoderLayer(12, 3, 20, dropout=0.0, norm_first=norm_first, sink=True)
    y = layer(place.pad(x, math.nan), packed.padded())
    assert y[~place.valid].abs().max() == 0
    torch.testing.assert_close(place.pack(y), layer(x, packed))
    y.backward(torch.randn_like(y))
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert layer.self_attn.hop_bias.grad.abs().max() > 0
    assert layer.self_attn.radial.mu.grad.abs().max() > 0
    second = TransformerEncoderLayer(
        *(12, 3, 20), dropout=0.0, norm_first=norm_first, sink=True, batch_first=False
    )
    second.load_state_dict(layer.state_dict())
    swapped = second(place.pad(x, math.nan).transpose(0, 1), packed.padded())
    torch.testing.assert_close(swapped.transpose(0, 1), y)


def test_layers_that_share_phi():
    edges, ptr = random_graphs((5, 3), torch.Generator().manual_seed(0))
    relations = ck.Relations.from_graphs(edges, ptr)
    owner = TransformerEncoderLayer(12, 3, 20, dropout=0.0, radial=None)
    bare = TransformerEncoderLayer(12, 3, 20, dropout=0.0, hop_buckets=0, radial=None)
    bare.load_state_dict(owner.state_dict(), strict=False)
    x, table = torch.randn(2, 5, 12), owner.self_attn.hop_bias
    phi = ck.share_bias(relations, layers=1, dtype=x.dtype, hop_bias=table)
    assert torch.equal(bare(x, relations, **phi), owner(x, relations))
    assert not torch.equal(bare(x, relations), owner(x, relations))


def test_dropout_only_while_training():
    layer, x = TransformerEncoderLayer(12, 3, 20, dropout=0.5), torch.randn(2, 5, 12)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="activation is 'swish'; use 'relu', 'gelu'"):
        TransformerEncoderLayer(12, 3, activation="swish")
    layer, x = TransformerEncoderLayer(12, 3, 20), torch.randn(2, 5, 12)
    with pytest.raises(ValueError, match="relations is a Tensor; make it Relations"):
        layer(x, torch.zeros(5, 5))
    with pytest.raises(TypeError):
        layer(x, None, torch.zeros(2, 5) > 0)
    with pytest.raises(ValueError, match="key_padding_mask has shape"):
        layer(x, src_key_padding_mask=torch.zeros(2, 4) > 0)
