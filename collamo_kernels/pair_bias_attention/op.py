"""The compiled attention with a pair bias as an operator: its shapes, its gradients, and theirs.

``pair_bias_attention(q, k, v, bias, cu_seqlens, seed, scale, dropout_p, with_logits) -> (out,
logits)``, where ``seed [1]`` int64 says which weights dropout drops, and logits without
`with_logits` are ``[0]``; ``pair_bias_attention_(q, …, dropout_p) -> out`` writes them over `bias`
and has no gradients; ``pair_bias_attention_backward(grad, grad_logits, q, k, v, bias,
cu_seqlens, seed, scale, dropout_p) -> (dq, dk, dv, dbias)``. The gradient of the backward, the
second derivative, is that of the formula in plain PyTorch, at the memory of the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from collamo_kernels.coattention.dropout import dropout_factors
from collamo_kernels.extension import why_absent
from collamo_kernels.pair_bias_attention.reference import formula
from collamo_kernels.relations import Relations

LEARNED = 4  # q, k, v, bias


def fake(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    """Return empty results."""
    with_logits = others[-1]
    return q.new_empty(q.shape), bias.new_empty(bias.shape if with_logits else (0,))


def fake_backward(grad: Tensor, grad_logits: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return empty gradients."""
    return tuple(x.new_empty(x.shape) for x in inputs[:LEARNED])


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save the inputs: the backward works logits and weights out again."""
    *tensors, ctx.scale, ctx.dropout_p, ctx.with_logits = inputs
    ctx.set_materialize_grads(False)  # None: nobody used that result
    ctx.save_for_backward(*tensors)


def differentiate(
    ctx: Any, grad: Tensor | None, grad_logits: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v and bias."""
    tensors = ctx.saved_tensors
    grad = torch.zeros_like(tensors[0]) if grad is None else grad
    grad_logits = grad_logits if ctx.with_logits else None
    run = torch.ops.collamo_kernels.pair_bias_attention_backward
    return *run(grad, grad_logits, *tensors, ctx.scale, ctx.dropout_p), *(None,) * 5


def keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the formula needs."""
    *tensors, ctx.scale, ctx.dropout_p = inputs
    ctx.save_for_backward(*tensors)


def differentiate_again(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the backward's inputs, by the formula."""
    run = torch.ops.collamo_kernels.pair_bias_attention_second
    grad, grad_logits, *tensors = ctx.saved_tensors
    dropout_p = grad.new_tensor([ctx.dropout_p], dtype=torch.float64)
    *tensors, seed = tensors
    dropout = (None, None) if seed is None else (seed, dropout_p)
    second = run(grad, grad_logits, *tensors, *dropout, list(cotangents), ctx.scale)
    of_grad, of_logits, *others = second
    return of_grad, None if grad_logits is None else of_logits, *others, *(None,) * 4


def second_derivative(
    grad: Tensor,
    grad_logits: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None,
    dropout_p: Tensor | None,
    cotangents: list[Tensor],
    scale: float,
) -> list[Tensor]:
    """Gradients of ``Σ cotangent · gradient`` by grad, grad_logits, q, k, v and bias."""
    relations = Relations(cu_seqlens=cu_seqlens)
    sizes = cu_seqlens.diff()
    longest = int(sizes.max()) if len(sizes) else 0
    shape = torch.Size((len(sizes), q.shape[1], longest, longest))
    factors = None
    if seed is not None and dropout_p is not None:
        factors = dropout_factors(seed, shape, float(dropout_p))

    def drop(weights: Tensor, molecule: int) -> Tensor:
        n = weights.shape[-1]
        return weights if factors is None else weights * factors[molecule, :, :n, :n]

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return formula(q, k, v, bias, relations, scale, drop)

    def gradients(grad: Tensor, grad_logits: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(run, *inputs)[1]((grad, grad_logits))

    grad_logits = torch.zeros_like(bias) if grad_logits is None else grad_logits
    pull_back = torch.func.vjp(gradients, grad, grad_logits, q, k, v, bias)[1]
    return [x.clone() for x in pull_back(tuple(cotangents))]


def fake_second(
    grad: Tensor,
    grad_logits: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *_: object,
) -> list[Tensor]:
    """Return empty gradients."""
    return [torch.empty_like(x) for x in (grad, bias, q, k, v, bias)]


def register() -> None:
    """Give the operators shapes and gradients."""
    library, name = torch.library, "collamo_kernels::pair_bias_attention"
    library.register_fake(name, fake)
    library.register_fake(f"{name}_", lambda q, *others: q.new_empty(q.shape))
    library.register_fake(f"{name}_backward", fake_backward)
    library.register_autograd(name, differentiate, setup_context=keep)
    library.register_autograd(f"{name}_backward", differentiate_again, setup_context=keep_backward)


# An operator of its own, so that a compiler never looks into the formula, whose sizes depend on
# the data.
torch.library.custom_op(
    "collamo_kernels::pair_bias_attention_second",
    second_derivative,
    mutates_args=(),
    schema="(Tensor grad, Tensor? grad_logits, Tensor q, Tensor k, Tensor v, Tensor bias, "
    "Tensor cu_seqlens, Tensor? seed, Tensor? dropout_p, Tensor[] cotangents, float scale) "
    "-> Tensor[]",
).register_fake(fake_second)
if why_absent() is None:
    register()
