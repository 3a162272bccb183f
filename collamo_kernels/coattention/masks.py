"""The masks of nn.MultiheadAttention, as the attention here takes them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from collamo_kernels.checks import check_tensors
from collamo_kernels.relations import Relations


def without_padding_atoms(relations: Relations, padding: Tensor) -> Relations:
    """Return the relations with those atoms left out: bool ``[B, N]``, True = padding."""
    valid = ~padding if relations.valid is None else relations.valid & ~padding
    return replace(relations, valid=valid)


def as_bias(
    sizes: tuple[int, int, int, int],
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> Tensor | None:
    """Return both masks as one dense bias ``[B, H, N, M]``, a view of the least that holds it.

    True excludes, as in nn.MultiheadAttention; floating point is added. None where both are None.

    Parameters
    ----------
    sizes
        B, H, N (queries) and M (keys).
    key_padding_mask
        ``[B, M]``, or ``[M]`` for B = 1.
    attn_mask
        ``[N, M]``, or ``[B·H, N, M]``.
    """
    batch, heads, _, keys = sizes
    bias = None
    if key_padding_mask is not None:
        bias = _additive(key_padding_mask).view(batch, 1, 1, keys)
    if attn_mask is not None:
        mask = _additive(attn_mask)
        mask = mask if mask.dim() == 2 else mask.unflatten(0, (batch, heads))
        bias = mask if bias is None else bias + mask
    return None if bias is None else bias.expand(sizes)


def check_masks(
    sizes: tuple[int, int, int, int],
    device: torch.device,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> None:
    """Raise a ValueError unless both have the shapes that `as_bias` says, on `device`."""
    check_tensors(key_padding_mask=key_padding_mask, attn_mask=attn_mask)
    batch, heads, queries, keys = sizes
    padding = [(batch, keys), *([(keys,)] if batch == 1 else [])]
    shapes = [("key_padding_mask", key_padding_mask, padding)]
    shapes += [("attn_mask", attn_mask, [(queries, keys), (batch * heads, queries, keys)])]
    for name, mask, allowed in shapes:
        if mask is None:
            continue
        if tuple(mask.shape) not in allowed:
            either = " or ".join(str(list(shape)) for shape in allowed)
            raise ValueError(f"{name} has shape {list(mask.shape)}; it must be {either}")
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(
                f"{name} has dtype {mask.dtype}; it must be bool, True for what is left out, or "
                "floating point, which is added"
            )
        if mask.device != device:
            raise ValueError(f"{name} is on {mask.device}; move it to x's device, {device}")


def _additive(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_fill(mask, -math.inf)
