"""What torch must know about the operators beside their C++ code: shapes, and a definition."""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent


def fake(edge_index: Tensor, ptr: Tensor, packed: bool, size: int | None) -> Tensor:
    """Return an empty result; `size` makes its shape known without looking at the data."""
    if size is None:
        size = torch.library.get_ctx().new_dynamic_size()
    shape = (size,) if packed else (ptr.shape[0] - 1, size, size)
    return edge_index.new_empty(shape, dtype=torch.uint8)


if why_absent() is None:
    torch.library.register_fake("collamo_kernels::shortest_paths", fake)


def pairs_by_hops(hops: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
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
        order before; ``keys`` int16 ``[P]``, their hops; ``starts`` int64 ``[257]``, where in the
        order each key begins. No gradient. This is the definition; on a GPU an extension with CUDA
        counts instead (csrc/cuda/sorted_pairs.cu), to the same result.
    """
    keys = hops.short() if real is None else torch.where(real, hops.short(), 256)
    keys, order = keys.sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(257, dtype=torch.int16, device=hops.device))
    return order, keys, starts


def fake_pairs_by_hops(hops: Tensor, real: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return empty results."""
    order = hops.new_empty(hops.shape, dtype=torch.int64)
    return order, order.new_empty(hops.shape, dtype=torch.int16), order.new_empty((257,))


torch.library.custom_op(
    "collamo_kernels::pairs_by_hops",
    pairs_by_hops,
    mutates_args=(),
    schema="(Tensor hops, Tensor? real=None) -> (Tensor order, Tensor keys, Tensor starts)",
).register_fake(fake_pairs_by_hops)
