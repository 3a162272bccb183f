"""The CUDA kernels without a GPU: what nvcc makes of them, and their numbers on an emulated one."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.relations.op import sort_pairs
from collamo_kernels.testing import random_graphs

pytestmark = pytest.mark.slow  # nvcc, and a GPU emulated thread by thread

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc").glob("*/*.cu"))
EMULATION = Path(__file__).parent / "emulation"
CAPABILITIES = 80, 90
REGISTERS = 64  # of a thread: what 1,024 threads of an SM leave
SHARED = 48 * 1024  # bytes of a block: what every GPU gives without being asked

# --- ahead of time --------------------------------------------------------------------------------


def nvcc():
    """The compiler, beside torch's CUDA or on the PATH."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


@pytest.mark.slow
@pytest.mark.skipif(nvcc() is None, reason="nvcc is not here; it comes with the CUDA toolkit")
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.parent.name)
def test_kernels_compile_and_fit(source, capability, tmp_path):
    options = ["-std=c++17", "-O3", f"-arch=sm_{capability}", "-Xptxas=-v", "-Werror=all-warnings"]
    command = [nvcc(), *options, "-c", source, "-o", tmp_path / "kernel.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = done.stderr.split("Compiling entry function '")[1:]
    assert len(report) >= source.read_text().count("__global__")
    for kernel in report:
        assert "0 bytes spill stores, 0 bytes spill loads" in kernel, kernel
        assert int(re.search(r"Used (\d+) registers", kernel)[1]) <= REGISTERS, kernel
        assert int(re.search(r"(\d+) bytes smem", kernel)[1]) <= SHARED, kernel


# --- on an emulated GPU ---------------------------------------------------------------------------


def emulated(folder, csrc):
    """The CUDA kernels of `csrc` compiled into `folder`, for the host, against the emulation."""
    compiler = shutil.which("g++")
    if compiler is None or not Path("/usr/include/ucontext.h").exists():
        pytest.skip("the emulation needs g++ and glibc's headers")
    library = folder / "kernels.so"
    options = ["-std=c++17", "-O2", "-fno-strict-aliasing", "-shared", "-fPIC"]
    options += [f"-I{EMULATION}", f"-I{csrc}"]
    subprocess.run([compiler, *options, EMULATION / "kernels.cpp", "-o", library], check=True)
    gpu = ctypes.CDLL(str(library))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    gpu.emulated_shortest_paths.restype = number
    gpu.emulated_shortest_paths.argtypes = [pointer, number, pointer, number, number, number]
    gpu.emulated_shortest_paths.argtypes += [ctypes.c_bool, pointer]
    gpu.emulated_sort_pairs.restype = ctypes.c_bool
    gpu.emulated_sort_pairs.argtypes = [pointer, pointer, number, pointer, pointer, pointer]
    return gpu


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("emulation"), ROOT / "csrc")


REFUSED = -1
POISON = 0xA5


def search(gpu, edge_index, ptr, padded=None, pairs=None, captured=False):
    """uint8 as `ck.shortest_paths` returns it, or what the emulated search answers instead."""
    edge_index, molecules = edge_index.contiguous(), len(ptr) - 1
    sizes = ptr.diff()
    count = int(sizes.square().sum()) if padded is None else molecules * padded**2
    guarded = torch.full((max(count, 0) + 64,), POISON, dtype=torch.uint8)
    answer = gpu.emulated_shortest_paths(
        *(edge_index.data_ptr(), edge_index.shape[1], ptr.data_ptr(), molecules),
        *(-1 if padded is None else padded, -1 if pairs is None else pairs),
        *(captured, guarded.data_ptr()),
    )
    if answer < 0:
        return answer
    assert answer == count
    assert bool((guarded[count:] == POISON).all()), "written behind the result"
    shape = (count,) if padded is None else (molecules, padded, padded)
    return guarded[:count].view(shape)


def molecule_by_molecule(edges, ptr):
    return edges[:, edges[0].argsort(stable=True)], ptr


SIZES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 0, 257, 513, 700, 0)


@pytest.mark.parametrize("seed", ["1", "2", "3"])
@pytest.mark.parametrize("fragments", [1, 3])
def test_every_size_equals_the_cpu(gpu, fragments, seed, monkeypatch):
    monkeypatch.setenv("EMULATION_SEED", seed)
    edges, ptr = random_graphs(SIZES, torch.Generator().manual_seed(1), fragments)
    graphs = molecule_by_molecule(edges, ptr)
    packed = ck.shortest_paths(edges, ptr, layout="packed")
    assert torch.equal(search(gpu, *graphs), packed)
    assert torch.equal(search(gpu, *graphs, pairs=len(packed), captured=True), packed)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("atoms", [64, 65, 97, 520])
