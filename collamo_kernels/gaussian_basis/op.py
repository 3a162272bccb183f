"""The expansion in normal densities as an operator of torch: shapes, gradients, and theirs.

``gaussian_basis(u [M], centre [K], width [K]) -> [M, K]`` and ``gaussian_basis_backward(grad [M,
K], u, centre, width) -> gradients of the three``, all float32. The second derivative is that of the
definition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.gaussian_basis import reference


def fake(u: Tensor, centre: Tensor, width: Tensor) -> Tensor:
    """Return empty densities."""
    return u.new_empty((u.shape[0], centre.shape[0]))


def fake_backward(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return empty gradients."""
    return tuple(x.new_empty(x.shape) for x in inputs)


def keep(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    """Save the inputs."""
    ctx.save_for_backward(*inputs)


def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of u, centre and width."""
    return torch.ops.collamo_kernels.gaussian_basis_backward(grad, *ctx.saved_tensors)


def differentiate_again(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the backward's inputs, by the definition."""

    def gradients(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(reference.gaussian_basis, *inputs)[1](grad)

    return torch.func.vjp(gradients, *ctx.saved_tensors)[1](cotangents)


def register() -> None:
    """Give the operator and its backward shapes and gradients."""
    library = torch.library
    name, backward = "collamo_kernels::gaussian_basis", "collamo_kernels::gaussian_basis_backward"
    library.register_fake(name, fake)
    library.register_fake(backward, fake_backward)
    library.register_autograd(name, differentiate, setup_context=keep)
    library.register_autograd(backward, differentiate_again, setup_context=keep)


if why_absent() is None:
    register()
