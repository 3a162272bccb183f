"""A radial function's knots as operators: value and slope at each u, gradients, bounds.

``radial_rows(u, used, *parameters, curvature) -> (rows [G, 2, H], slope_rows)`` and
``radial_rows_backward(grad, u, used, *parameters) -> gradients of the parameters`` are the compiled
form of `derivatives`, with the `RadialParameters`

- ``centre, width [K]``: μ and s, Å
- ``weight [K', K], bias [K']``, and of the MLP's second layer ``weight2 [H, K'], bias2 [H]``, which
  are None for a linear head

all float32. ``slope_rows`` (slope and curvature; empty unless asked for) has no gradient, and none
goes to u. ``used``, bool ``[G]`` or None (all), says which rows to work out; the others are 0.
``radial_grid(*parameters, occurring, first, last, low, block, blocks, slopes, tolerance, slack,
share, most) -> (u [G], first_knot [M + 1], errors, used)`` finds the knots of a `RadialTable`; u is
empty where there would be `most` or more, and used where occurring, bool ``[parts of [first,
last]]``, is None. The Triton backend takes the parameters in one tensor (`join`) and has operators
of its own (`radial.triton.op`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from collamo_kernels.extension import why_absent
from collamo_kernels.radial.derivatives import derivatives
from collamo_kernels.radial.parameters import RadialParameters


def serves(u: Tensor) -> bool:
    """Whether the compiled operators can take these places and float32 parameters.

    Not a choice of `backends`: whoever reads a table does not care who made it.
    """
    return u.device.type == "cpu" and u.dtype == torch.float32 and why_absent() is None


def fake_rows(
    u: Tensor,
    used: Tensor | None,
    centre: Tensor,
    width: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight2: Tensor | None,
    bias2: Tensor | None,
    curvature: bool,
) -> tuple[Tensor, Tensor]:
    """Return empty rows of the right shapes."""
    heads = RadialParameters(centre, width, weight, bias, weight2, bias2).heads
    return u.new_empty(len(u), 2, heads), u.new_empty(len(u) if curvature else 0, 2, heads)


def fake_backward(
    grad: Tensor, u: Tensor, used: Tensor | None, *parameters: Tensor | None
) -> tuple[Tensor, ...]:
    """Return empty gradients; that of a missing parameter has the shape [0]."""
    return tuple(u.new_empty(0 if x is None else x.shape) for x in parameters)


def fake_grid(centre: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Return an empty grid, of as many knots as the data will tell."""
    occurring, blocks, slopes = arguments[5], *arguments[10:12]
    knots = torch.library.get_ctx().new_dynamic_size()
    return (
        centre.new_empty(knots),
        centre.new_empty(blocks + 1, dtype=torch.int32),
        centre.new_empty(1 + slopes),
        centre.new_empty(0 if occurring is None else knots, dtype=torch.bool),
    )


def keep_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save the inputs: the backward operator computes the activations anew."""
    *tensors, _ = inputs
    ctx.set_materialize_grads(False)  # else zeros are made, the size of slope_rows, for nobody
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors)


def differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients of the parameters, by the backward operator."""
    u, used, *parameters = ctx.saved_tensors
    if grad is None:  # a second derivative that has none by the rows
        return (None,) * (len(parameters) + 3)
    gradients = torch.ops.collamo_kernels.radial_rows_backward(grad, u, used, *parameters)
    pairs = zip(parameters, gradients, strict=True)
    return None, None, *(gradient if x is not None else None for x, gradient in pairs), None


def keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save the inputs."""
    ctx.save_for_backward(*inputs)


def differentiate_again(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the backward operator's inputs, by the definition; can be differentiated."""
    grad, u, used, *parameters = ctx.saved_tensors
    present = [x for x in parameters if x is not None]
    missing = [None] * (len(parameters) - len(present))  # the second layer, at the end

    def first(grad: Tensor, *present: Tensor) -> tuple[Tensor, ...]:
        def rows(*present: Tensor) -> Tensor:
            value, slope = derivatives(u, *RadialParameters(*present, *missing), order=1)
            stacked = torch.stack([value, slope], 1)
            return stacked if used is None else torch.where(used[:, None, None], stacked, 0.0)

        return torch.func.vjp(rows, *present)[1](grad)

    pull_back = torch.func.vjp(first, grad, *present)[1]
    of_grad, *of_parameters = pull_back(cotangents[: len(present)])
    return of_grad, None, None, *of_parameters, *missing


if why_absent() is None:
    torch.library.register_fake("collamo_kernels::radial_rows", fake_rows)
    torch.library.register_fake("collamo_kernels::radial_rows_backward", fake_backward)
    torch.library.register_fake("collamo_kernels::radial_grid", fake_grid)
    torch.library.register_autograd(
        "collamo_kernels::radial_rows", differentiate, setup_context=keep_rows
    )
    torch.library.register_autograd(
        "collamo_kernels::radial_rows_backward", differentiate_again, setup_context=keep_backward
    )
