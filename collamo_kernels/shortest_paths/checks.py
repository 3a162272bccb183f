"""Checks of the arguments of `shortest_paths`, each a ValueError that names the fix."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.checks import check_tensors, hint_at_batch
from collamo_kernels.shortest_paths.call import ShortestPathsCall
from collamo_kernels.shortest_paths.constants import MAX_ATOMS


def check_form(edge_index: Tensor, ptr: Tensor) -> None:
    """Check types, shapes and devices, which costs no look at the data."""
    check_tensors(edge_index=edge_index, ptr=ptr)
    if edge_index.dtype != torch.int64:
        raise ValueError(f"edge_index has dtype {edge_index.dtype}; convert it: edge_index.long()")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index has shape {list(edge_index.shape)}; it must be [2, E]")
    if ptr.dtype != torch.int64:
        raise ValueError(f"ptr has dtype {ptr.dtype}; convert it: ptr.long()")
    if ptr.dim() != 1 or len(ptr) == 0:
        raise ValueError(
            f"ptr has shape {list(ptr.shape)}; it must be [B + 1], [0] for no molecules"
        )
    if edge_index.device != ptr.device:
        raise ValueError(
            f"edge_index is on {edge_index.device} and ptr on {ptr.device}; move them together"
        )


def check_contents(call: ShortestPathsCall) -> Tensor:
    """Look at the data: `ptr` rises from 0, no molecule is too large, no edge leaves its own.

    Returns the atoms of each molecule.
    """
    sizes = _checked_sizes(call.ptr)
    _check_edges(call.edge_index, call.ptr)
    largest = int(sizes.max()) if len(sizes) else 0
    if not call.packed and call.size is not None and not largest <= call.size <= MAX_ATOMS:
        raise ValueError(
            f"max_atoms is {call.size}; the largest molecule of the batch has {largest} atoms and "
            f"the limit is {MAX_ATOMS}"
        )
    return sizes


def _checked_sizes(ptr: Tensor) -> Tensor:
    if int(ptr[0]) != 0:
        raise ValueError(f"ptr starts at {int(ptr[0])}; it must start at 0")
    sizes = ptr.diff()
    if bool((sizes < 0).any()):
        at = int((sizes < 0).nonzero()[0, 0])
        raise ValueError(
            f"ptr falls from {int(ptr[at])} to {int(ptr[at + 1])} at molecule {at}; "
            "it must be the running total of atoms"
        )
    if bool((sizes > MAX_ATOMS).any()):
        at = int((sizes > MAX_ATOMS).nonzero()[0, 0])
        raise ValueError(
            f"ptr gives molecule {at} {int(sizes[at])} atoms; "
            f"the limit is {MAX_ATOMS}, drop or split it"
        )
    return sizes


def _check_edges(edge_index: Tensor, ptr: Tensor) -> None:
    atoms = int(ptr[-1])
    outside = ((edge_index < 0) | (edge_index >= atoms)).any(0)
    if bool(outside.any()):
        at = int(outside.nonzero()[0, 0])
        raise ValueError(
            f"edge_index column {at} is {edge_index[:, at].tolist()}, but ptr says the batch has "
            f"{atoms} atoms; number atoms from 0 through the whole batch{hint_at_batch(ptr)}"
        )
    molecule = torch.searchsorted(ptr.contiguous(), edge_index.contiguous(), right=True) - 1
    crossing = molecule[0] != molecule[1]
    if bool(crossing.any()):
        at = int(crossing.nonzero()[0, 0])
        raise ValueError(
            f"edge_index column {at} joins atom {int(edge_index[0, at])} of molecule "
            f"{int(molecule[0, at])} to atom {int(edge_index[1, at])} of molecule "
            f"{int(molecule[1, at])}; an edge must stay inside one molecule"
        )
