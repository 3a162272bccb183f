"""The definition of hop counts in plain PyTorch: breadth-first search by matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.shortest_paths.call import ShortestPathsCall
from collamo_kernels.shortest_paths.checks import check_contents
from collamo_kernels.shortest_paths.constants import LONGEST, UNREACHABLE


def unsupported(call: ShortestPathsCall) -> str | None:
    """Return None: the definition serves every input that fits in memory."""
    return None


def run(call: ShortestPathsCall) -> Tensor:
    """Return the hops of every pair; see `collamo_kernels.shortest_paths`."""
    sizes = check_contents(call)
    edge_index, ptr = call.edge_index, call.ptr
    if call.packed:
        blocks = [
            _search(_adjacency(edge_index, start, stop)).flatten()
            for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True)
        ]
        return torch.cat(blocks) if blocks else _unreachable(0, like=edge_index)
    largest = int(sizes.max()) if len(sizes) else 0
    n = largest if call.size is None else call.size
    hops = _unreachable(len(sizes), n, n, like=edge_index)
    for molecule, (start, stop) in enumerate(zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True)):
        atoms = stop - start
        hops[molecule, :atoms, :atoms] = _search(_adjacency(edge_index, start, stop))
    return hops


def _unreachable(*shape: int, like: Tensor) -> Tensor:
    return torch.full(shape, UNREACHABLE, dtype=torch.uint8, device=like.device)


def _adjacency(edge_index: Tensor, start: int, stop: int) -> Tensor:
    inside = (edge_index[0] >= start) & (edge_index[0] < stop)
    source, target = edge_index[:, inside] - start
    adjacency = torch.zeros(stop - start, stop - start, device=edge_index.device)
    adjacency[source, target] = 1.0
    return adjacency


def _search(adjacency: Tensor) -> Tensor:
    """Walk one bond further from every atom at once, until nobody meets a new atom."""
    reached = torch.eye(len(adjacency), dtype=torch.bool, device=adjacency.device)  # [from, to]
    hops = _unreachable(*adjacency.shape, like=adjacency)
    hops[reached] = 0
    for step in range(1, len(adjacency)):
        new = ((reached.float() @ adjacency) > 0) & ~reached
        if not new.any():
            break
        hops[new] = min(step, LONGEST)
        reached |= new
    return hops
