"""The operators that prepare the relations of a batch: pairs sorted, distances marked.

``pairs_by_hops(hops, real) -> (order, keys, starts)`` is defined here by `sort_pairs`; csrc has it
for a GPU. ``occurring_distances(coordinates, real, sizes, high, parts) -> bool [parts]`` marks the
equal parts of ``[0, high]`` that the distance of a pair of a molecule lies in; only csrc has it,
for the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent


def sort_pairs(hops: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Sort pairs of atoms by their hops, the order in which a table's gradient is summed.

    Parameters
    ----------
    hops
        uint8 ``[P]``.
    real
        bool ``[P]``, False for a pair of padding, whose key is 256; None means that all are real.

    Returns
    -------
    tuple
        ``order`` int64 ``[P]``, the pairs with the fewest hops first, those of equal hops in their
        order before; ``keys`` ``[P]``, their hops, uint8, or int16 with `real`; ``starts`` int64
        ``[257]``, where in the order each key begins. No gradient.

    This is the definition; on a GPU an extension with CUDA counts instead, to the same result
    (csrc/relations/cuda.cu).
    """
    keys = hops if real is None else torch.where(real, hops.short(), 256)
    keys, order = keys.sort(stable=True)
    starts = torch.searchsorted(keys.int(), torch.arange(257, device=hops.device))
    return order, keys, starts


def fake_pairs_by_hops(hops: Tensor, real: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return empty results."""
    order = hops.new_empty(hops.shape, dtype=torch.int64)
    keys = torch.empty_like(hops) if real is None else hops.new_empty(hops.shape, dtype=torch.int16)
    return order, keys, order.new_empty((257,))


pairs_by_hops = torch.library.custom_op(
    "collamo_kernels::pairs_by_hops",
    sort_pairs,
    mutates_args=(),
    schema="(Tensor hops, Tensor? real=None) -> (Tensor order, Tensor keys, Tensor starts)",
)
pairs_by_hops.register_fake(fake_pairs_by_hops)


def fake_occurring(
    coordinates: Tensor, real: Tensor, sizes: Tensor, high: float, parts: int
) -> Tensor:
    """Return empty marks, bool ``[parts]``."""
    return real.new_empty(parts)


if why_absent() is None:
    torch.library.register_fake("collamo_kernels::occurring_distances", fake_occurring)
