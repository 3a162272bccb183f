"""Relations: both layouts, from graphs, and the checks."""

import copy
import math
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.coattention.reference import hop_term
from collamo_kernels.extension import why_absent
from collamo_kernels.relations import PackedLayout
from collamo_kernels.relations.op import sort_pairs
from collamo_kernels.testing import Case, make_inputs, padded_with_garbage, random_graphs

needs_extension = pytest.mark.skipif(why_absent() is not None, reason=str(why_absent()))


def a_batch():
    edges, ptr = random_graphs((4, 0, 1, 6), torch.Generator().manual_seed(0), fragments=2)
    return edges, ptr, torch.randn(11, 3), torch.tensor([True, True, False, True])


def same(relations, expected):
    for (name, x), (other, y) in zip(relations._tensors(), expected._tensors(), strict=True):
        assert name == other
        assert torch.equal(x, y), name


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


class TestFromPyG:
    """`Data` and `Batch` of torch_geometric, as far as they are read."""

    def one(self, **attributes):
        return SimpleNamespace(**({"edge_index": None, "pos": None} | attributes))

    @pytest.mark.parametrize("layout", ["padded", "packed"])
    def test_batch_is_its_graphs(self, layout):
        edges, ptr, x, has_3d = a_batch()
        data = self.one(edge_index=edges, ptr=ptr, pos=x, num_nodes=11)
        same(
            ck.Relations.from_pyg(data, has_3d, layout),
            ck.Relations.from_graphs(edges, ptr, x, has_3d, layout),
        )
        without = ck.Relations.from_pyg(self.one(edge_index=edges, ptr=ptr, num_nodes=11))
        assert without.coordinates is None

    def test_one_molecule_has_no_ptr(self):
        edges, ptr = random_graphs((5,), torch.Generator().manual_seed(0))
        data = self.one(edge_index=edges, num_nodes=5)
        same(ck.Relations.from_pyg(data), ck.Relations.from_graphs(edges, ptr))

    def test_molecule_of_each_atom_where_ptr_is_missing(self):
        edges, ptr = random_graphs((4, 1, 6), torch.Generator().manual_seed(0))
        molecule = torch.arange(3).repeat_interleave(ptr.diff())
        data = self.one(edge_index=edges, batch=molecule, num_nodes=11)
        same(ck.Relations.from_pyg(data), ck.Relations.from_graphs(edges, ptr))
        with pytest.raises(ValueError, match="batch falls; sort the atoms"):
            ck.Relations.from_pyg(self.one(edge_index=edges, batch=molecule.flip(0)))

    @pytest.mark.parametrize("layout", ["padded", "packed"])
    def test_places_without_bonds(self, layout):
        _, ptr, x, has_3d = a_batch()
        relations = ck.Relations.from_pyg(self.one(ptr=ptr, pos=x), has_3d, layout)
        assert relations.hops is None
        assert torch.equal(relations.padded().coordinates[relations.padded().valid], x)
        with pytest.raises(ValueError, match="has neither edge_index nor pos"):
            ck.Relations.from_pyg(self.one(ptr=ptr))

    def test_the_client_itself(self):
        data = pytest.importorskip("torch_geometric.data", reason="make test-clients")
        batches = [random_graphs((n,), torch.Generator().manual_seed(n))[0] for n in (4, 1, 6)]
        positions = [torch.randn(n, 3) for n in (4, 1, 6)]
        molecules = [
            data.Data(torch.randn(len(x), 2), edge_index=edges, pos=x)
            for edges, x in zip(batches, positions, strict=True)
        ]
        batch = data.Batch.from_data_list(molecules)
        relations = ck.Relations.from_pyg(batch)
        same(relations, ck.Relations.from_graphs(batch.edge_index, batch.ptr, batch.pos))
        alone = ck.Relations.from_pyg(molecules[2])
        assert torch.equal(alone.hops[0], relations.hops[2])
        assert torch.equal(alone.coordinates[0], positions[2])
        bare = ck.Relations.from_pyg(data.Data(torch.randn(4, 2), edge_index=batches[0]))
        assert bare.coordinates is None


