"""Neighbours within a radius: the edges of a structure that has coordinates but no bonds."""

from __future__ import annotations

import itertools
from types import ModuleType

import torch
from torch import Tensor

from collamo_kernels.checks import check_tensors, hint_at_batch
from collamo_kernels.relations import check_coordinates

TREE_ABOVE = 512  # atoms; all 262,144 pairs take 1 ms, so that a tree has nothing to save
PAIRS_AT_ONCE = 2**22  # our choice: 50 MB of differences in float32
SLACK = 1e-4  # of the radius: torch-cluster compares squares, rounded in its own way


def radius_graph(coordinates: Tensor, ptr: Tensor, radius: float) -> Tensor:
    """Join the atoms of each structure that are at most `radius` apart.

    For what has no bonds to count: clusters, coarse-grained chains, a pocket cut out of a protein.
    `Relations.from_graphs` takes the edges, and hops are then steps between neighbours.

    Structures of more than 512 atoms on the CPU are searched by torch-cluster where it is
    installed (``pip install 'collamo[cluster]'``), whose tree takes N log N steps; all others by
    their distances to all atoms, a few million at a time. The edges are the same.

    Parameters
    ----------
    coordinates
        ``[T, 3]`` float32 or float64, Å, the atoms of all structures one after the other. No
        gradient: an edge is there or not.
    ptr
        ``[B + 1]`` int64, the running total of atoms.
    radius
        Å; a pair exactly this far apart is joined.

    Returns
    -------
    Tensor
        int64 ``[2, E]``, both directions of each edge, sorted by the first atom, then by the
        second; no atom is joined to itself, and none loses neighbours because it has many.

    Raises
    ------
    ValueError
        A wrong shape, dtype, device or `radius`, or an atom whose coordinates are not finite.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> beads = torch.tensor([[0.0, 0, 0], [3.8, 0, 0], [7.6, 0, 0]]), torch.tensor([0, 3])
    >>> edges = ck.radius_graph(*beads, radius=4.0)
    >>> edges.tolist()
    [[0, 1, 1, 2], [1, 0, 2, 1]]
    >>> ck.Relations.from_graphs(edges, beads[1], coordinates=beads[0]).hops[0, 0].tolist()
    [0, 1, 2]
    """
    _check(coordinates, ptr, radius)
    x = coordinates.detach()
    edges = [ptr.new_empty(2, 0)]
    for start, stop in itertools.pairwise(ptr.tolist()):
        edges.append(_neighbours(x[start:stop], radius) + start)
    return torch.cat(edges, 1)


def _neighbours(x: Tensor, radius: float) -> Tensor:
    # Not a choice of `backends`: who searches makes no difference to the edges.
    tree = _torch_cluster() if len(x) > TREE_ABOVE and x.device.type == "cpu" else None
    if tree is not None:
        edges = tree.radius_graph(x, radius * (1 + SLACK), max_num_neighbors=len(x))
        edges = edges[:, _distance(x[edges[0]], x[edges[1]]) <= radius]
        return edges[:, (edges[0] * len(x) + edges[1]).argsort()]
    rows = max(1, PAIRS_AT_ONCE // max(1, len(x)))
    parts = [torch.empty(2, 0, dtype=torch.int64, device=x.device)]
    for first in range(0, len(x), rows):
        near = _distance(x[first : first + rows, None], x) <= radius  # [i, j]
        near.diagonal(first).fill_(False)
        i, j = near.nonzero(as_tuple=True)
        parts.append(torch.stack([i + first, j]))
    return torch.cat(parts, 1)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    # Written out, so that a pair has the same distance whatever the shape it is computed in.
    dx, dy, dz = (x - y).unbind(-1)
    return (dx * dx + dy * dy + dz * dz).sqrt()


def _torch_cluster() -> ModuleType | None:
    try:
        import torch_cluster
    except ImportError:
        return None
    return torch_cluster


def _check(coordinates: Tensor, ptr: Tensor, radius: float) -> None:
    check_tensors(coordinates=coordinates, ptr=ptr)
    check_coordinates(coordinates, dims=2)
    if ptr.dtype != torch.int64 or ptr.dim() != 1 or len(ptr) == 0:
        raise ValueError(
            f"ptr is {ptr.dtype} {list(ptr.shape)}; it must be int64 [B + 1], "
            "the running total of atoms"
        )
    ends = ptr.tolist()
    if ends[0] != 0 or ends[-1] != len(coordinates) or ends != sorted(ends):
        raise ValueError(
            f"ptr must rise from 0 to the {len(coordinates)} rows of coordinates; "
            f"it goes from {ends[0]} to {ends[-1]}{hint_at_batch(ptr)}"
        )
    if not radius > 0:  # not "≤": NaN is refused as well
        raise ValueError(f"radius is {radius}; it must be a length above 0, in Å")
    broken = (~coordinates.isfinite().all(1)).nonzero()
    if len(broken):
        at = int(broken[0, 0])
        raise ValueError(
            f"the coordinates of atom {at} are {coordinates[at].tolist()}; "
            "leave out atoms without a place"
        )
