"""Hop counts: by hand, against SciPy, networkx and the official Graphormer matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.extension import why_absent
from collamo_kernels.shortest_paths.call import ShortestPathsCall
from collamo_kernels.testing import device_of, random_graphs

needs_extension = pytest.mark.skipif(why_absent() is not None, reason=why_absent() or "")


def both_ways(*edges):
    forward = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t()
    return torch.cat([forward, forward.flip(0)], 1)


def chain(atoms):
    return both_ways(*[(i, i + 1) for i in range(atoms - 1)])


def by_scipy(edge_index, atoms):
    """uint8 [N, N] with our conventions, from SciPy's float distances."""
    sparse = pytest.importorskip("scipy.sparse")
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    if atoms == 0:
        return np.zeros((0, 0), np.uint8)
    source, target = edge_index.numpy()
    graph = sparse.coo_matrix((np.ones(len(source)), (source, target)), shape=(atoms, atoms))
    distance = csgraph.shortest_path(graph, method="D", unweighted=True)
    return np.where(np.isinf(distance), 255, np.minimum(distance, 253)).astype(np.uint8)


@pytest.fixture
def hops_of(shortest_paths_backend, serves):
    """``hops_of(edge_index, ptr, …)`` on the backend under test and its device."""
    backend, device = shortest_paths_backend, device_of(shortest_paths_backend)

    def run(edge_index, ptr, **kwargs):
        graphs = edge_index.to(device), ptr.to(device)
        return serves(backend, lambda: ck.shortest_paths(*graphs, **kwargs, backend=backend)).cpu()

    return run


class TestByHand:
    def test_ring_with_a_tail(self, hops_of):
        cyclopropane_and_chain = both_ways((0, 1), (1, 2), (2, 0), (2, 3), (3, 4))
        hops = hops_of(cyclopropane_and_chain, torch.tensor([0, 5]))
        assert hops.dtype == torch.uint8
        assert hops[0].tolist() == [
            [0, 1, 1, 2, 3],
            [1, 0, 1, 2, 3],
            [1, 1, 0, 1, 2],
            [2, 2, 1, 0, 1],
            [3, 3, 2, 1, 0],
        ]

    def test_fragments_are_unreachable(self, hops_of):
        hops = hops_of(both_ways((0, 1)), torch.tensor([0, 3]))
        assert hops[0].tolist() == [[0, 1, 255], [1, 0, 255], [255, 255, 0]]

    def test_direction_is_from_row_to_column(self, hops_of):
        one_way = torch.tensor([[0, 1], [1, 2]])
        hops = hops_of(one_way, torch.tensor([0, 3]))
        assert hops[0].tolist() == [[0, 1, 2], [255, 0, 1], [255, 255, 0]]

    def test_repeated_edges_and_self_loops_change_nothing(self, hops_of):
        edges = torch.cat([chain(3), chain(3), torch.tensor([[1], [1]])], 1)
        assert torch.equal(
            hops_of(edges, torch.tensor([0, 3])), hops_of(chain(3), torch.tensor([0, 3]))
        )

    def test_padding_is_unreachable(self, hops_of):
        hops = hops_of(both_ways((0, 1), (2, 3)), torch.tensor([0, 2, 2, 5]))
        assert hops.shape == (3, 3, 3)
        assert hops[0].tolist() == [[0, 1, 255], [1, 0, 255], [255, 255, 255]]
        assert bool((hops[1] == 255).all())

    def test_max_atoms_pads_further(self, hops_of):
        narrow = hops_of(chain(3), torch.tensor([0, 3]))
        wide = hops_of(chain(3), torch.tensor([0, 3]), max_atoms=7)
        assert wide.shape == (1, 7, 7)
        assert torch.equal(wide[:, :3, :3], narrow)
        assert bool((wide[:, 3:] == 255).all() and (wide[:, :, 3:] == 255).all())

    @pytest.mark.parametrize(
        ("sizes", "shape"), [((), (0, 0, 0)), ((0, 0), (2, 0, 0)), ((1,), (1, 1, 1))]
    )
    def test_nothing_to_walk(self, hops_of, sizes, shape):
        nothing = torch.zeros(2, 0, dtype=torch.int64)
        ptr = torch.tensor([0, *sizes]).cumsum(0)
        assert hops_of(nothing, ptr).shape == shape
        assert len(hops_of(nothing, ptr, layout="packed")) == sum(n * n for n in sizes)


