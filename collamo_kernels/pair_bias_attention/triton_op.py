"""The Triton attention with a pair bias as operators: their shapes, their gradients, and theirs.

``pair_bias_attention_triton`` writes the logits while it attends, and its backward takes what their
readers send back; ``pair_bias_attention_triton_`` writes them over `bias` and has no gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from collamo_kernels.coattention.triton import launch as launch
from collamo_kernels.coattention.triton.kernels import Projections, Results
from collamo_kernels.coattention.triton.molecules import Molecules
from collamo_kernels.coattention.triton.terms import LogitTerms
from collamo_kernels.pair_bias_attention import op as op  # the second derivative
from collamo_kernels.triton_library import (
    LIBRARY,
    define,
    no_gradient,
    on_its_gpu,
    tensors,
    unnamed_tensors,
)


class PairBias(NamedTuple):
    """What the operators take."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor  # [H, P] float32
    cu_seqlens: Tensor
    pair_start: Tensor
    tiles: Tensor
    seed: Tensor | None
    dropout_p: Tensor | None  # [1] float64: in a tensor, so that no graph is compiled for it
    scale: float
    longest: int  # atoms of the largest molecule

    def launched(self) -> launch.AttentionInputs:
        """Return what the launchers take."""
        count, (atoms, _, _) = len(self.cu_seqlens) - 1, self.q.shape
        places = self.cu_seqlens, self.pair_start, self.tiles
        return launch.AttentionInputs(
            Projections(self.q, self.k, self.v),
            Molecules(count, self.longest, atoms, self.bias.shape[1], *places),
            None,
            LogitTerms(bias=self.bias, seed=self.seed, dropout_p=self.dropout_p),
            self.scale,
        )


TENSORS = PairBias._fields[: PairBias._fields.index("scale")]
LEARNED = ("q", "k", "v", "bias")
ROWS = ("out", "row_max", "inverse_sum")  # of the forward operator, which the backward takes


def attend(call: PairBias, with_logits: bool) -> tuple[Tensor, Tensor]:
    """Return the output and the logits, ``[0]`` without `with_logits`."""
    return call_forward(*call, with_logits)[:2]


def attend_in_place(call: PairBias) -> Tensor:
    """Return the output, and write the logits over `bias`."""
    return torch.ops.collamo_kernels.pair_bias_attention_triton_(*call)


def run_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Launch one kernel."""
    *call, with_logits = arguments
    inputs = PairBias(*call)
    logits = torch.empty_like(inputs.bias, memory_format=torch.contiguous_format)
    results = launch.forward(inputs.launched(), logits if with_logits else None)
    written = logits if with_logits else no_gradient(logits)
    return results.out, written, results.row_max, results.inverse_sum


def run_in_place(*arguments: Any) -> Tensor:
    """Launch one kernel, which reads each bias before it writes the logit there."""
    inputs = PairBias(*arguments)
    return launch.forward(inputs.launched(), inputs.bias).out


def run_backward(
    grad: Tensor, grad_logits: Tensor | None, bias_learns: bool, *arguments: Any
) -> tuple[Tensor, ...]:
    """Launch one kernel; the gradient of the bias is ``[0]`` unless it learns."""
    rows, inputs = Results(*arguments[: len(ROWS)]), PairBias(*arguments[len(ROWS) :])
    sent = None if grad_logits is None else grad_logits.contiguous()
    own, rounds = launch.backward(
        *(inputs.launched(), rows, grad, bias_learns),
        sink_learns=False,
        cleared=None,
        dlogits=sent,
    )
    for _ in rounds:  # one, of all heads
        pass
    return own.dq, own.dk, own.dv, no_gradient(grad) if own.dbias is None else own.dbias


def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return empty results of the right shapes and strides."""
    *call, with_logits = arguments
    q, bias = PairBias(*call).q, PairBias(*call).bias
    row = q.new_empty(q.shape[:2], dtype=torch.float32)
    logits = bias.new_empty(bias.shape if with_logits else (0,))
    return torch.empty_like(q), logits, row, torch.empty_like(row)


def fake_backward(
    grad: Tensor, grad_logits: Tensor | None, bias_learns: bool, *arguments: Any
) -> tuple[Tensor, ...]:
    """Return empty gradients."""
    out, bias = arguments[0], PairBias(*arguments[len(ROWS) :]).bias
    by_bias = launch.like_bias(bias) if bias_learns else no_gradient(grad)
    return *(torch.empty_like(out) for _ in range(3)), by_bias


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save everything: the backward operator takes it all again."""
    out, _logits, row_max, inverse_sum = output
    *ctx.numbers, ctx.with_logits = inputs[len(TENSORS) :]
    ctx.mark_non_differentiable(row_max, inverse_sum)
    ctx.set_materialize_grads(False)  # None: nobody used that result
    ctx.save_for_backward(out, row_max, inverse_sum, *inputs[: len(TENSORS)])


def differentiate(
    ctx: Any, grad: Tensor | None, grad_logits: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v and bias."""
    saved = ctx.saved_tensors
    grad = torch.zeros_like(saved[0]) if grad is None else grad
    learns = ctx.needs_input_grad[LEARNED.index("bias")]
    sent = grad_logits if ctx.with_logits else None
    *by_qkv, by_bias = call_backward(grad, sent, learns, *saved, *ctx.numbers)
    others = len(PairBias._fields) + 1 - len(LEARNED)
    return *by_qkv, by_bias if learns else None, *[None] * others


def keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the formula needs."""
    grad, grad_logits, ctx.bias_learns, *arguments = inputs
    call = PairBias(*arguments[len(ROWS) :])
    ctx.scale = call.scale
    ctx.save_for_backward(grad, grad_logits, *call[:5], call.seed, call.dropout_p)


def differentiate_again(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the backward's inputs, by the formula."""
    grad, grad_logits, *saved = ctx.saved_tensors
    *by_qkv, by_bias = cotangents
    by_bias = by_bias if ctx.bias_learns else torch.zeros_like(saved[LEARNED.index("bias")])
    run = torch.ops.collamo_kernels.pair_bias_attention_second
    second = run(grad, grad_logits, *saved, [*by_qkv, by_bias], ctx.scale)
    of_grad, of_logits, *learned = second
    others = len(PairBias._fields) - len(LEARNED)
    of_logits = None if grad_logits is None else of_logits
    return of_grad, of_logits, None, *[None] * len(ROWS), *learned, *[None] * others


NUMBERS = "float scale, SymInt longest"
ALWAYS = set(TENSORS) - {"seed", "dropout_p"}
ARGUMENTS = f"{tensors(TENSORS, ALWAYS)}, {NUMBERS}"
NAME = "pair_bias_attention_triton"
call_forward = define(
    NAME,
    f"({ARGUMENTS}, bool with_logits) -> {unnamed_tensors(4)}",
    *(run_forward, fake_forward, keep, differentiate),
)
call_backward = define(
    f"{NAME}_backward",
    f"(Tensor grad, Tensor? grad_logits, bool bias_learns, {tensors(ROWS, ROWS)}, {ARGUMENTS}) "
    f"-> {unnamed_tensors(4)}",
    *(run_backward, fake_backward, keep_backward, differentiate_again),
)
LIBRARY.define(f"{NAME}_({ARGUMENTS.replace('Tensor bias', 'Tensor(a!) bias')}) -> Tensor")
for key in ("CPU", "CUDA"):
    LIBRARY.impl(f"{NAME}_", on_its_gpu(run_in_place), key)
torch.library.register_fake(
    f"collamo_kernels::{NAME}_", lambda q, *others: torch.empty_like(q), lib=LIBRARY
)
