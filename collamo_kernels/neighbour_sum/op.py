"""Sums over neighbours as an operator of torch: shapes, gradients, and gradients of gradients.

The gradient of the operator's backward is the derivative of `gradients`, which says in plain
PyTorch what the backward computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent


def gradients(
    grad: Tensor,
    x: Tensor,
    table: Tensor,
    source: Tensor,
    kind: Tensor,
    ptr: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """dL/dx and dL/dtable of the sum over edges: the definition of the backward.

    ``dL/dx_j = Σ_e grad_i`` over the edges e from j to i, and of `table` over the edges of a kind;
    with `relu` an edge passes on the channels in which its message is above 0 or NaN.

    Parameters
    ----------
    grad
        ``[M, C]``, dL/dout.
    x, table, source, kind, ptr, relu
        As `collamo_kernels.neighbour_sum` takes them.

    Returns
    -------
    (Tensor, Tensor)
        ``[N, C]`` and ``[K, C]``.
    """
    target = torch.arange(len(grad), device=grad.device).repeat_interleave(
        ptr.diff(), output_size=len(source)
    )
    along = grad.index_select(0, target)  # [E, C]
    if relu:
        off = x.index_select(0, source) + table.index_select(0, kind) <= 0  # false of NaN
        along = along.masked_fill(off, 0.0)
    return (
        torch.zeros_like(x).index_add(0, source, along),
        torch.zeros_like(table).index_add(0, kind, along),
    )


def fake(
    x: Tensor,
    table: Tensor,
    source: Tensor,
    kind: Tensor,
    ptr: Tensor,
    receiver: Tensor | None,
    scale: Tensor | None,
    relu: bool,
) -> Tensor:
    """Return empty sums."""
    return x.new_empty((ptr.shape[0] - 1, x.shape[1]))


def fake_backward(grad: Tensor, x: Tensor, table: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    """Return empty gradients."""
    return x.new_empty(x.shape), table.new_empty(table.shape)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save what the backward reads."""
    *tensors, ctx.relu = inputs
    ctx.save_for_backward(*tensors)


def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, table and scale; of x also those of the node's own term."""
    x, table, source, kind, ptr, receiver, scale = ctx.saved_tensors
    run = torch.ops.collamo_kernels.neighbour_sum_backward
    of_x, of_table = run(grad, x, table, source, kind, ptr, ctx.relu)
    of_scale = None
    if scale is not None:
        itself = x if receiver is None else x.index_select(0, receiver)
        of_scale = (grad * itself).sum().view_as(scale)
        own = grad * scale
        of_x = of_x + own if receiver is None else of_x.index_add(0, receiver, own)
    return of_x, of_table, None, None, None, None, of_scale, None


def differentiate_again(ctx: Any, of_x: Tensor, of_table: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient of the backward's first argument, in which alone it is not constant."""
    grad, x, table, source, kind, ptr = ctx.saved_tensors

    def first(grad: Tensor) -> tuple[Tensor, Tensor]:
        return gradients(grad, x, table, source, kind, ptr, ctx.relu)

    pull_back = torch.func.vjp(first, grad)[1]
    return *pull_back((of_x, of_table)), *(None,) * 6


def register() -> None:
    """Give the operator and its backward shapes and gradients."""
    library = torch.library
    name, backward = "collamo_kernels::neighbour_sum", "collamo_kernels::neighbour_sum_backward"
    library.register_fake(name, fake)
    library.register_fake(backward, fake_backward)
    library.register_autograd(name, differentiate, setup_context=keep)
    library.register_autograd(backward, differentiate_again, setup_context=keep)


if why_absent() is None:
    register()
