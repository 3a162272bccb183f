"""Relations: both layouts, from graphs, and the checks."""

import pytest
import torch
from safetensors.torch import load_file

import collamo_kernels as ck
from collamo_kernels.coattention.reference import hop_term
from collamo_kernels.relations import PackedLayout
from collamo_kernels.testing import Case, make_inputs, random_graphs


def a_batch():
    edges, ptr = random_graphs((4, 0, 1, 6), torch.Generator().manual_seed(0), fragments=2)
    return edges, ptr, torch.randn(11, 3), torch.tensor([True, True, False, True])


class TestFromGraphs:
    def test_padded(self):
        edges, ptr, x, has_3d = a_batch()
        relations = ck.Relations.from_graphs(edges, ptr, x, has_3d)
        assert not relations.packed
        assert torch.equal(relations.hops, ck.shortest_paths(edges, ptr))
        assert relations.valid.sum(1).tolist() == [4, 0, 1, 6]
        assert torch.equal(relations.coordinates[relations.valid], x)
        assert relations.coordinates[~relations.valid].abs().max() == 0
        assert relations.has_3d is has_3d

    def test_packed(self):
        edges, ptr, x, has_3d = a_batch()
        relations = ck.Relations.from_graphs(edges, ptr, x, has_3d, layout="packed")
        assert relations.cu_seqlens.dtype == torch.int32
        assert relations.cu_seqlens.tolist() == [0, 4, 4, 5, 11]
        assert (relations.max_seqlen, relations.num_atoms, relations.num_pairs) == (6, 11, 53)
        assert torch.equal(relations.hops, ck.shortest_paths(edges, ptr, layout="packed"))
        assert relations.coordinates is x

    def test_packed_padded_is_padded(self):
        batch = a_batch()
        direct = ck.Relations.from_graphs(*batch)
        turned = ck.Relations.from_graphs(*batch, layout="packed").padded()
        for name in ("hops", "coordinates", "valid", "has_3d"):
            assert torch.equal(getattr(direct, name), getattr(turned, name)), name
        assert direct.padded() is direct

    def test_coordinates_keep_their_gradient(self):
        edges, ptr, x, _ = a_batch()
        relations = ck.Relations.from_graphs(edges, ptr, x.requires_grad_())
        cotangent = torch.randn_like(relations.coordinates)
        (gradient,) = torch.autograd.grad(relations.coordinates, x, cotangent)
        assert torch.equal(gradient, cotangent[relations.valid])

    def test_wrong_number_of_coordinates(self):
        edges, ptr, x, _ = a_batch()
        with pytest.raises(ValueError, match="coordinates has 10 rows, but ptr says 11 atoms"):
            ck.Relations.from_graphs(edges, ptr, x[:-1])

    def test_no_molecules(self):
        nothing = torch.zeros(2, 0, dtype=torch.int64), torch.tensor([0]), torch.zeros(0, 3)
        assert ck.Relations.from_graphs(*nothing).hops.shape == (0, 0, 0)
        assert ck.Relations.from_graphs(*nothing, layout="packed").max_seqlen == 0


def test_pack_undoes_pad():
    place = PackedLayout(torch.tensor([0, 3, 3, 8], dtype=torch.int32), 6)
    atoms, pairs = torch.randn(8, 2), torch.randn(34, 2)
    assert torch.equal(place.pack(place.pad(atoms)), atoms)
    assert torch.equal(place.pack_pairs(place.pad_pairs(pairs)), pairs)
    assert place.pad_pairs(pairs)[2, 1, 3].equal(pairs[9 + 1 * 5 + 3])


def test_move_keeps_everything():
    relations = make_inputs(Case("one", (4, 3), types="atom")).relations
    moved = relations.to("meta")
    assert moved.device == torch.device("meta")
    assert moved.hops.dtype == torch.uint8
    assert moved.coordinates.requires_grad
    assert (moved.num_atoms, moved.num_pairs, moved.max_seqlen) == (7, 25, 4)
    assert relations.device == torch.device("cpu")
    assert ck.Relations().to("meta").device is None


def test_cannot_be_changed_by_accident():
    with pytest.raises(AttributeError):
        ck.Relations().hops = torch.zeros(1)


def cu(*ends):
    return torch.tensor(ends, dtype=torch.int32)


BAD = {
    "hops is a list": {"hops": [[0]]},
    "hops has dtype torch.int64": {"hops": torch.zeros(1, 2, 2).long()},
    "hops has shape .1, 2, 3.; it must be .B, N, N. with N = 2": {
        "hops": torch.zeros(1, 2, 3, dtype=torch.uint8)
    },
    "hops has shape .5.; it must be .P. with P = 4": {
        "hops": torch.zeros(5, dtype=torch.uint8),
        "cu_seqlens": cu(0, 2),
    },
    "the layout is packed": {
        "hops": torch.zeros(1, 2, 2, dtype=torch.uint8),
        "cu_seqlens": cu(0, 2),
    },
    "the layout is padded": {"hops": torch.zeros(4, dtype=torch.uint8)},
    "coordinates has shape": {"coordinates": torch.zeros(1, 2, 2)},
    "coordinates has dtype torch.bfloat16": {"coordinates": torch.zeros(1, 2, 3).bfloat16()},
    "valid has shape .1, 3.": {
        "coordinates": torch.zeros(1, 2, 3),
        "valid": torch.ones(1, 3) > 0,
    },
    "valid has dtype": {"valid": torch.ones(1, 3)},
    "has_3d has dtype": {"has_3d": torch.ones(1)},
    "has_3d has shape .2.": {"valid": torch.ones(1, 3) > 0, "has_3d": torch.ones(2) > 0},
    "cu_seqlens is torch.int64": {"cu_seqlens": torch.tensor([0, 2])},
    "cu_seqlens must start at 0": {"cu_seqlens": cu(1, 2)},
    "cu_seqlens must start at 0 and never fall": {"cu_seqlens": cu(0, 3, 2)},
    "max_seqlen is 2, but a molecule has 3 atoms": {"cu_seqlens": cu(0, 3), "max_seqlen": 2},
    "max_seqlen belongs to the packed layout": {"max_seqlen": 2},
    "pair_types has dtype": {"pair_types": torch.zeros(1, 2, 2)},
    "pair_types and atom_types are both given": {
        "pair_types": torch.zeros(1, 2, 2).long(),
        "atom_types": torch.zeros(1, 2, 2).long(),
    },
    "valid is on meta": {
        "coordinates": torch.zeros(1, 2, 3),
        "valid": torch.ones(1, 2, device="meta") > 0,
    },
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        ck.Relations(**BAD[message])


def test_official_phi2d(shared_golden):
    golden = load_file(shared_golden / "relation_bias_transformer_m.safetensors")
    official = golden["in.hops"]  # -1 = padding, 510 = unreachable; its table row is hops + 1
    hops = torch.where((official == 510) | (official < 0), 255, official).to(torch.uint8)
    encoder = golden["param.molecule_attn_bias.spatial_pos_encoder.weight"]
    table = torch.cat([encoder[1:255], encoder[511:512]]).t()  # [H, 255]
    phi = hop_term(ck.Relations(hops=hops), table)
    real = (official >= 0)[:, None].expand_as(phi)
    assert torch.equal(phi[real], golden["out.phi2d"][real])
