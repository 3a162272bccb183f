"""Graphormer's tensors: the bias of its definition, made from the same weights."""

import pytest
import torch
from torch.nn import functional as F

import collamo_kernels as ck
from collamo_kernels.nn import hop_table_of_graphormer, relations_of_graphormer
from collamo_kernels.testing import random_graphs

SIZES = (6, 2, 4)


def raw():
    """Shortest paths of three molecules, some of two fragments, as Graphormer stores them."""
    edges, ptr = random_graphs(SIZES, torch.Generator().manual_seed(0), fragments=2)
    hops = ck.shortest_paths(edges, ptr).long()
    hops = torch.where(hops == 255, 510, hops)
    return [hops[b, :n, :n] for b, n in enumerate(SIZES)]


def collated():
    return torch.stack([F.pad(x + 1, (0, 6 - len(x), 0, 6 - len(x))) for x in raw()])


def its_bias(spatial_pos, table, token):
    """Φ2d [B, H, N+1, N+1] of the paper: one learned number a path length, one for the token."""
    batch, n, _ = spatial_pos.shape
    bias = torch.zeros(batch, table.shape[1], n + 1, n + 1, dtype=table.dtype)
    bias[:, :, 1:, 1:] = table[spatial_pos].permute(0, 3, 1, 2)
    bias[:, :, 1:, 0] = token[0, :, None]
    bias[:, :, 0, :] = token[0, :, None]
    return bias


def test_bias_is_its_own_and_so_are_the_gradients():
    table = torch.randn(512, 3, dtype=torch.float64)
    table[0] = 0  # its row of padding
    weights = table.requires_grad_(), torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    q, k, v = torch.randn(3, 3, 3, 7, 4, dtype=torch.float64)
    relations = relations_of_graphormer(collated())
    out = ck.coattention(q, k, v, relations=relations, hop_bias=hop_table_of_graphormer(*weights))
    logits = q @ k.transpose(-1, -2) / 2 + its_bias(collated(), *weights)
    logits = logits.masked_fill(~relations.valid[:, None, None], -torch.inf)
    expected = (logits.softmax(-1) @ v) * relations.valid[:, None, :, None]
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    ours = torch.autograd.grad(out, weights, cotangent)
    theirs = torch.autograd.grad(expected, weights, cotangent)
    torch.testing.assert_close(ours, theirs)
    assert ours[0][511].abs().max() > 0  # fragments


def test_a_stored_molecule_and_a_collated_batch():
    batch = relations_of_graphormer(collated(), virtual_node=False)
    assert batch.valid.sum(1).tolist() == list(SIZES)
    for b, (n, paths) in enumerate(zip(SIZES, raw(), strict=True)):
        alone = relations_of_graphormer(paths, virtual_node=False)
        assert torch.equal(alone.hops[0], batch.hops[b, :n, :n])
        assert alone.valid.all()
    assert torch.equal(batch.hops[1, 2:], torch.full((4, 6), 255, dtype=torch.uint8))


def test_long_paths_saturate():
    paths = torch.tensor([[0, 300, 509, 510], [300, 0, 253, 254]] + [[0] * 4] * 2)
    paths = torch.triu(paths) + torch.triu(paths).t()
    hops = relations_of_graphormer(paths, virtual_node=False).hops[0]
    assert hops[0].tolist() == [0, 253, 253, 255]
    assert hops[1].tolist() == [253, 0, 253, 253]


def test_without_a_graph_token():
    table = torch.randn(512, 3)
    columns = hop_table_of_graphormer(table)
    assert columns.shape == (3, 256)
    assert columns[:, 254].abs().max() == 0
    assert torch.equal(columns[:, 7], table[8])
    assert torch.equal(columns[:, 255], table[511])


@pytest.mark.parametrize(
    ("spatial_pos", "message"),
    [
        (torch.zeros(2, 3), "spatial_pos is torch.float32"),
        (torch.zeros(2, 3).long(), "it must be integers"),
        (torch.full((2, 2), 7), "the diagonal of spatial_pos has 7"),
        ([[0]], "spatial_pos is a list"),
    ],
)
def test_wrong_paths_are_named(spatial_pos, message):
    with pytest.raises(ValueError, match=message):
        relations_of_graphormer(spatial_pos)


def test_wrong_weights_are_named():
    with pytest.raises(ValueError, match=r"spatial_pos_encoder has shape .*\[512, H\]"):
        hop_table_of_graphormer(torch.zeros(40, 3))
    with pytest.raises(ValueError, match=r"graph_token_virtual_distance .*\[1, 3\]"):
        hop_table_of_graphormer(torch.zeros(512, 3), torch.zeros(3))
