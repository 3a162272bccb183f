"""The public `neighbour_sum`: checks, chooses, calls."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.backends import choose
from collamo_kernels.checks import check_tensors
from collamo_kernels.neighbour_sum.call import NeighbourSumCall


def neighbour_sum(
    x: Tensor,
    table: Tensor,
    source: Tensor,
    kind: Tensor,
    ptr: Tensor,
    *,
    receiver: Tensor | None = None,
    scale: Tensor | None = None,
    relu: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Sum the messages into each node of a graph, and add a multiple of its own row.

    ::

        out_i = scale · x_receiver(i) + Σ_e relu(x_source(e) + table_kind(e)),  ptr_i ≤ e < ptr_i+1

    the neighbourhood of a graph isomorphism network with edge features (Hu et al., ICLR 2020). No
    ``[E, C]`` tensor of messages is made on the CPU, neither forward nor backward. Sums have one
    order: same inputs, same bits.

    Parameters
    ----------
    x
        ``[N, C]`` floating point, a row per node. Gets gradients.
    table
        ``[K, C]``, a row per kind of edge. Gets gradients.
    source
        ``[E]`` int64, the row of `x` that an edge comes from; edges are sorted by the node they
        lead to.
    kind
        ``[E]`` int64, the row of `table` of each edge.
    ptr
        ``[M + 1]`` int64, the running total of edges into the M nodes that receive: from 0 to E.
    receiver
        ``[M]`` int64, the row of `x` of each node that receives; None where node i is row i.
    scale
        One number, ``[1]`` or ``[]``, in the dtype of `x`; None leaves the own term out. Gets
        gradients.
    relu
        False sums ``x_source + table_kind`` as they are.
    backend
        None takes the best that can serve the input; a name takes that one or raises.

    Returns
    -------
    Tensor
        ``[M, C]`` in the dtype of `x`; a node without edges has its own term alone.

    Raises
    ------
    ValueError
        A wrong shape, dtype or device, or on the CPU a number that is no row; the message names
        the argument and the fix.

    Examples
    --------
    >>> import torch
    >>> x, bond = torch.tensor([[1.0], [5.0]]), torch.tensor([[-3.0]])
    >>> ends = torch.tensor([0, 1, 2])  # 1 → 0 and 0 → 1
    >>> neighbour_sum(x, bond, torch.tensor([1, 0]), torch.tensor([0, 0]), ends)
    tensor([[2.],
            [0.]])
    """
    call = checked(x, table, source, kind, ptr, receiver, scale, relu)
    return choose("neighbour_sum", backend, call)(call)


def checked(
    x: Tensor,
    table: Tensor,
    source: Tensor,
    kind: Tensor,
    ptr: Tensor,
    receiver: Tensor | None = None,
    scale: Tensor | None = None,
    relu: bool = True,
) -> NeighbourSumCall:
    """Return the call, or raise a ValueError that names the wrong argument."""
    rows = {"x": x, "table": table}
    numbers: dict[str, Tensor | None]
    numbers = {"source": source, "kind": kind, "ptr": ptr, "receiver": receiver}
    check_tensors(**rows, **numbers, scale=scale)
    for name, row in rows.items():
        if row.dim() != 2 or not row.is_floating_point():
            raise ValueError(
                f"{name} is {row.dtype} {list(row.shape)}; it must be floating point [·, C], "
                f"such as float32"
            )
    if x.shape[1] != table.shape[1]:
        raise ValueError(
            f"x has {x.shape[1]} channels and table {table.shape[1]}; they must be as wide"
        )
    for name, value in numbers.items():
        if value is not None and (value.dtype != torch.int64 or value.dim() != 1):
            raise ValueError(f"{name} is {value.dtype} {list(value.shape)}; it must be int64 [·]")
    _check_lengths(x, source, kind, ptr, receiver, scale)
    for name, value in {**rows, **numbers, "scale": scale}.items():
        if value is not None and value.device != x.device:
            raise ValueError(f"{name} is on {value.device} and x on {x.device}; move them together")
    return NeighbourSumCall(x, table, source, kind, ptr, receiver, scale, relu)


def _check_lengths(
    x: Tensor,
    source: Tensor,
    kind: Tensor,
    ptr: Tensor,
    receiver: Tensor | None,
    scale: Tensor | None,
) -> None:
    if len(kind) != len(source):
        raise ValueError(f"kind has {len(kind)} edges and source {len(source)}; they must agree")
    if len(ptr) == 0:
        raise ValueError("ptr is empty; it must be [M + 1], [0] for no nodes")
    nodes = len(ptr) - 1
    if receiver is not None and len(receiver) != nodes:
        raise ValueError(f"receiver has {len(receiver)} nodes and ptr {nodes}; they must agree")
    if scale is not None and receiver is None and len(x) != nodes:
        raise ValueError(
            f"x has {len(x)} rows and ptr {nodes} nodes; say with receiver which row each node has"
        )
    if scale is not None and scale.numel() != 1:
        raise ValueError(f"scale has shape {list(scale.shape)}; it must be one number, [1]")