@pytest.mark.parametrize("sizes", [(4, 0, 1, 6), (5,), (3, 3, 3)], ids=str)
def test_molecule_of_each_atom_in_the_place_of_ptr_is_named(sizes):
    edges, ptr = random_graphs(sizes, torch.Generator().manual_seed(0))
    molecule = torch.arange(len(sizes)).repeat_interleave(ptr.diff())
    molecule = molecule.unique(return_inverse=True)[1]  # PyG does not number what has no atoms
    hint = "ptr looks like batch.batch, the molecule of each atom: give batch.ptr"
    with pytest.raises(ValueError, match=hint):
        ck.Relations.from_graphs(edges, molecule)
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match=hint):
        ck.Relations.from_graphs(nothing, molecule, torch.randn(sum(sizes), 3))
    with pytest.raises(ValueError, match=hint):
        ck.radius_graph(torch.randn(sum(sizes), 3), molecule, 1.5)
    with pytest.raises(ValueError, match=r"whole batch$"):  # nothing is guessed of an honest ptr
        ck.Relations.from_graphs(edges + 100, ptr)


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


def distances_of(relations):
    """Every real pair's distance, by brute force, from the padded layout; rounded once."""
    padded = relations.padded()
    coordinates = padded.coordinates.double()
    atoms = torch.ones_like(padded.coordinates[..., 0], dtype=torch.bool)
    for keep in (padded.valid, None if padded.has_3d is None else padded.has_3d[:, None]):
        atoms = atoms if keep is None else atoms & keep
    apart = (coordinates[:, :, None] - coordinates[:, None]).norm(dim=-1)
    return apart[atoms[:, :, None] & atoms[:, None]].float()


RELATIONS = {
    "one": Case("one", (1,)),
    "some": Case("some", (9, 1, 0, 14)),
    "a conformer missing": Case("missing", (9, 14, 3), conformer_missing=True),
}


@pytest.fixture(params=RELATIONS)
def packed(request):
    return make_inputs(RELATIONS[request.param]).relations


