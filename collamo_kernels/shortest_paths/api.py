"""The public `shortest_paths`: checks, chooses, calls."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.backends import choose
from collamo_kernels.shortest_paths.call import ShortestPathsCall
from collamo_kernels.shortest_paths.checks import check_form


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
        Inside ``torch.compile`` and while a CUDA graph is captured it is required.
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

    Notes
    -----
    On a GPU the call waits for the device once, to find wrong data and the size of the result.
    While a CUDA graph is captured nobody may wait, so that wrong data stop the device instead.

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
    call = checked(edge_index, ptr, layout, max_atoms)
    return choose("shortest_paths", backend, call)(call)


def checked(
    edge_index: Tensor, ptr: Tensor, layout: str = "padded", max_atoms: int | None = None
) -> ShortestPathsCall:
    """Return the call, or raise a ValueError that names the wrong argument.

    The data are not looked at: each implementation checks them in its own way, and calls
    `checks.check_contents` where it needs the words for what is wrong.
    """
    if layout not in ("padded", "packed"):
        raise ValueError(f"layout is {layout!r}; use 'padded' or 'packed'")
    if layout == "packed" and max_atoms is not None:
        raise ValueError("max_atoms has no meaning with layout='packed'; leave it out")
    check_form(edge_index, ptr)
    if max_atoms is None and torch.compiler.is_compiling():
        raise ValueError(
            "torch.compile must know the size of the result: give max_atoms, with layout='padded'"
        )
    return ShortestPathsCall(edge_index, ptr, layout == "packed", max_atoms)
