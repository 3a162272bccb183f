"""A radial function's knots as operators: value and slope at each u, gradients, bounds.

``radial_rows(u, used, *parameters, curvature) -> (rows [G, 2, H], slope_rows)`` and
``radial_rows_backward(grad, u, used, *parameters) -> gradients of the parameters`` are the compiled
form of `derivatives`, with the ``parameters``

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

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.extension import why_absent


def serves(u: Tensor) -> bool:
    """Whether the compiled operators can take these places and float32 parameters."""
    return u.device.type == "cpu" and u.dtype == torch.float32 and why_absent() is None


def derivatives(
    u: Tensor,
    centre: Tensor,
    width: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight2: Tensor | None,
    bias2: Tensor | None,
    order: int,
) -> list[Tensor]:
    """Φ3d and its first `order` (0 to 2) derivatives by u, each ``[M, H]``: the definition."""
    z = (u[:, None] - centre) / width
    psi = [torch.exp(-0.5 * z * z)]
    if order > 0:
        psi.append(-z / width * psi[0])
    if order > 1:
        psi.append((z * z - 1) / width**2 * psi[0])
    out = [F.linear(psi[0], weight, bias), *(F.linear(x, weight) for x in psi[1:])]
    if weight2 is None:
        return out
    a, hidden = out[0], [F.gelu(out[0])]
    # GELU'(a)·a' in one pass over [M, K]; spelled out it takes five.
    hidden += [torch.ops.aten.gelu_backward(x, a) for x in out[1:]]
    if order > 1:
        bell = torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
        hidden[2] += (2 - a * a) * bell * out[1] ** 2  # GELU''(a)·a'²
    return [F.linear(hidden[0], weight2, bias2), *(F.linear(x, weight2) for x in hidden[1:])]


# --- one tensor ---------------------------------------------------------------------------------


def join(parameters: tuple[Tensor | None, ...]) -> Tensor:
    """The parameters one after the other in one tensor, as the Triton kernels take them."""
    return torch.cat([x.flatten() for x in parameters if x is not None])


def shapes(gaussians: int, hidden: int, heads: int) -> list[tuple[int, ...]]:
    """Of the parameters that are there, given K, K' and H; K' is 0 for a linear head."""
    first = hidden or heads
    last = [(heads, hidden), (heads,)] if hidden else []
    return [(gaussians,), (gaussians,), (first, gaussians), (first,), *last]


class Parameters(NamedTuple):
    """The parameters of a radial function, as `derivatives` takes them."""

    centre: Tensor
    width: Tensor
    weight: Tensor
    bias: Tensor
    weight2: Tensor | None = None
    bias2: Tensor | None = None


def separate(layers: Tensor, *sizes: int) -> Parameters:
    """What `join` put together, given the sizes that `shapes` takes."""
    each = shapes(*sizes)
    parts = layers.split([math.prod(shape) for shape in each])
    return Parameters(*(part.view(shape) for part, shape in zip(parts, each, strict=True)))


# --- bounds ------------------------------------------------------------------------------------

# max|GELU⁽ⁿ⁾| over the real line, n = 1 … 5, rounded up. With φ the normal density they are
# Φ + xφ at √2, and (2 - x²)φ, (x³ - 4x)φ, (-x⁴ + 7x² - 4)φ, (x⁵ - 11x³ + 18x)φ at 0, 0.7923,
# 0 and 0.6344.
GELU_PEAKS = (1.1290, 0.7979, 0.7788, 1.5958, 2.8426)
# The polynomials Heₙ of the n-th derivative of exp(-z²/2), n = 1 … 5, given z and z².
HERMITE = (
    lambda z, square: z,
    lambda z, square: square - 1,
    lambda z, square: (square - 3) * z,
    lambda z, square: (square - 6) * square + 3,
    lambda z, square: ((square - 10) * square + 15) * z,
)
# Where |Heₙ(z)| exp(-z²/2), the n-th derivative of a Gaussian, turns back (z > 0), and its value
# there, rounded up: the zeros of Heₙ₊₁.
BELL_PEAKS = (
    ((1.0, 0.60654),),
    ((1.73206, 0.44627),),
    ((0.74197, 1.38012), (2.33442, 0.37490)),
    ((1.35563, 1.85488), (2.85698, 0.34873)),
    ((0.61671, 5.78306), (1.88918, 2.52212), (3.32426, 0.35248)),
)


def derivative_bounds(
    centres: Tensor,
    reach: float | Tensor,
    centre: Tensor,
    width: Tensor,
    weight: Tensor,
    weight2: Tensor | None,
    last: int,
) -> tuple[Tensor, Tensor]:
    """For ``|u - centres| <= reach``, from the *absolute* values of the weights.

    Returns
    -------
    bounds
        ``[M, last - 3]``: of ``max_h |Φ⁽ⁿ⁾|``, n from 4 to `last` (4 or 5).
    gaussian
        ``[M]``: of ``max_k |ψ⁗|``.
    """
    z = ((centres[:, None] - centre).abs() - reach).clamp_(min=0) / width  # [M, K]
    orders = range(4 if weight2 is None else 1, last + 1)
    psi = [
        bound / width**n
        for n, bound in zip(orders, _bell_derivative_bounds(z, orders), strict=True)
    ]
    gaussian = psi[4 - orders[0]].amax(1)
    bounds = F.linear(torch.stack(psi), weight)
    if weight2 is not None:
        bounds = F.linear(torch.stack(_gelu_chain_bounds(*bounds)), weight2)
    return bounds.amax(2).t(), gaussian


def _bell_derivative_bounds(z: Tensor, orders: range) -> Iterator[Tensor]:
    """Yield the largest ``|dⁿ/dzⁿ exp(-z²/2)|`` from z ≥ 0 outwards, for each n of 1 … 5."""
    square = z * z
    bell = torch.exp(-0.5 * square)
    for n in orders:
        bound = (HERMITE[n - 1](z, square) * bell).abs_()
        for turn, peak in BELL_PEAKS[n - 1]:
            bound = torch.maximum(bound, (z < turn) * peak)
        yield bound


def _gelu_chain_bounds(a1: Tensor, a2: Tensor, a3: Tensor, a4: Tensor, *a5: Tensor) -> list[Tensor]:
    """Bounds of the 4th (and 5th) derivative of GELU(a(u)), from those of a (Faà di Bruno)."""
    g1, g2, g3, g4, g5 = GELU_PEAKS
    square = a1 * a1
    out = [g1 * a4 + g2 * (3 * a2 * a2 + 4 * a1 * a3) + square * (6 * g3 * a2 + g4 * square)]
    for last in a5:
        fifth = g1 * last + g2 * (10 * a2 * a3 + 5 * a1 * a4)
        fifth += g3 * (15 * a1 * a2 * a2 + 10 * square * a3)
        out.append(fifth + square * a1 * (10 * g4 * a2 + g5 * square))
    return out


# --- shapes and gradients ----------------------------------------------------------------------


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
    heads = (weight if weight2 is None else weight2).shape[0]
    return u.new_empty(len(u), 2, heads), u.new_empty(len(u) if curvature else 0, 2, heads)


def fake_backward(
    grad: Tensor, u: Tensor, used: Tensor | None, *parameters: Tensor | None
) -> tuple[Tensor, ...]:
    """Return empty gradients; that of a missing parameter has the shape [0]."""
    return tuple(u.new_empty(0 if x is None else x.shape) for x in parameters)


def fake_grid(centre: Tensor, *arguments: Tensor | float | None) -> tuple[Tensor, ...]:
    """Return an empty grid, of as many knots as the data will tell."""
    occurring, (blocks, slopes) = arguments[5], arguments[10:12]
    knots = torch.library.get_ctx().new_dynamic_size()
    return (
        centre.new_empty(knots),
        centre.new_empty(blocks + 1, dtype=torch.int32),
        centre.new_empty(1 + slopes),
        centre.new_empty(0 if occurring is None else knots, dtype=torch.bool),
    )


def keep_rows(ctx: object, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """Save the inputs: the backward operator computes the activations anew."""
    *tensors, _ = inputs
    ctx.set_materialize_grads(False)  # else zeros are made, the size of slope_rows, for nobody
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors)


def differentiate(ctx: object, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients of the parameters, by the backward operator."""
    u, used, *parameters = ctx.saved_tensors
    if grad is None:  # a second derivative that has none by the rows
        return (None,) * (len(parameters) + 3)
    gradients = torch.ops.collamo_kernels.radial_rows_backward(grad, u, used, *parameters)
    given = (g if x is not None else None for x, g in zip(parameters, gradients, strict=True))
    return None, None, *given, None


def keep_backward(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Save the inputs."""
    ctx.save_for_backward(*inputs)


def differentiate_again(ctx: object, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the backward operator's inputs, by the definition; can be differentiated."""
    grad, u, used, *parameters = ctx.saved_tensors
    given = [x for x in parameters if x is not None]
    missing = [None] * (len(parameters) - len(given))  # the second layer, at the end

    def first(grad: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        def rows(*given: Tensor) -> Tensor:
            found = torch.stack(derivatives(u, *given, *missing, order=1), 1)
            return found if used is None else torch.where(used[:, None, None], found, 0.0)

        return torch.func.vjp(rows, *given)[1](grad)

    of_grad, *found = torch.func.vjp(first, grad, *given)[1](cotangents[: len(given)])
    return of_grad, None, None, *found, *missing


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
