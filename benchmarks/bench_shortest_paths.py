"""Hops of 512 real molecules and of one large graph, against RDKit, SciPy, networkx, our reference.

RDKit, SciPy and networkx get what they need prepared (Mol objects, sparse matrices, graphs) and go
molecule by molecule; ours gets the batched edge list, checks in Python included.
"""

from __future__ import annotations

import molecules
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

import collamo_kernels as ck
from collamo_kernels.testing import random_graphs

try:
    import networkx as nx
    from rdkit import Chem
except ImportError:  # gpu.py takes only SciPy from here
    nx = Chem = None

BATCH = 512


def packed(matrices: list[np.ndarray]) -> torch.Tensor:
    """Matrices of hops, unreachable being huge or infinite → uint8 [Σ N_b²]."""
    flat = np.concatenate([matrix.ravel() for matrix in matrices])
    return torch.from_numpy(np.where(flat > 253, 255, flat).astype(np.uint8))


def sparse(edges: np.ndarray, atoms: int) -> csr_array:
    """The adjacency that SciPy takes."""
    return csr_array((np.ones(edges.shape[1]), tuple(edges)), shape=(atoms, atoms))


def by_scipy(matrices: list[csr_array]) -> list[np.ndarray]:
    """Dijkstra or Floyd–Warshall, as SciPy thinks best."""
    return [shortest_path(matrix, unweighted=True) for matrix in matrices]


def by_networkx(graphs: list[nx.Graph]) -> list[dict]:
    """A search from every atom; lengths stay in dictionaries."""
    return [dict(nx.all_pairs_shortest_path_length(graph)) for graph in graphs]


def from_networkx(lengths: list[dict]) -> torch.Tensor:
    """What networkx found, in our form."""
    matrices = []
    for graph in lengths:
        matrix = np.full((len(graph), len(graph)), np.inf)
        for atom, reached in graph.items():
            matrix[atom, list(reached)] = list(reached.values())
        matrices.append(matrix)
    return packed(matrices)


def as_networkx(edges: np.ndarray, atoms: int) -> nx.Graph:
    """The graph that networkx takes."""
    graph = nx.Graph()
    graph.add_nodes_from(range(atoms))
    graph.add_edges_from(edges.T.tolist())
    return graph


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def bench_molecules(compare, threads):
    """A batch of 512 molecules of at most 100 atoms, packed."""
    name, mols = molecules.read(BATCH)
    batch = molecules.graphs(mols)
    each = [(molecules.edges(mol), mol.GetNumAtoms()) for mol in mols]
    matrices = [sparse(*graph) for graph in each]
    nx_graphs = [as_networkx(*graph) for graph in each]

    def ours(backend=None):
        return ck.shortest_paths(*batch, layout="packed", backend=backend)

    def by_rdkit():
        return [Chem.GetDistanceMatrix(mol, force=True) for mol in mols]

    answer = ours()
    assert torch.equal(packed(by_rdkit()), answer)
    assert torch.equal(packed(by_scipy(matrices)), answer)
    assert torch.equal(from_networkx(by_networkx(nx_graphs)), answer)
    assert torch.equal(ours("reference"), answer)
    rivals = {
        "RDKit": by_rdkit,
        "SciPy": lambda: by_scipy(matrices),
        "networkx": lambda: by_networkx(nx_graphs),
        "reference": lambda: ours("reference"),
    }
    mean = batch[1].diff().double().mean()
    compare("shortest_paths", f"{BATCH} {name} molecules (mean {mean:.1f} atoms)", ours, rivals, 21)


TOO_LONG = {
    "RDKit": "not run: Floyd–Warshall, minutes",
    "networkx": "not run: about 17 s, by the square of the size",
    "reference": "not run: 36 matrix products of 250 GFLOP",
}


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize("atoms", [500, 5000])
def bench_one_graph(compare, threads, atoms):
    """One large graph: a random tree with rings."""
    edges, ptr = random_graphs((atoms,), torch.Generator().manual_seed(0))
    matrix, graph = sparse(edges.numpy(), atoms), as_networkx(edges.numpy(), atoms)
    mol = as_carbon(edges, atoms)
    rivals = {
        "RDKit": lambda: Chem.GetDistanceMatrix(mol, force=True),
        "SciPy": lambda: by_scipy([matrix]),
        "networkx": lambda: by_networkx([graph]),
        "reference": lambda: ck.shortest_paths(edges, ptr, backend="reference"),
    }
    rivals |= TOO_LONG if atoms > 1000 else {}

    def ours():
        return ck.shortest_paths(edges, ptr)

    assert torch.equal(packed(by_scipy([matrix])), ours().flatten())
    if atoms <= 1000:
        assert torch.equal(packed([rivals["RDKit"]()]), ours().flatten())
    rounds = 11 if atoms <= 1000 else 3
    compare("shortest_paths", f"one graph of {atoms} atoms", ours, rivals, rounds)


def as_carbon(edges: torch.Tensor, atoms: int) -> Chem.Mol:
    """A molecule with this graph, for RDKit's sake; valences do not matter."""
    mol = Chem.RWMol()
    for _ in range(atoms):
        mol.AddAtom(Chem.Atom(6))
    for a, b in {tuple(sorted(pair)) for pair in edges.t().tolist() if pair[0] != pair[1]}:
        mol.AddBond(a, b, Chem.BondType.SINGLE)
    return mol.GetMol()
