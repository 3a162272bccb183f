"""Neighbours within a radius: by hand, against SciPy's tree, with and without torch-cluster."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

import collamo_kernels as ck

graphs = sys.modules["collamo_kernels.radius_graph"]  # the name in `ck` is the function


@pytest.fixture
def without_tree(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_cluster", None)


def structures(*sizes, seed=0):
    """Coordinates [T, 3] at the density of atoms in a liquid, and ptr."""
    generator = torch.Generator().manual_seed(seed)
    places = [torch.rand(n, 3, generator=generator) * (10 * n) ** (1 / 3) for n in sizes]
    return torch.cat([torch.empty(0, 3), *places]), torch.tensor([0, *sizes]).cumsum(0)


def by_scipy(x, ptr, radius):
    cKDTree = pytest.importorskip("scipy.spatial").cKDTree
    edges = []
    for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        pairs = cKDTree(x[start:stop].double()).query_pairs(radius, output_type="ndarray") + start
        edges += [tuple(p) for p in pairs] + [tuple(p[::-1]) for p in pairs]
    return torch.tensor(sorted(edges), dtype=torch.int64).reshape(-1, 2).t()


def test_a_pair_exactly_the_radius_apart_is_joined():
    x, ptr = torch.tensor([[0.0, 0, 0], [3.0, 4.0, 0], [3.0, 4.0, 0.1]]), torch.tensor([0, 3])
    assert ck.radius_graph(x, ptr, 5.0).tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]


def test_atoms_in_one_place_are_neighbours():
    edges = ck.radius_graph(torch.zeros(2, 3), torch.tensor([0, 2]), 1.0)
    assert edges.tolist() == [[0, 1], [1, 0]]


def test_structures_do_not_see_each_other():
    edges = ck.radius_graph(torch.zeros(3, 3), torch.tensor([0, 2, 2, 3]), 1.0)
    assert edges.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (2, 0, 33), (512, 513), (700,)], ids=str)
def test_against_scipy(sizes, without_tree):
    x, ptr = structures(*sizes)
    edges = ck.radius_graph(x, ptr, 3.0)
    assert torch.equal(edges, by_scipy(x, ptr, 3.0))


@pytest.mark.parametrize("at_once", [1, 1000])
def test_rows_at_a_time_change_nothing(at_once, without_tree, monkeypatch):
    x, ptr = structures(90)
    whole = ck.radius_graph(x, ptr, 3.0)
    monkeypatch.setattr(graphs, "PAIRS_AT_ONCE", at_once)
    assert torch.equal(ck.radius_graph(x, ptr, 3.0), whole)


def test_the_tree_of_torch_cluster_finds_the_same(monkeypatch):
    pytest.importorskip("torch_cluster", reason="torch-cluster (extra 'cluster') is not installed")
    x, ptr = structures(40, 1500)
    found = ck.radius_graph(x, ptr, 4.0)
    monkeypatch.setitem(sys.modules, "torch_cluster", None)
    assert torch.equal(found, ck.radius_graph(x, ptr, 4.0))


def test_what_a_tree_finds_is_measured_again_and_sorted(monkeypatch):
    """A tree may answer in any order and, its squares rounded otherwise, with pairs too far."""
    x, ptr = structures(40, 600)
    calls = []

    def all_pairs(places, radius, max_num_neighbors):
        calls.append((len(places), radius, max_num_neighbors))
        pairs = torch.cartesian_prod(*[torch.arange(len(places))] * 2).t()
        pairs = pairs[:, pairs[0] != pairs[1]]
        return pairs[:, torch.randperm(pairs.shape[1])]

    monkeypatch.setitem(sys.modules, "torch_cluster", SimpleNamespace(radius_graph=all_pairs))
    found = ck.radius_graph(x, ptr, 4.0)
    ((size, radius, most),) = calls  # only the structure above 512 atoms
    assert size == most == 600
    assert radius > 4.0
    monkeypatch.setitem(sys.modules, "torch_cluster", None)
    assert torch.equal(found, ck.radius_graph(x, ptr, 4.0))


def test_hops_are_steps_between_neighbours(without_tree):
    x = torch.arange(600.0)[:, None] * torch.tensor([3.8, 0, 0])
    ptr = torch.tensor([0, 600])
    hops = ck.Relations.from_graphs(ck.radius_graph(x, ptr, 4.0), ptr, coordinates=x).hops
    assert hops[0, 0, :254].tolist() == [*range(254)]
    assert hops[0, 0, 599] == 253


BAD = {
    "coordinates is a list": {"coordinates": [[0.0, 0.0, 0.0]] * 3},
    "coordinates has shape": {"coordinates": torch.zeros(1, 3, 3)},
    "ptr is torch.int32": {"ptr": torch.tensor([0, 3], dtype=torch.int32)},
    "ptr must rise from 0 to the 3 rows": {"ptr": torch.tensor([0, 2])},
    "it goes from 0 to 3": {"ptr": torch.tensor([0, 4, 3])},
    "radius is 0": {"radius": 0},
    "radius is nan": {"radius": math.nan},
    "the coordinates of atom 1 are": {
        "coordinates": torch.tensor([[0.0], [math.inf], [0.0]]).expand(3, 3)
    },
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_input_is_named(message):
    arguments = {"coordinates": torch.zeros(3, 3), "ptr": torch.tensor([0, 3]), "radius": 1.0}
    with pytest.raises(ValueError, match=message):
        ck.radius_graph(**(arguments | BAD[message]))
