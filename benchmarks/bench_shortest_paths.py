"""Hops of 512 real molecules (RDKit's NCI set), one thread: every backend against RDKit and SciPy.

Each rival's answer is checked before it is timed. RDKit and SciPy get what they need prepared (Mol
objects, sparse matrices); the backends get the batched edge list, checks in Python included.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem, RDConfig, rdBase
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

import collamo_kernels as ck
from collamo_kernels.backends import BACKENDS

MOLECULES = 512
UNREACHABLE = 255


def read_molecules() -> list[Chem.Mol]:
    """Return the first `MOLECULES` molecules of the set that parse."""
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()
    with rdBase.BlockLogs():
        mols = (Chem.MolFromSmiles(line.split()[0]) for line in lines)
        return [mol for mol, _ in zip(filter(None, mols), range(MOLECULES), strict=False)]


def edges(mol: Chem.Mol) -> np.ndarray:
    """Both directions of each bond, [2, E] int64."""
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    one_way = np.array(bonds, dtype=np.int64).reshape(-1, 2).T
    return np.concatenate([one_way, one_way[::-1]], axis=1)


@pytest.fixture(scope="module")
def mols() -> list[Chem.Mol]:
    """Return the molecules, with torch held to one thread as its rivals are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield read_molecules()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def graphs(mols) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch as (edge_index [2, E], ptr [B + 1])."""
    ptr = np.cumsum([0, *(mol.GetNumAtoms() for mol in mols)])
    index = np.concatenate([edges(mol) + start for mol, start in zip(mols, ptr, strict=False)], 1)
    return torch.from_numpy(index), torch.from_numpy(ptr)


@pytest.fixture(scope="module")
def expected(mols) -> torch.Tensor:
    """Hops by RDKit, packed uint8 [Σ N_b²]; no molecule here has a path beyond 253 bonds."""
    return packed([Chem.GetDistanceMatrix(mol, force=True) for mol in mols])


def packed(matrices: list[np.ndarray]) -> torch.Tensor:
    """Matrices of hops, unreachable being huge or infinite → uint8 [Σ N_b²]."""
    flat = np.concatenate([matrix.ravel() for matrix in matrices])
    return torch.from_numpy(np.where(flat > 253, UNREACHABLE, flat).astype(np.uint8))


@pytest.mark.parametrize("backend", [row.name for row in BACKENDS["shortest_paths"]])
def bench_shortest_paths(benchmark, graphs, expected, backend):
    """Time one call on the whole batch."""

    def run() -> torch.Tensor:
        return ck.shortest_paths(*graphs, layout="packed", backend=backend)

    try:
        answer = run()
    except ck.BackendError as refusal:
        pytest.skip(str(refusal))
    assert torch.equal(answer, expected)
    benchmark(run)


def bench_rdkit(benchmark, mols):
    """Time RDKit's Floyd–Warshall, molecule by molecule."""
    benchmark(lambda: [Chem.GetDistanceMatrix(mol, force=True) for mol in mols])


def bench_scipy(benchmark, mols, expected):
    """Time SciPy's breadth-first Dijkstra, molecule by molecule."""
    matrices = []
    for mol in mols:
        row, column = edges(mol)
        shape = (mol.GetNumAtoms(), mol.GetNumAtoms())
        matrices.append(csr_array((np.ones(len(row)), (row, column)), shape=shape))

    def run() -> list[np.ndarray]:
        return [shortest_path(matrix, unweighted=True) for matrix in matrices]

    assert torch.equal(packed(run()), expected)
    benchmark(run)