class TestPrepared:
    @pytest.mark.parametrize("layout", ["packed", "padded"])
    def test_max_distance(self, packed, layout):
        relations = packed if layout == "packed" else padded_with_garbage(packed)
        largest = distances_of(packed).max().item()
        assert largest <= relations.max_distance <= 3**0.5 * largest * 1.001

    def test_max_distance_of_two_atoms_is_theirs(self):
        x = torch.tensor([[[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]]])
        assert ck.Relations(coordinates=x).max_distance == pytest.approx(5.0)

    @needs_extension
    @pytest.mark.parametrize("layout", ["packed", "padded"])
    def test_occurring_distances(self, packed, layout):
        """A part is marked where a distance is, give or take its rounding, and nowhere else."""
        relations = packed if layout == "packed" else padded_with_garbage(packed)
        found, high = relations.occurring_distances, relations.max_distance
        places = distances_of(packed).double() / max(high, 1e-3) * len(found)
        wanted = torch.zeros_like(found)
        wanted[places.long().clamp(max=len(found) - 1)] = True
        border = (places - places.round()).abs() < 1e-2  # rounding may go either way there
        assert (found ^ wanted).sum() <= 2 * (border & (places > 0)).sum()
        assert found[0]
        assert found.sum() < len(found) / 2

    @needs_extension
    def test_occurring_distances_of_nothing(self):
        x = torch.tensor([[[0.0, 0, 0], [3.0, 0, 4.0]]])
        assert not ck.Relations(coordinates=x[:0]).occurring_distances.any()
        none = torch.zeros(1, dtype=torch.bool)
        assert not ck.Relations(coordinates=x, has_3d=none).occurring_distances.any()
        garbage = torch.cat([x, x.new_full((1, 2, 3), torch.nan)])
        has_3d = torch.tensor([True, False])
        found = ck.Relations(coordinates=garbage, has_3d=has_3d).occurring_distances
        assert found.nonzero().flatten().tolist() == [0, len(found) - 1]

    def test_max_distance_of_nothing(self):
        x = torch.randn(2, 3, 3)
        none = torch.zeros(2, dtype=torch.bool)
        assert ck.Relations().max_distance == 0
        assert ck.Relations(coordinates=x[:0]).max_distance == 0
        assert ck.Relations(coordinates=x, has_3d=none).max_distance == 0
        assert ck.Relations(coordinates=x, valid=none[:, None].expand(2, 3)).max_distance == 0

    @pytest.mark.parametrize("layout", ["packed", "padded"])
    def test_hops_in_order_sum_to_the_gradient(self, packed, layout):
        relations = packed if layout == "packed" else padded_with_garbage(packed)
        table = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
        phi = hop_term(packed.padded(), table).permute(0, 2, 3, 1)  # [B, N, N, H]
        place = packed.packed_layout()
        cotangent = torch.randn(packed.num_pairs, 2, dtype=torch.float64)
        (wanted,) = torch.autograd.grad(place.pack_pairs(phi), table, cotangent)
        ours = cotangent if layout == "packed" else place.pad_pairs(cotangent, math.nan)
        by_hops = relations.pairs_by_hops
        columns = torch.tensor([0, 1, 2, 3, 4, 255, 256])  # column 4 holds 4 … 254, column 5 255
        sums = by_hops.sums(ours.reshape(-1, 2), by_hops.offsets(columns))
        torch.testing.assert_close(sums.t(), wanted)
        assert len(by_hops.offsets(torch.arange(257))) == 257

    @pytest.mark.parametrize("layout", ["packed", "padded"])
    def test_distances_in_order(self, packed, layout):
        relations = packed if layout == "packed" else padded_with_garbage(packed)
        by_distance = relations.pairs_by_distance
        wanted = distances_of(packed).sort().values.detach()
        torch.testing.assert_close(by_distance.keys[: len(wanted)], wanted)
        assert (by_distance.keys[len(wanted) :] == math.inf).all()
        assert relations.farthest == wanted.max()
        borders = torch.tensor([0.0, 0.5, 1.7, 1.8, 100.0])
        hits = by_distance.sums(torch.ones(packed.num_pairs * 9, 1), by_distance.offsets(borders))
        assert hits.sum() == len(distances_of(packed))
        assert hits[0] == (distances_of(packed) < 0.5).sum()

    def test_tiles_cover_every_atom_once(self):
        sizes = torch.tensor([0, 1, 32, 33, 5, 64, 0, 100])
        ends = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
        tiles = ck.Relations(cu_seqlens=ends).tiles
        assert tiles.shape == (int(sizes.sum()) // 32 + len(sizes), 2)
        found = [tuple(tile) for tile in tiles.tolist() if tile[0] >= 0]
        wanted = [(b, i) for b, n in enumerate(sizes.tolist()) for i in range(0, n, 32)]
        assert found == wanted

    def test_order_of_equal_keys_is_the_order_of_pairs(self):
        hops = torch.tensor([0, 1, 1, 0, 0], dtype=torch.uint8)
        relations = ck.Relations(hops=hops, cu_seqlens=cu(0, 2, 3))
        assert relations.pairs_by_hops.order.tolist() == [0, 3, 4, 1, 2]

    def test_is_made_once(self, packed):
        assert packed.pairs_by_hops is packed.pairs_by_hops
        assert packed.prepare() is packed
        assert packed.pairs_by_distance is packed.pairs_by_distance

    def test_moves_along(self, packed):
        relations = packed.prepare().to("meta")
        assert relations.max_distance == packed.max_distance  # no device could be asked for it
        assert relations.pairs_by_hops.order.device.type == "meta"
        assert relations.pairs_by_distance.keys.shape == packed.pairs_by_distance.keys.shape

    def test_pinned_along(self, packed, monkeypatch):
        pinned = []

        def pin(tensor):
            pinned.append(tensor)
            return tensor.clone()

        monkeypatch.setattr(torch.Tensor, "pin_memory", pin)  # there may be no GPU to pin for
        relations = packed.prepare().pin_memory()
        monkeypatch.undo()
        for tensor in (packed.hops, packed.coordinates, packed.pairs_by_hops.order):
            assert any(tensor is x for x in pinned)
        assert relations.pairs_by_hops.order is not packed.pairs_by_hops.order
        assert torch.equal(relations.pairs_by_hops.order, packed.pairs_by_hops.order)

    def test_is_never_stale(self, packed):
        before = packed.prepare().max_distance
        moved = copy.copy(packed)
        object.__setattr__(moved, "coordinates", 2 * packed.coordinates)
        assert moved.max_distance == pytest.approx(2 * before)
        assert packed.max_distance == before
        assert replace(packed, coordinates=3 * packed.coordinates).max_distance == (
            pytest.approx(3 * before)
        )
        with torch.no_grad():
            packed.coordinates.mul_(4)
        assert packed.max_distance == pytest.approx(4 * before)
        assert moved.to("meta").max_distance == pytest.approx(2 * before)

    def test_under_inference_mode(self):
        with torch.inference_mode():
            x = torch.randn(1, 4, 3)
            relations = ck.Relations(coordinates=x)
            assert relations.max_distance > 0
        assert relations.max_distance > 0

    def test_prepared_under_inference_mode_it_can_be_trained_on(self, packed):
        with torch.inference_mode():
            packed.prepare()
        made = [packed.distances, packed.pair_start, packed.tiles, packed.farthest]
        made += [packed.hop_offsets, packed.pairs_by_hops.order, packed.pairs_by_distance.keys]
        assert not any(x.is_inference() for x in made)

    def test_a_compiled_graph_takes_what_is_prepared(self, packed):
        operators = []

        def record(graph, _):
            operators.extend(node.target for node in graph.graph.nodes)
            return graph.forward

        def first(relations):
            return relations.pairs_by_distance.order[:5] + relations.pairs_by_hops.order[:5]

        compiled = torch.compile(first, fullgraph=True, backend=record)
        assert torch.equal(compiled(packed.prepare()), first(packed))
        other = replace(packed, coordinates=packed.coordinates.flip(0)).prepare()
        assert torch.equal(compiled(other), first(other))
        assert "sort" not in operators
        moved = copy.copy(packed)  # another tensor: what was made of the old one will not do
        object.__setattr__(moved, "coordinates", packed.coordinates.flip(0))
        assert torch.equal(compiled(moved), first(other))
        assert "sort" in operators


class TestCopied:
    """`Relations.copy_`, for a CUDA graph that reads the tensors it was captured with."""

    def batch(self, layout, seed):
        inputs = make_inputs(Case("two", (5, 3), types="atom", conformer_missing=True), seed=seed)
        relations = inputs.relations
        x = relations.coordinates.detach()
        relations = replace(relations, coordinates=x, max_seqlen=6)
        return relations if layout == "packed" else relations.padded()

    @pytest.mark.parametrize("layout", ["packed", "padded"])
    def test_what_was_prepared_is_refreshed_in_place(self, layout):
        static, other = self.batch(layout, 0).prepare(), self.batch(layout, 1)
        names = ["distances", "farthest", "hop_offsets"]
        names += ["pair_start", "tiles"] if layout == "packed" else []

        def prepared(relations):
            sorted_pairs = relations.pairs_by_distance, relations.pairs_by_hops
            tensors = [x for pairs in sorted_pairs for x in (pairs.order, pairs.keys)]
            return tensors + [getattr(relations, name) for name in names]

        before = [(x, x.clone()) for x in prepared(static)]
        assert static.copy_(other) is static
        for (x, _), now, expected in zip(before, prepared(static), prepared(other), strict=True):
            assert now is x
            assert torch.equal(now, expected)
        assert not torch.equal(*before[0])
        assert static.max_distance == other.max_distance
        assert torch.equal(static.hops, other.hops)

    def test_what_does_not_fit_is_refused(self):
        static = self.batch("packed", 0)
        with pytest.raises(ValueError, match=r"other\.hops is None, but relations\.hops is torch"):
            static.copy_(replace(static, hops=None))
        with pytest.raises(ValueError, match=r"a molecule of 7 atoms, but .* for 6 at most"):
            static.copy_(replace(static, max_seqlen=7))

    def test_nothing_is_prepared_inside_a_capture(self, monkeypatch):
        class OnGPU(torch.Tensor):
            device = torch.device("cuda", 0)

        x = torch.randn(1, 3, 3).as_subclass(OnGPU)
        relations = ck.Relations(coordinates=x)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match=r"relations\.distances is not prepared.*capture"):
            _ = relations.distances


