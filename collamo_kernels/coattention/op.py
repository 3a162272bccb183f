"""The compiled attention as an operator: its shapes, its gradients, and theirs.

``coattention_forward(q, k, v, …) -> (out, softmax_statistics)`` and
``coattention_backward(grad, out, softmax_statistics, q, k, v, …, requested) -> ten gradients``
share the `Arguments`, where Φ3d is a table or one row per pair:

- ``q, k, v`` as in `collamo_kernels.coattention`, float32, bfloat16 or float16
- ``hop_bias [H, S]``, ``affine [types, 2]`` (γ, β), ``coordinates``: float32
- ``rows, slope_rows, first_knot, low, block``: a `RadialTable`
- ``phi [P', H]`` float32: Φ3d of each pair of real atoms in a molecule with a conformer, or, with
  ``phi_of_all_pairs``, of every pair, padding included
- ``bias`` as in `coattention`; ``hops``, ``valid``, ``cu_seqlens``, ``has_3d`` as in `Relations`
- ``pair_types``, ``atom_types``: int32
- ``sink [H]`` float32: one more logit of every row, whose value is zero
- ``seed [1]`` int64: which weights dropout drops; ``dropout_p [1]`` float64: how many, in a tensor
  so that no graph is compiled for it
- ``softmax_statistics [2, atoms, H]`` float32: ``row_max``, the largest logit of each row, and
  ``inverse_sum``, 1 / Σ exp(logit - row_max), both with the sink's; 0 for padding. Apart, because
  log Σ exp as one number rounds by 2e-7 at 5.
- ``requested``: the gradients to compute beyond those of q, k and v, a bit each (`to_bits`)

The backward operator recomputes the weights from them. Its own gradient, the second derivative, is
that of `definition`, at the memory of the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from collamo_kernels.coattention.arguments import (
    ALWAYS,
    Arguments,
    Learned,
    at_their_places,
    from_bits,
    requested_of,
    to_bits,
)
from collamo_kernels.coattention.definition import definition
from collamo_kernels.coattention.second_derivative import differentiate_twice
from collamo_kernels.eager import shortened
from collamo_kernels.extension import why_absent

NO_SECOND_DERIVATIVE = (
    "the gradients of coordinates, gamma and beta cannot be differentiated again: the "
    "table of the radial function has no second derivative; use backend='reference', or "
    "collamo_kernels.use_backend('reference') around layers"
)


def attend(arguments: Arguments) -> Tensor:
    """Call the operator."""
    return call_forward(*arguments)[0]


def run_forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Call the operator, which the extension has where there is one."""
    return torch.ops.collamo_kernels.coattention_forward(*inputs)


# --- shapes ------------------------------------------------------------------------------------


def fake_forward(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Return empty results of the right shapes and strides."""
    atoms = q.shape[0] if q.dim() == 3 else q.shape[0] * q.shape[2]
    return torch.empty_like(q), q.new_empty((2, atoms, q.shape[1]), dtype=torch.float32)


def fake_backward(
    grad: Tensor, out: Tensor, softmax_statistics: Tensor, *flat: Any
) -> tuple[Tensor, ...]:
    """Return empty gradients; one that is not requested has the shape [0]."""
    *inputs, bits = flat
    arguments = Arguments(*inputs)
    gradients = [torch.empty_like(x) for x in (arguments.q, arguments.k, arguments.v)]
    others = zip(arguments.read()[ALWAYS:], from_bits(bits)[ALWAYS:], strict=True)
    for x, requested in others:
        if x is None or not requested:
            gradients.append(grad.new_empty((0,), dtype=torch.float32))
        else:
            gradients.append(x.new_empty(x.shape))
    return tuple(gradients)


# --- first derivative --------------------------------------------------------------------------


def keep_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save everything: the backward operator takes it all again."""
    arguments = Arguments(*inputs)
    ctx.numbers = arguments.numbers()
    ctx.set_materialize_grads(False)  # else zeros like softmax_statistics are made for nobody
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, *arguments.tensors())


def differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients of the forward operator's inputs, by the backward operator."""
    if grad is None:  # the second derivative has none by `out`
        return (None,) * len(Arguments._fields)
    out, softmax_statistics, *tensors = ctx.saved_tensors
    arguments = Arguments.unflattened(tensors, ctx.numbers)
    requested = requested_of(ctx.needs_input_grad)
    operator = torch.ops.collamo_kernels.coattention_backward
    gradients = Learned(*operator(grad, out, softmax_statistics, *arguments, to_bits(requested)))
    # A tensor that the formula does not read, such as hop_bias without hops, has gradient [0].
    return at_their_places(
        Learned(
            *(
                gradient if asked and x is not None and gradient.shape == x.shape else None
                for x, gradient, asked in zip(
                    arguments.learned(), gradients, requested, strict=True
                )
            )
        )
    )


call_forward = shortened(run_forward, run_forward, keep_forward, differentiate)


# --- second derivative -------------------------------------------------------------------------


def keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the definition needs."""
    grad, _out, _softmax_statistics, *flat, bits = inputs
    arguments = Arguments(*flat)
    ctx.numbers, ctx.requested = arguments.numbers(), from_bits(bits)
    ctx.set_materialize_grads(False)  # None tells a gradient that nobody uses from one that is 0
    ctx.save_for_backward(grad, *arguments.tensors())


def differentiate_again(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the backward operator's inputs, by the definition.

    Raises
    ------
    NotImplementedError
        For derivatives of dL/dcoordinates or of dL/dγ, dL/dβ through a table, which has no second
        derivative.
    """
    grad, *tensors = ctx.saved_tensors
    arguments = Arguments.unflattened(tensors, ctx.numbers)
    used = Learned(
        *(x if asked else None for x, asked in zip(cotangents, ctx.requested, strict=True))
    )
    through_u = used.coordinates is not None or used.affine is not None
    if through_u and arguments.rows is not None:
        raise NotImplementedError(NO_SECOND_DERIVATIVE)
    operator = torch.ops.collamo_kernels.coattention_second
    of_grad, *others = operator(grad, tensors, list(used), *ctx.numbers)
    by_name = dict(zip(_present(arguments), others, strict=True))
    gradients = Learned(*(by_name.get(name) for name in Learned._fields))
    return of_grad, None, None, *at_their_places(gradients), None


def _present(arguments: Arguments) -> dict[str, Tensor]:
    """The learned tensors that are there, by name."""
    return {name: x for name, x in arguments.learned()._asdict().items() if x is not None}


def second_derivative(
    grad: Tensor, tensors: list[Tensor | None], cotangents: list[Tensor | None], *numbers: Any
) -> list[Tensor]:
    """Gradients of ``Σ cotangent · gradient`` by `grad` and the learned tensors that are there."""
    arguments = Arguments.unflattened(tensors, numbers)

    def formula(learned: dict[str, Tensor]) -> Tensor:
        return definition(arguments.with_learned(learned))

    by_name = Learned(*cotangents)._asdict()
    return list(differentiate_twice(formula, _present(arguments), grad, by_name).values())


def fake_second(
    grad: Tensor, tensors: list[Tensor | None], cotangents: list[Tensor | None], *numbers: Any
) -> list[Tensor]:
    """Return empty gradients."""
    learned = _present(Arguments.unflattened(tensors, numbers)).values()
    return [torch.empty_like(x) for x in (grad, *learned)]


# An operator of its own, so that a compiler never looks into the definition, whose sizes depend on
# the data.
torch.library.custom_op(
    "collamo_kernels::coattention_second",
    second_derivative,
    mutates_args=(),
    schema="(Tensor grad, Tensor?[] tensors, Tensor?[] cotangents, float low, float block, "
    "float scale, bool phi_of_all_pairs) -> Tensor[]",
).register_fake(fake_second)
if why_absent() is None:
    torch.library.register_fake("collamo_kernels::coattention_forward", fake_forward)
    torch.library.register_fake("collamo_kernels::coattention_backward", fake_backward)
    torch.library.register_autograd(
        "collamo_kernels::coattention_forward", differentiate, setup_context=keep_forward
    )
    torch.library.register_autograd(
        "collamo_kernels::coattention_backward", differentiate_again, setup_context=keep_backward
    )
