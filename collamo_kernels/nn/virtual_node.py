"""A virtual node: one more, joined to every atom of its molecule by a relation of its own."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from collamo_kernels.relations import Relations
from collamo_kernels.shortest_paths.constants import LONGEST, RESERVED, UNREACHABLE


def with_virtual_node(relations: Relations, hop_buckets: int = 256) -> Relations:
    """Put a virtual node before the atoms of each molecule: hops 254 to them, and to itself.

    A hop table reads hop h at column ``min(h, S - 2)``. With S = 256 that is a column of its own
    for 254. In a smaller table paths of S - 3 bonds and more would share it, so they are cut to
    S - 3 here, once for all layers, and column S - 2 is the virtual node's alone.

    Parameters
    ----------
    relations
        With hops and without coordinates, because a virtual node has no place. Packed ones are
        padded.
    hop_buckets
        S of the layers that will read the result, at least 4.

    Returns
    -------
    Relations
        Padded, ``[B, N + 1, N + 1]``; the virtual node is position 0, where x needs a row too:
        ``torch.cat([token.expand(B, 1, C), x], 1)``.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> from collamo_kernels.nn import with_virtual_node
    >>> bond = ck.Relations.from_graphs(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 2]))
    >>> with_virtual_node(bond).hops[0].tolist()
    [[254, 254, 254], [254, 0, 1], [254, 1, 0]]
    """
    if relations.coordinates is not None:
        raise ValueError(
            "relations have coordinates, but a virtual node has no place; leave them out, and give "
            "Φ3d as a dense bias"
        )
    if hop_buckets < 4:
        raise ValueError(
            f"hop_buckets is {hop_buckets}; it takes at least 4: hops 0 and 1, the virtual node, "
            "and unreachable pairs"
        )
    relations = relations.padded()
    hops = relations.hops
    if hops is None:
        raise ValueError("relations has no hops, which a virtual node is joined by; give it")
    bonds = torch.where(hops <= LONGEST, hops.clamp(max=hop_buckets - 3), hops)
    joined = F.pad(bonds, (1, 0, 1, 0), value=RESERVED)
    valid = None
    if relations.valid is not None:
        valid = F.pad(relations.valid, (1, 0), value=True)
        joined = torch.where(valid[:, :, None] & valid[:, None, :], joined, UNREACHABLE)
    return Relations(hops=joined, valid=valid)  # all else is of Φ3d