def test_prints_shapes():
    relations = ck.Relations(coordinates=torch.zeros(2, 5, 3), valid=torch.ones(2, 5) > 0)
    assert repr(relations) == "Relations(coordinates [2, 5, 3], valid [2, 5]; padded, cpu)"
    assert repr(ck.Relations()) == "Relations(none; padded, no device)"


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_copy_by_all_fields(layout):
    """As FSDP makes one, whose coordinates it has cast: a word, and not 0.01 Å less in silence."""
    relations = make_inputs(Case("two", (5, 3))).relations
    relations = relations if layout == "packed" else relations.padded()
    values = {x.name: getattr(relations, x.name) for x in fields(relations)}
    again = replace(relations, **values)
    assert (again.num_atoms, again.num_pairs) == (relations.num_atoms, relations.num_pairs)
    with pytest.raises(ValueError, match=r"coordinates has dtype torch\.bfloat16"):
        replace(relations, **values | {"coordinates": relations.coordinates.bfloat16()})


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


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="relations has no hops"):
        _ = ck.Relations(coordinates=torch.zeros(1, 2, 3)).pairs_by_hops
    with pytest.raises(ValueError, match="relations has no coordinates"):
        _ = ck.Relations(hops=torch.zeros(1, 2, 2, dtype=torch.uint8)).distances
    with pytest.raises(ValueError, match="relations are padded, not packed"):
        ck.Relations(coordinates=torch.zeros(1, 2, 3)).packed_layout()


