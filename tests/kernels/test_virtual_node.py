"""A virtual node: hops 254, and the column that is its own on every backend."""

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.nn import with_virtual_node
from collamo_kernels.testing import device_of, random_graphs


def chain(atoms):
    one_way = torch.stack([torch.arange(atoms - 1), torch.arange(1, atoms)])
    return torch.cat([one_way, one_way.flip(0)], 1), torch.tensor([0, atoms])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_it_stands_before_the_atoms(layout):
    edges, ptr = random_graphs((4, 1, 2), torch.Generator().manual_seed(0), fragments=2)
    bare = ck.Relations.from_graphs(edges, ptr, layout=layout)
    relations = with_virtual_node(bare)
    assert relations.valid.sum(1).tolist() == [5, 2, 3]
    padded = bare.padded()
    assert torch.equal(relations.hops[:, 1:, 1:], padded.hops)
    joined = torch.where(relations.valid, 254, 255)
    assert torch.equal(relations.hops[:, 0], joined.to(torch.uint8))
    assert torch.equal(relations.hops[:, :, 0], joined.to(torch.uint8))


@pytest.mark.parametrize("buckets", [256, 8, 4])
def test_its_column_is_its_own(buckets, coattention_backend, serves):
    """A table that is 0 but for column S - 2, and its gradient: only pairs of the virtual node."""
    device = device_of(coattention_backend)
    relations = with_virtual_node(ck.Relations.from_graphs(*chain(12)), buckets).to(device)
    table = torch.zeros(1, buckets, device=device)
    table[0, -2] = 1.0
    table.requires_grad_()
    q = torch.zeros(1, 1, 13, 8, device=device)
    v = torch.eye(13, device=device)[None, None]  # the result is the weights

    def run():
        arguments = {"relations": relations, "hop_bias": table, "backend": coattention_backend}
        return ck.coattention(q, q, v[..., :8], **arguments)

    out = serves(coattention_backend, run)
    e = torch.e
    expected = torch.full((13, 8), 1 / (12 + e))  # of an atom: the others at 0, the node at 1
    expected[:, 0], expected[0] = e / (12 + e), 1 / 13
    torch.testing.assert_close(out[0, 0].cpu(), expected)
    cotangent = torch.zeros_like(out)
    cotangent[..., 0] = 1.0
    (gradient,) = torch.autograd.grad(out, table, cotangent)
    slope = 12 * e / (12 + e) * 12 / (12 + e)
    sums = torch.stack([gradient[0, :-2].sum(), gradient[0, -2], gradient[0, -1]])
    torch.testing.assert_close(sums.cpu(), torch.tensor([-slope, slope, 0.0]))


def test_longer_paths_are_cut_below_its_column():
    relations = with_virtual_node(ck.Relations.from_graphs(*chain(12)), hop_buckets=8)
    assert relations.hops[0, 1].tolist() == [254, 0, 1, 2, 3, 4, *[5] * 7]


def test_wrong_input_is_named():
    edges, ptr = chain(3)
    with pytest.raises(ValueError, match="a virtual node has no place"):
        with_virtual_node(ck.Relations.from_graphs(edges, ptr, torch.randn(3, 3)))
    with pytest.raises(ValueError, match="hop_buckets is 3; it takes at least 4"):
        with_virtual_node(ck.Relations.from_graphs(edges, ptr), 3)
    with pytest.raises(ValueError, match="relations has no hops"):
        with_virtual_node(ck.Relations(valid=torch.ones(1, 3) > 0))
