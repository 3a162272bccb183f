"""Φ for layers that share it: built once where that pays, else looked up in every layer's tile.

A choice of what layers are given, not of their backend, which `backends` chooses for each call.
Layers that have a Φ3d each share at least the launches that tabulate it: `tabulated_together`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.coattention.triton import tables
from collamo_kernels.radial import TABLE_TOLERANCE, GaussianRadial
from collamo_kernels.relations import Relations

# A layer that reads Φ built once takes H·2 bytes a pair from memory; one that looks it up takes 9
# bytes a pair and head through the caches, and some 30 instructions. Building and the gradient of
# what was built cost about three such readings, so it takes this many layers (derived, not
# measured yet: `make gpu-bench` measures it).
LEAST_LAYERS = 4
BUDGET = 2**28  # bytes of Φ for all heads; a training step keeps twice that, with the gradient


def share_bias(
    relations: Relations,
    *,
    layers: int,
    dtype: torch.dtype,
    hop_bias: Tensor | None = None,
    radial: Callable[..., Tensor] | None = None,
) -> dict[str, Tensor | Callable[..., Tensor] | None]:
    """Φ2d + Φ3d in the form that is fastest for layers that share it.

    Parameters
    ----------
    relations
        Of the batch.
    layers
        How many calls of the attention will read it.
    dtype
        Of the attention: Φ is built in it.
    hop_bias, radial
        ``[H, S]`` and a module Å ``[M] → [M, H]``, as in `collamo_kernels.coattention`; get
        gradients either way.

    Returns
    -------
    dict
        Keyword arguments for `coattention` and `CoAttention.forward`: ``bias`` where Φ was built,
        ``hop_bias`` and ``radial`` as they came where every layer looks it up. `why_in_tile` says
        which it is and why.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> relations = ck.Relations.from_graphs(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 2]))
    >>> phi = ck.share_bias(relations, layers=6, dtype=torch.float32, hop_bias=torch.zeros(4, 8))
    >>> x = torch.randn(1, 2, 32)
    >>> for layer in [ck.CoAttention(32, 4, hop_buckets=0, radial=None) for _ in range(6)]:
    ...     x = x + layer(x, relations, **phi)
    """
    if why_in_tile(relations, layers, dtype, hop_bias, radial) is not None:
        return {"hop_bias": hop_bias, "radial": radial}
    gaussian = radial if isinstance(radial, GaussianRadial) else None
    return {"bias": _triton.pair_bias(relations, hop_bias, gaussian, dtype)}


def tabulated_together(
    relations: Relations,
    radials: Iterable[Callable[..., Tensor] | None],
    *,
    dtype: torch.dtype,
) -> AbstractContextManager[None]:
    """Tabulate the radial functions of several layers at once, for the attention inside the block.

    A layer on a GPU tabulates its Φ3d in two launches, which are too small to fill it, and sends
    the gradient back in two more. Inside this block layers that own a `GaussianRadial` each share
    them. Results and gradients are the same bits. Elsewhere (on a CPU, where distances or types
    are learned, while compiling) layers tabulate as they do without. Parameters must not change
    inside, and what is computed again in the backward pass must not begin inside.

    Parameters
    ----------
    relations
        The very ones that the layers are called with.
    radials
        Of the layers. None and what is no `GaussianRadial` are passed over.
    dtype
        Of the attention.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> relations = ck.Relations(coordinates=torch.randn(1, 5, 3))
    >>> layers = [ck.CoAttention(32, 4) for _ in range(3)]
    >>> x = torch.randn(1, 5, 32)
    >>> with ck.tabulated_together(relations, [y.radial for y in layers], dtype=torch.float32):
    ...     for layer in layers:
    ...         x = x + layer(x, relations)
    """
    coordinates = relations.coordinates
    known = [x for x in radials if _triton.tabulated(x) and x.pair_types is None]
    if len(known) < 2 or coordinates is None or dtype not in TABLE_TOLERANCE:
        return nullcontext()
    runs = coordinates.device.type == "cuda" or _triton.INTERPRETED
    learned = coordinates.requires_grad and torch.is_grad_enabled()
    if not runs or learned or torch.compiler.is_compiling():
        return nullcontext()
    if _triton.why_not_on(coordinates.device, dtype) is not None:
        return nullcontext()
    return tables.made_together(known, relations.farthest, dtype)


def why_in_tile(
    relations: Relations,
    layers: int,
    dtype: torch.dtype,
    hop_bias: Tensor | None,
    radial: Callable[..., Tensor] | None,
) -> str | None:
    """Return why every layer should look Φ up for itself, or None where it is to be built once."""
    if (hop_bias is None and radial is None) or relations.device is None:
        return "there is no Φ"
    device = relations.device.type
    if not (_triton.INSTALLED and (device == "cuda" or _triton.INTERPRETED)):
        return f"relations are on {relations.device}; only Triton has a builder"
    reason = _triton.why_not_on(relations.device, dtype)
    if reason is not None:
        return f"only Triton has a builder: {reason}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"in {dtype} Φ is twice as large; it is built in float16 and bfloat16"
    if layers < LEAST_LAYERS:
        return f"{layers} layers < {LEAST_LAYERS} that it takes to repay the building"
    if radial is not None and not (isinstance(radial, GaussianRadial) and radial.is_standard()):
        return "radial is no GaussianRadial; its values at all pairs are a dense bias already"
    if hop_bias is not None and hop_bias.shape[1] > _triton.MAX_BUCKETS:
        return f"a hop table of {hop_bias.shape[1]} columns > {_triton.MAX_BUCKETS}"
    size = _heads(hop_bias, radial) * dtype.itemsize * relations.count_pairs()
    if size > BUDGET:
        return f"Φ of all heads takes {size / 2**20:.0f} MiB > {BUDGET / 2**20:.0f} MiB"
    return None


def _heads(hop_bias: Tensor | None, radial: GaussianRadial | None) -> int:
    if radial is not None:
        return radial.num_heads
    return 0 if hop_bias is None else hop_bias.shape[0]