# More than 512 atoms are searched in several blocks; the definition needs seconds for that many.
LONG = {"cuda": 700, "cpu": 700, "reference": 280}


@pytest.mark.parametrize("atoms", [254, 255, None])
def test_long_chains_saturate(atoms, hops_of, shortest_paths_backend):
    atoms = atoms or LONG[shortest_paths_backend]
    hops = hops_of(chain(atoms), torch.tensor([0, atoms]))[0]
    position = torch.arange(atoms)
    assert torch.equal(hops, (position[:, None] - position).abs().clamp(max=253).to(torch.uint8))


def test_long_chain_in_any_order(hops_of, shortest_paths_backend):
    atoms = LONG[shortest_paths_backend]
    order = torch.randperm(atoms)
    hops = hops_of(order[chain(atoms)], torch.tensor([0, atoms]))[0]
    position = order.argsort()
    assert torch.equal(hops, (position[:, None] - position).abs().clamp(max=253).to(torch.uint8))


def test_long_one_way_chain(hops_of, shortest_paths_backend):
    atoms = LONG[shortest_paths_backend]
    order = torch.randperm(atoms)
    one_way = order[torch.stack([torch.arange(atoms - 1), torch.arange(1, atoms)])]
    hops = hops_of(one_way, torch.tensor([0, atoms]))[0]
    position = order.argsort()
    ahead = position - position[:, None]
    assert torch.equal(hops.long(), torch.where(ahead < 0, 255, ahead.clamp(max=253)))


@needs_extension
def test_a_chain_of_three_thousand_atoms():
    hops = ck.shortest_paths(chain(3000), torch.tensor([0, 3000]), backend="cpu")[0]
    position = torch.arange(3000)
    assert torch.equal(hops, (position[:, None] - position).abs().clamp(max=253).to(torch.uint8))


SIZES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 513)


@pytest.mark.parametrize("fragments", [1, 3])
def test_every_size_against_scipy(fragments, hops_of):
    edges, ptr = random_graphs(SIZES, torch.Generator().manual_seed(1), fragments)
    wanted = []
    for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        inside = (edges[0] >= start) & (edges[0] < stop)
        wanted.append(by_scipy(edges[:, inside] - start, stop - start))
    hops = hops_of(edges, ptr).numpy()
    for matrix, want in zip(hops, wanted, strict=True):
        assert np.array_equal(matrix[: len(want), : len(want)], want)
    packed = hops_of(edges, ptr, layout="packed").numpy()
    assert np.array_equal(packed, np.concatenate([want.ravel() for want in wanted]))


@pytest.mark.parametrize("rim", [3, 4, 5, 8, 9, 60, 600])
def test_an_atom_with_many_neighbours(rim, hops_of):
    wheel = both_ways(*[(0, i + 1) for i in range(rim)], (1, 2))
    hops = hops_of(wheel, torch.tensor([0, rim + 1]), max_atoms=rim + 34)[0]
    expected = torch.full((rim + 34, rim + 34), 255)
    expected[: rim + 1, : rim + 1] = 2
    expected[0, : rim + 1] = expected[: rim + 1, 0] = 1
    expected[1, 2] = expected[2, 1] = 1
    expected[range(rim + 1), range(rim + 1)] = 0
    assert torch.equal(hops.long(), expected)


def test_edges_in_any_order(hops_of):
    """Molecule by molecule, as PyG makes them, is the order that is read without sorting."""
    edges, ptr = random_graphs((20, 0, 7, 33, 70), torch.Generator().manual_seed(2))
    molecule_by_molecule = edges[:, edges[0].argsort(stable=True)]
    shuffled = edges[:, torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(3))]
    hops = hops_of(molecule_by_molecule, ptr, layout="packed")
    assert torch.equal(hops_of(shuffled, ptr, layout="packed"), hops)
    assert torch.equal(hops_of(shuffled.flip(1), ptr, layout="packed"), hops)


