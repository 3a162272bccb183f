"""Pairwise distances as operators of torch: shapes, gradients, and gradients of gradients.

There are two of each, ``pairwise_distances`` (csrc) and ``pairwise_distances_triton``, because
Triton's interpreter runs on the CPU too. The gradient of an operator's backward is the derivative
of `gradient`, which says in plain PyTorch what the backward computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent


def gradient(grad: Tensor, coordinates: Tensor, valid: Tensor | None) -> Tensor:
    """``dL/dx_i = Σ_j (grad_ij + grad_ji)·(x_i - x_j)/r_ij``: the definition of the backward.

    Parameters
    ----------
    grad
        ``[B, N, N]``, dL/dr.
    coordinates, valid
        As `collamo_kernels.pairwise_distances` takes them.

    Returns
    -------
    Tensor
        ``[B, N, 3]``; 0 for padding. A pair with r = 0 adds nothing.
    """
    x = coordinates if valid is None else torch.where(valid[..., None], coordinates, 0.0)
    difference = x[:, :, None] - x[:, None]  # [B, i, j, 3]
    squared = difference.square().sum(-1)
    pulls = squared > 0
    if valid is not None:
        pulls = pulls & valid[:, :, None] & valid[:, None]
    grad = torch.where(pulls, grad + grad.transpose(1, 2), 0.0)
    weight = grad / torch.where(pulls, squared, 1.0).sqrt()
    return (weight[..., None] * difference).sum(2)


def fake(coordinates: Tensor, valid: Tensor | None) -> Tensor:
    """Return empty distances."""
    molecules, atoms, _ = coordinates.shape
    return coordinates.new_empty((molecules, atoms, atoms))


def fake_backward(grad: Tensor, coordinates: Tensor, valid: Tensor | None) -> Tensor:
    """Return an empty gradient."""
    return coordinates.new_empty(coordinates.shape)


def register(name: str) -> None:
    """Give the operator `name` and its ``…_backward`` shapes and gradients."""
    backward = f"{name}_backward"

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        run = getattr(torch.ops.collamo_kernels, backward)
        return run(grad, *ctx.saved_tensors), None

    def differentiate_again(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        grad, coordinates, valid = ctx.saved_tensors
        pull_back = torch.func.vjp(lambda g, x: gradient(g, x, valid), grad, coordinates)[1]
        return *pull_back(cotangent), None

    torch.library.register_fake(f"collamo_kernels::{name}", fake)
    torch.library.register_fake(f"collamo_kernels::{backward}", fake_backward)
    torch.library.register_autograd(f"collamo_kernels::{name}", differentiate, setup_context=keep)
    torch.library.register_autograd(
        f"collamo_kernels::{backward}", differentiate_again, setup_context=keep
    )


if why_absent() is None:
    register("pairwise_distances")
