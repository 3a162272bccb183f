"""Φ2d + Φ3d of every pair as an operator, for layers that share them: ``pair_bias``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from collamo_kernels.coattention.triton import launch_pairs as launch
from collamo_kernels.coattention.triton import phi as phi_terms
from collamo_kernels.coattention.triton.launch_pairs import Located
from collamo_kernels.coattention.triton.phi import LEARNED, NUMBERS, TENSORS, Learned, Phi
from collamo_kernels.triton_library import define, keep_nothing, tensors, unnamed_tensors


def build_bias(phi: Phi, dtype: torch.dtype) -> Tensor:
    """Φ2d + Φ3d ``[H, pairs]``."""
    return call_bias(*phi.tensors(), dtype, *phi.numbers())[0]


def run_bias(*arguments: Any) -> tuple[Tensor, ...]:
    """Launch two kernels: cells of all pairs, with the exact Φ3d, and the bias."""
    phi, dtype = _of_operator(arguments)
    like, heads = _like(phi)
    located, first_phi = phi_terms.locate(phi, like)
    terms = phi_terms.logit_terms(phi, located, first_phi)
    return launch.build(terms, like, heads, phi.pairs, dtype), *located


def _of_operator(arguments: tuple[Any, ...]) -> tuple[Phi, torch.dtype]:
    tensors, (dtype, *numbers) = arguments[: len(TENSORS)], arguments[len(TENSORS) :]
    return Phi.of_operator(tensors, tuple(numbers)), dtype


def _like(phi: Phi) -> tuple[Tensor, int]:
    """A tensor on the device of all, and the number of heads."""
    if phi.radial_term is not None:
        return phi.radial_term.u, phi.radial_term.rows.shape[2]
    if phi.hop_term is not None:
        return phi.hop_term.hop_bias, len(phi.hop_term.hop_bias)
    raise ValueError("pair_bias got neither hops and hop_bias nor a radial table; give one of them")


def fake_bias(*arguments: Any) -> tuple[Tensor, ...]:
    """Return an empty bias and empty cells."""
    phi, dtype = _of_operator(arguments)
    like, heads = _like(phi)
    return like.new_empty((heads, phi.pairs), dtype=dtype), *phi_terms.fake_located(phi, like)


def run_bias_backward(grad: Tensor, requested: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    """Gradients in the order of `LEARNED`; one that is not asked for has the shape [0]."""
    located, phi = _of_backward_operator(arguments)
    phi_requested = phi.read_of(Learned(*requested))
    terms = phi_terms.logit_terms(phi, located)
    segments = launch.segments(terms, grad).zero_()
    rounds = [(slice(0, len(grad)), grad.t().contiguous())]
    gradients = phi_terms.gradients_of(phi, located, terms, phi_requested, segments, rounds)
    return phi_terms.results(phi, gradients, phi_requested, grad)


def _of_backward_operator(arguments: tuple[Any, ...]) -> tuple[Located, Phi]:
    located = Located(*arguments[: len(Located._fields)])
    rest = arguments[len(located) :]
    return located, Phi.of_operator(rest[: len(TENSORS)], rest[len(TENSORS) :])


def fake_bias_backward(grad: Tensor, requested: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    """Return empty gradients."""
    _, phi = _of_backward_operator(arguments)
    return phi_terms.fake_results(phi, Learned(*requested), grad)


def keep_bias(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save everything."""
    ctx.numbers = inputs[len(TENSORS) + 1 :]  # without the dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *inputs[: len(TENSORS)])


def differentiate_bias(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the builder's inputs, by its backward operator."""
    needed = dict(zip(TENSORS, ctx.needs_input_grad, strict=False))
    requested = [needed[name] for name in LEARNED]
    results = call_bias_backward(grad, requested, *ctx.saved_tensors, *ctx.numbers)
    gradients = {x: y for x, y in zip(LEARNED, results, strict=True) if needed[x]}
    return *(gradients.get(name) for name in TENSORS), None, *[None] * len(NUMBERS)


def _refuse(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError(
        "the gradients of a Φ that was built once cannot be differentiated again; give hop_bias "
        "and radial to each layer instead of what share_bias returns"
    )


LOCATED = tensors(Located._fields, Located._fields)
call_bias = define(
    "pair_bias",
    f"({tensors(TENSORS)}, ScalarType dtype, {phi_terms.NUMBERS_SCHEMA}) -> "
    f"(Tensor bias, {LOCATED})",
    *(run_bias, fake_bias, keep_bias, differentiate_bias),
)
call_bias_backward = define(
    "pair_bias_backward",
    f"(Tensor grad, bool[] requested, {LOCATED}, {tensors(TENSORS)}, {phi_terms.NUMBERS_SCHEMA})"
    f" -> {unnamed_tensors(len(LEARNED))}",
    *(run_bias_backward, fake_bias_backward, keep_nothing, _refuse),
)
