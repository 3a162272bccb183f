"""The public `shortest_paths`: checks, chooses, calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from collamo_kernels.backends import choose

MAX_ATOMS = 65_535  # of one molecule; the search keeps atom numbers in 16 bits


def shortest_paths(
    edge_index: Tensor,
    ptr: Tensor,
    *,
    layout: str = "padded",
    max_atoms: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Count the bonds on the shortest path between all atoms of each molecule.

    ``hops[b, i, j]`` is the length of the shortest walk from i to j along the directed edges (list
    both directions of a bond, as PyG does). It is 0 on the diagonal, saturates at 253, and is
    255 where no path exists and in padding; 254 is reserved and never written.

    Parameters
    ----------
    edge_index
        ``[2, E]`` int64, atoms numbered through the whole batch (PyG style). Repeated edges and
        self-loops change nothing.
    ptr
        ``[B + 1]`` int64: molecule b has the atoms ``ptr[b] … ptr[b + 1] - 1``, at most 65,535 of
        them.
    layout
        ``"padded"`` or ``"packed"``.
    max_atoms
        Pad to this many atoms; None takes the largest molecule. Only with ``layout="padded"``.
        Inside ``torch.compile`` it is required.
    backend
        None takes the best that can serve the input; a name takes that one or raises.

    Returns
    -------
    Tensor
        uint8 ``[B, N, N]``, or packed ``[Σ N_b²]``: the molecules' matrices one after the other,
        row-major. No gradient.

    Raises
    ------
    ValueError
        A wrong shape, dtype or device, an edge that leaves the batch or its molecule, a falling
        `ptr`.

    Examples
    --------
    >>> import torch
    >>> ethanol_and_methane = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), torch.tensor([0, 3, 4])
    >>> shortest_paths(*ethanol_and_methane)[0]
    tensor([[0, 1, 2],
            [1, 0, 1],
            [2, 1, 0]], dtype=torch.uint8)
    >>> shortest_paths(*ethanol_and_methane, layout="packed")
    tensor([0, 1, 2, 1, 0, 1, 2, 1, 0, 0], dtype=torch.uint8)
    """
    arguments = checked(edge_index, ptr, layout, max_atoms)
    return choose("shortest_paths", backend, arguments)(**arguments)


def checked(
    edge_index: Tensor, ptr: Tensor, layout: str = "padded", max_atoms: int | None = None
) -> dict[str, Any]:
    """Return what the implementations take, or raise a ValueError that names the wrong one."""
    if layout not in ("padded", "packed"):
        raise ValueError(f"layout is {layout!r}; use 'padded' or 'packed'")
    if layout == "packed" and max_atoms is not None:
        raise ValueError("max_atoms has no meaning with layout='packed'; leave it out")
    _check_form(edge_index, ptr)
    if torch.compiler.is_compiling():
        return _traced(edge_index, ptr, layout, max_atoms)
    sizes = _check_ptr(ptr)
    _check_edges(edge_index, ptr)
    packed = layout == "packed"
    largest = int(sizes.max()) if len(sizes) else 0
    if max_atoms is not None and not largest <= max_atoms <= MAX_ATOMS:
        raise ValueError(
            f"max_atoms is {max_atoms}; the largest molecule of the batch has {largest} atoms and "
            f"the limit is {MAX_ATOMS}"
        )
    size = int((sizes * sizes).sum()) if packed else (largest if max_atoms is None else max_atoms)
    return {"edge_index": edge_index, "ptr": ptr, "packed": packed, "size": size}


def _traced(edge_index: Tensor, ptr: Tensor, layout: str, max_atoms: int | None) -> dict[str, Any]:
    """Leave the data alone: a compiled graph cannot look at it; the operator checks it anyway."""
    if layout == "packed" or max_atoms is None:
        raise ValueError(
            "torch.compile must know the size of the result: give max_atoms, with layout='padded'"
        )
    return {"edge_index": edge_index, "ptr": ptr, "packed": False, "size": max_atoms}


def _check_form(edge_index: Tensor, ptr: Tensor) -> None:
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


def _check_ptr(ptr: Tensor) -> Tensor:
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
            f"{atoms} atoms; number atoms from 0 through the whole batch"
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