@pytest.mark.skipif(
    not (torch.cuda.is_available() and ck.build_info()["cuda"]), reason="counts on a GPU"
)
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("pairs", [0, 1, 4608, 1_000_003])
def test_a_gpu_sorts_pairs_as_the_definition(pairs, padding):
    hops = torch.randint(0, 256, (pairs,), dtype=torch.uint8)
    hops[: pairs // 2] %= 9
    real = torch.rand(pairs) > 0.3 if padding else None
    defined = sort_pairs(hops, real)
    counted = torch.ops.collamo_kernels.pairs_by_hops(
        hops.cuda(), None if real is None else real.cuda()
    )
    for mine, theirs in zip(counted, defined, strict=True):
        assert torch.equal(mine.cpu(), theirs)


def test_official_phi2d(shared_golden):
    load_file = pytest.importorskip("safetensors.torch").load_file
    golden = load_file(shared_golden / "relation_bias_transformer_m.safetensors")
    official = golden["in.hops"]  # -1 = padding, 510 = unreachable; its table row is hops + 1
    hops = torch.where((official == 510) | (official < 0), 255, official).to(torch.uint8)
    encoder = golden["param.molecule_attn_bias.spatial_pos_encoder.weight"]
    table = torch.cat([encoder[1:255], encoder[511:512]]).t()  # [H, 255]
    phi = hop_term(ck.Relations(hops=hops), table)
    real = (official >= 0)[:, None].expand_as(phi)
    assert torch.equal(phi[real], golden["out.phi2d"][real])
