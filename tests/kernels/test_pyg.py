"""GPSConv with relations, in PyTorch Geometric itself."""

import pytest
import torch
from torch import nn

import collamo_kernels as ck
from collamo_kernels.testing import random_graphs

SIZES = (5, 1, 3)


@pytest.fixture
def pyg():
    """torch_geometric.nn."""
    return pytest.importorskip("torch_geometric.nn", reason="not installed: make test-clients")


@pytest.fixture
def batch(pyg):
    from torch_geometric import data

    molecules = []
    for n in SIZES:
        edges, _ = random_graphs((n,), torch.Generator().manual_seed(n))
        molecules.append(data.Data(torch.randn(n, 12), edge_index=edges, pos=torch.randn(n, 3)))
    return data.Batch.from_data_list(molecules)


def a_layer(**options):
    from torch_geometric.nn import GINConv

    from collamo_kernels.nn.pyg import GPSConv

    mlp = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    return GPSConv(12, GINConv(mlp), heads=3, attn_kwargs={"hop_buckets": 8, **options})


def test_the_attention_is_called_and_reads_relations(batch):
    layer, relations = a_layer(sink=True), ck.Relations.from_pyg(batch)
    y = layer(batch.x, batch.edge_index, batch.batch, relations=relations)
    y.backward(torch.randn_like(y))
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
    assert layer.attn.attention.hop_bias.grad.abs().max() > 0
    plain = layer(batch.x, batch.edge_index, batch.batch)
    assert not torch.allclose(plain, y)  # and they are forgotten after the call


def test_either_layout_and_no_mask_give_the_same(batch):
    layer = a_layer()
    layer.eval()
    graph = batch.x, batch.edge_index, batch.batch
    padded = layer(*graph, relations=ck.Relations.from_pyg(batch))
    packed = layer(*graph, relations=ck.Relations.from_pyg(batch, layout="packed"))
    torch.testing.assert_close(packed, padded)
    relations = ck.Relations.from_pyg(batch)
    bare = ck.Relations(hops=relations.hops, coordinates=relations.coordinates)
    torch.testing.assert_close(layer(*graph, relations=bare), padded)


def test_without_relations_it_is_theirs(pyg, batch):
    layer = a_layer(radial=None)
    theirs = pyg.GPSConv(12, layer.conv, heads=3)
    ours = layer.attn.attention
    with torch.no_grad():
        theirs.attn.in_proj_weight.copy_(
            torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
        )
        theirs.attn.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.attn.out_proj.load_state_dict(ours.output.state_dict())
    rest = {k: v for k, v in layer.state_dict().items() if not k.startswith("attn.")}
    theirs.load_state_dict(rest, strict=False)
    graph = batch.x, batch.edge_index, batch.batch
    torch.testing.assert_close(layer(*graph), theirs(*graph))
    one = batch.x[:5], batch[0].edge_index
    torch.testing.assert_close(layer(*one), theirs(*one))


def test_relations_of_another_batch_are_named(batch):
    layer = a_layer()
    other = ck.Relations.from_pyg(batch[0])
    with pytest.raises(ValueError, match="relations"):
        layer(batch.x, batch.edge_index, batch.batch, relations=other)
    assert layer.attn.relations is None


def test_parameters_can_be_drawn_again(batch):
    layer = a_layer()
    before = layer.attn.attention.query.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.attn.attention.query.weight, before)