def test_padding(gpu, atoms, captured):
    sizes = tuple(n for n in SIZES if n <= atoms)
    edges, ptr = random_graphs(sizes, torch.Generator().manual_seed(2))
    graphs = molecule_by_molecule(edges, ptr)
    wanted = ck.shortest_paths(edges, ptr, max_atoms=atoms)
    assert torch.equal(search(gpu, *graphs, padded=atoms, captured=captured), wanted)


@pytest.mark.parametrize("atoms", [40, 254, 255, 256, 600])
@pytest.mark.parametrize("one_way", [False, True])
def test_chains_in_any_order(gpu, atoms, one_way):
    order = torch.randperm(atoms)
    step = torch.stack([torch.arange(atoms - 1), torch.arange(1, atoms)])
    edges = order[step if one_way else torch.cat([step, step.flip(0)], 1)]
    ptr = torch.tensor([0, atoms])
    assert torch.equal(search(gpu, edges, ptr), ck.shortest_paths(edges, ptr, layout="packed"))


@pytest.mark.parametrize("rim", [5, 63, 300, 600])
def test_many_neighbours_and_repeated_edges(gpu, rim):
    """More edges than the search stages in shared memory, loops among them."""
    spokes = torch.stack([torch.zeros(rim, dtype=torch.int64), torch.arange(1, rim + 1)])
    edges = torch.cat([spokes, spokes.flip(0), spokes, torch.tensor([[3], [3]]), spokes.flip(0)], 1)
    ptr = torch.tensor([0, rim + 1])
    assert torch.equal(search(gpu, edges, ptr), ck.shortest_paths(edges, ptr, layout="packed"))


def test_complete_graph(gpu):
    """With 4,950 edges a warp's molecule has far more than it can stage."""
    pairs = torch.combinations(torch.arange(60)).t()
    edges, ptr = torch.cat([pairs, pairs.flip(0)], 1), torch.tensor([0, 60])
    assert torch.equal(search(gpu, edges, ptr), ck.shortest_paths(edges, ptr, layout="packed"))


def test_many_molecules(gpu):
    """More than the survey takes in one round, with edges in many of its blocks."""
    generator = torch.Generator().manual_seed(3)
    sizes = tuple(torch.randint(0, 12, (2300,), generator=generator).tolist())
    edges, ptr = random_graphs(sizes, generator)
    graphs = molecule_by_molecule(edges, ptr)
    assert torch.equal(search(gpu, *graphs), ck.shortest_paths(edges, ptr, layout="packed"))


def test_against_scipy(gpu):
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    sparse = pytest.importorskip("scipy.sparse")
    for atoms in (1, 33, 64, 65, 300):
        edges, ptr = random_graphs((atoms,), torch.Generator().manual_seed(atoms), 2)
        ones = torch.ones(edges.shape[1])
        graph = sparse.coo_matrix((ones.numpy(), edges.numpy()), shape=(atoms, atoms))
        distance = torch.from_numpy(csgraph.shortest_path(graph, unweighted=True))
        wanted = torch.where(distance.isinf(), 255, distance.clamp(max=253)).to(torch.uint8)
        hops = search(gpu, *molecule_by_molecule(edges, ptr), padded=atoms)
        assert torch.equal(hops[0], wanted)


@pytest.mark.parametrize(("sizes", "padded"), [((), 0), ((0, 0), 0), ((0, 0), 5), ((1,), 1)])
def test_nothing_to_walk(gpu, sizes, padded):
    nothing, ptr = torch.zeros(2, 0, dtype=torch.int64), torch.tensor([0, *sizes]).cumsum(0)
    wanted = ck.shortest_paths(nothing, ptr, max_atoms=padded)
    assert torch.equal(search(gpu, nothing, ptr, padded=padded), wanted)
    assert len(search(gpu, nothing, ptr)) == sum(n * n for n in sizes)


CHAIN = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
REFUSE = {  # edges, ptr and options
    "an atom below the first": (CHAIN - 1, [0, 4], {}),
    "an atom behind the last": (CHAIN, [0, 3], {}),
    "a huge atom": (CHAIN * 10**15, [0, 4], {}),
    "a bond between molecules": (CHAIN, [0, 2, 4], {}),
    "molecules in disorder": (torch.tensor([[2, 0], [3, 1]]), [0, 2, 4], {}),
    "ptr starts late": (CHAIN, [1, 4], {}),
    "ptr falls": (CHAIN, [0, 5, 3, 4], {}),
    "ptr ends below 0": (CHAIN[:, :0], [0, -4], {}),
    "more atoms than the limit": (CHAIN[:, :0], [0, 65536], {"padded": 4}),
    "more atoms than padded": (CHAIN, [0, 4], {"padded": 3}),
    "other pairs than promised": (CHAIN, [0, 4], {"padded": None, "pairs": 15}),
}