def test_official_matrices(shared_golden, hops_of):
    load_file = pytest.importorskip("safetensors.torch").load_file
    golden = load_file(shared_golden / "hops.safetensors")
    names = sorted({name.split(".")[0] for name in golden})
    assert len(names) == 40
    for name in names:
        official = golden[f"{name}.hops"].long()
        edges = golden[f"{name}.edge_index"].long()
        hops = hops_of(edges, torch.tensor([0, len(official)]))[0].long()
        assert torch.equal(hops, torch.where(official == 510, 255, official))


def test_any_strides(hops_of):
    edges, ptr = random_graphs((9, 5), torch.Generator().manual_seed(0))
    strided = torch.stack([edges, edges], -1)[..., 0]
    rows_last = edges.t().contiguous().t()
    doubled = torch.stack([ptr, ptr], -1)[:, 1]
    for odd in (strided, rows_last):
        assert not odd.is_contiguous()
        assert torch.equal(hops_of(odd, doubled), hops_of(edges, ptr))


@needs_extension
def test_same_result_for_any_number_of_threads():
    edges, ptr = random_graphs((40,) * 64, torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ck.shortest_paths(edges, ptr, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


TWO = torch.tensor([0, 2, 4])
BAD = {
    "ptr is a list; make it a tensor": {"ptr": [0, 4]},
    "edge_index has dtype torch.int32": {"edge_index": chain(4).int()},
    "edge_index has shape": {"edge_index": chain(4)[0]},
    "ptr has dtype": {"ptr": TWO.int()},
    "ptr has shape": {"ptr": TWO[:0]},
    "ptr starts at 1": {"ptr": torch.tensor([1, 4])},
    "ptr starts at -2": {"ptr": torch.tensor([-2, 4])},
    "ptr falls from 3 to 2 at molecule 1": {"ptr": torch.tensor([0, 3, 2])},
    "ptr gives molecule 0 70000 atoms": {"ptr": torch.tensor([0, 70000])},
    "column 2 is .2, 3., but ptr says the batch has 3": {"ptr": torch.tensor([0, 3])},
    "column 0 is .-1, 0.": {"edge_index": chain(4) - 1},
    "column 1 joins atom 1 of molecule 0 to atom 2 of molecule 1": {"ptr": TWO},
    "layout is 'dense'": {"layout": "dense"},
    "max_atoms has no meaning": {"layout": "packed", "max_atoms": 9},
    "max_atoms is 3; the largest molecule of the batch has 4": {"max_atoms": 3},
    "edge_index is on meta and ptr on": {"edge_index": chain(4).to("meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_input_is_named(message, shortest_paths_backend, serves):
    backend, device = shortest_paths_backend, device_of(shortest_paths_backend)
    arguments = {"edge_index": chain(4), "ptr": torch.tensor([0, 4]), "backend": backend}
    for name, value in BAD[message].items():
        arguments[name] = value
    for name in ("edge_index", "ptr"):
        if getattr(arguments[name], "device", None) == torch.device("cpu"):
            arguments[name] = arguments[name].to(device)
    with pytest.raises(ValueError, match=message):
        serves(backend, lambda: ck.shortest_paths(**arguments))


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend 'magic' does not exist"):
        ck.shortest_paths(chain(4), torch.tensor([0, 4]), backend="magic")


@pytest.fixture(params=["cpu", "cuda"])
def device(request, serves):
    """Where the compiled operator runs, if it does."""
    where = device_of(request.param)
    nothing = (
        torch.zeros(2, 0, dtype=torch.int64, device=where),
        torch.zeros(1, device=where).long(),
    )
    serves(request.param, lambda: ck.shortest_paths(*nothing, backend=request.param))
    return where


def molecule_by_molecule(edges, ptr, device):
    return edges[:, edges[0].argsort(stable=True)].to(device), ptr.to(device)


class TestOperator:
    """torch.ops.collamo_kernels.shortest_paths, which anybody may call without our checks."""

    @property
    def op(self):
        return torch.ops.collamo_kernels.shortest_paths

    @pytest.mark.parametrize(
        ("packed", "size"), [(False, 5), (False, None), (True, 4 * 4 + 3 * 3), (True, None)]
    )
    def test_opcheck(self, packed, size, device):
        edges, ptr = random_graphs((4, 3), torch.Generator().manual_seed(0))
        graphs = molecule_by_molecule(edges, ptr, device)
        torch.library.opcheck(self.op, (*graphs, packed, size))

    def test_compiles_as_one_graph(self, device):
        edges, ptr = random_graphs((4, 3), torch.Generator().manual_seed(0))

        def run(edges, ptr):
            return ck.shortest_paths(edges, ptr, max_atoms=6)

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        graphs = edges.to(device), ptr.to(device)
        assert torch.equal(compiled(*graphs), run(*graphs))

    @pytest.mark.parametrize(
        ("edges", "ptr", "packed", "size"),
        [
            (chain(4), [0, 5, 3], False, 5),
            (chain(4), [3, 4], False, 4),
            (chain(4), [0, -1], False, 4),
            (chain(4) - 1, [0, 4], False, 4),
            (chain(4) * 10**12, [0, 4], False, 4),
            (chain(4), [0, 2, 4], False, 4),
            (chain(4), [0, 4], False, 3),
            (chain(4), [0, 4], False, -1),
            (chain(4), [0, 4], False, 10**6),
            (chain(4), [0, 4], True, 15),
            (chain(4), [0, 2**40], True, 15),
            (chain(4), [], False, 4),
            (chain(4).int(), [0, 4], False, 4),
            (chain(4)[0], [0, 4], False, 4),
        ],
    )
    def test_it_never_reads_beyond_its_input(self, edges, ptr, packed, size, device):
        ptr = torch.tensor(ptr, dtype=torch.int64, device=device)
        with pytest.raises(ValueError, match=r"edge_index|ptr|size"):
            self.op(edges.to(device), ptr, packed, size)


class TestOnGPU:
    @pytest.fixture(autouse=True)
    def _gpu(self, serves):
        where = device_of("cuda")
        nothing = torch.zeros(2, 0).long().to(where), torch.zeros(1).long().to(where)
        serves("cuda", lambda: ck.shortest_paths(*nothing, backend="cuda"))

    @pytest.mark.parametrize("fragments", [1, 3])
    def test_every_size_equals_the_cpu(self, fragments):
        """Where SciPy is absent; the CPU is held to it elsewhere."""
        edges, ptr = random_graphs(SIZES, torch.Generator().manual_seed(1), fragments)
        wanted = ck.shortest_paths(edges, ptr, layout="packed")
        assert torch.equal(
            ck.shortest_paths(edges.cuda(), ptr.cuda(), layout="packed", backend="cuda").cpu(),
            wanted,
        )

    def test_in_a_cuda_graph(self):
        """Captured once, replayed on other molecules of the same sizes."""
        sizes = (30, 70, 0, 5)
        batches = [random_graphs(sizes, torch.Generator().manual_seed(i)) for i in range(3)]
        edges, ptr = (x.cuda() for x in batches[0])
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            ck.shortest_paths(edges, ptr, max_atoms=70)  # loads what is loaded lazily
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            hops = ck.shortest_paths(edges, ptr, max_atoms=70)
        for other, _ in batches:
            edges.copy_(other)
            graph.replay()
            assert torch.equal(hops.cpu(), ck.shortest_paths(other, ptr.cpu(), max_atoms=70))

    def test_on_the_current_stream(self):
        edges, ptr = random_graphs((40,) * 256, torch.Generator().manual_seed(0))
        wanted = ck.shortest_paths(edges, ptr)
        stream, late = torch.cuda.Stream(), torch.zeros_like(edges, device="cuda")
        ready = edges.cuda()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            late.copy_(ready)
            hops = ck.shortest_paths(late, ptr.cuda())
        stream.synchronize()
        assert torch.equal(hops.cpu(), wanted)


def test_backends_refuse_another_device(monkeypatch):
    from collamo_kernels.shortest_paths import _cpu, _cuda

    meta = torch.zeros(2, 0, dtype=torch.int64, device="meta")
    call = ShortestPathsCall(meta, torch.zeros(1, device="meta"), False, None)
    assert "runs on the CPU" in _cpu.unsupported(call)
    assert "on meta; this backend runs on a GPU" in _cuda.unsupported(call)

    class OnGPU:
        device = torch.device("cuda")

    monkeypatch.setattr(_cuda, "why_absent", lambda: None)
    monkeypatch.setattr(_cuda, "build_info", lambda: {"cuda": False})
    assert "built without CUDA" in _cuda.unsupported(replace(call, edge_index=OnGPU))