@pytest.mark.parametrize("what", REFUSE)
def test_wrong_data_are_refused(gpu, what):
    edges, ptr, options = REFUSE[what]
    assert search(gpu, edges, torch.tensor(ptr), **{"padded": 9} | options) == REFUSED


def test_edges_in_disorder_among_many_blocks(gpu):
    """Every edge is in place, but one molecule's edges stand behind another's."""
    edges, ptr = random_graphs((9,) * 1500, torch.Generator().manual_seed(4))
    edges, _ = molecule_by_molecule(edges, ptr)
    assert torch.equal(search(gpu, edges, ptr), ck.shortest_paths(edges, ptr, layout="packed"))
    for at in (0, 4095, 4096, 8191):
        swapped = edges.clone()
        swapped[:, [at, at + 40]] = edges[:, [at + 40, at]]
        assert search(gpu, swapped, ptr) == REFUSED


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("pairs", [0, 1, 511, 512, 4607, 4608, 4609, 100003])
def test_sorted_pairs(gpu, pairs, padding):
    hops = torch.randint(0, 256, (pairs,), dtype=torch.uint8)
    hops[: pairs // 2] %= 3  # long runs of few values, as in molecules
    real = torch.rand(pairs) > 0.3 if padding else None
    order, keys = torch.full((pairs,), -1), hops.new_full((pairs,), 77)
    keys = keys.short() if padding else keys
    starts = torch.full((257,), -1)
    address = None if real is None else real.data_ptr()
    results = (x.data_ptr() for x in (order, keys, starts))
    assert gpu.emulated_sort_pairs(hops.data_ptr(), address, pairs, *results)
    for mine, wanted in zip((order, keys, starts), sort_pairs(hops, real), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("padding", [False, True])
def test_definition_of_sorted_pairs(padding):
    hops = torch.tensor([2, 0, 255, 2, 1, 0], dtype=torch.uint8)
    real = torch.tensor([True, True, True, False, True, True]) if padding else None
    order, keys, starts = torch.ops.collamo_kernels.pairs_by_hops(hops, real)
    if padding:
        assert order.tolist() == [1, 5, 4, 0, 2, 3]
        assert keys.tolist() == [0, 0, 1, 2, 255, 256]
        assert starts[[0, 1, 2, 3, 255, 256]].tolist() == [0, 2, 3, 4, 4, 5]
    else:
        assert order.tolist() == [1, 5, 4, 0, 3, 2]
        assert starts[[0, 1, 2, 3, 255, 256]].tolist() == [0, 2, 3, 5, 5, 6]
    torch.library.opcheck(torch.ops.collamo_kernels.pairs_by_hops, (hops, real))


def changed(folder, before, after):
    """The library with one place of the search written differently."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    source = folder / "csrc" / "shortest_paths" / "cuda.cu"
    text = source.read_text()
    assert text.count(before) == 1
    source.write_text(text.replace(before, after))
    return emulated(folder, folder / "csrc")


def test_large_molecules_share_little_scratch_memory(tmp_path):
    """One block then takes all molecules beyond 512 atoms, 64 targets after the other."""
    gpu = changed(tmp_path, "kScratchWords = int64_t{1} << 25", "kScratchWords = 1 << 13")
    edges, ptr = random_graphs((515, 20, 0, 530), torch.Generator().manual_seed(5))
    graphs = molecule_by_molecule(edges, ptr)
    assert torch.equal(search(gpu, *graphs), ck.shortest_paths(edges, ptr, layout="packed"))


def test_the_emulation_finds_a_missing_barrier(tmp_path, monkeypatch):
    """The order of threads is shuffled, so an answer that depends on it changes with the seed."""
    barrier = "next_[v] = away_[v];\n    __syncthreads();"
    gpu = changed(tmp_path, barrier, barrier.replace("__syncthreads();", ""))
    edges, ptr = random_graphs((64, 120), torch.Generator().manual_seed(0))
    graphs = molecule_by_molecule(edges, ptr)
    answers = []
    for seed in range(4):
        monkeypatch.setenv("EMULATION_SEED", str(seed))
        answers.append(search(gpu, *graphs))
    right = ck.shortest_paths(edges, ptr, layout="packed")
    assert not all(torch.equal(answer, right) for answer in answers)
