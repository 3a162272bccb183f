"""The Triton attention as an operator: its shapes, its gradients, and theirs.

``coattention_triton_forward`` is differentiable by ``coattention_triton_backward``, which
recomputes the weights and has a gradient of its own, by the definition. On the CPU the kernels run
in Triton's interpreter alone, so these are operators beside the compiled ones of
`coattention.op`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from collamo_kernels.coattention import op
from collamo_kernels.coattention.arguments import Arguments
from collamo_kernels.coattention.definition import definition
from collamo_kernels.coattention.second_derivative import differentiate_twice
from collamo_kernels.coattention.triton import launch as launch
from collamo_kernels.coattention.triton import launch_pairs as launch_pairs
from collamo_kernels.coattention.triton import phi as phi_terms
from collamo_kernels.coattention.triton.kernels import Projections
from collamo_kernels.coattention.triton.launch_pairs import Located
from collamo_kernels.coattention.triton.molecules import Molecules
from collamo_kernels.coattention.triton.phi import Learned, Phi
from collamo_kernels.radial import RadialTable
from collamo_kernels.radial.derivatives import derivatives
from collamo_kernels.radial.parameters import separate
from collamo_kernels.triton_library import define, no_gradient, tensors, unnamed_tensors


class Attention(NamedTuple):
    """What the forward operator takes."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    sink: Tensor | None  # [H] float32
    valid: Tensor | None
    cu_seqlens: Tensor | None
    pair_start: Tensor | None
    tiles: Tensor | None
    seed: Tensor | None
    dropout_p: Tensor | None  # [1] float64: in a tensor, so that no graph is compiled for it
    scale: float
    longest: int  # atoms of the largest molecule
    phi: Phi

    def flattened(self) -> tuple[Tensor | float | None, ...]:
        """Return the operator's arguments, in the order of its schema."""
        own = self.q, self.k, self.v, self.bias, self.sink, self.valid
        places = self.cu_seqlens, self.pair_start, self.tiles
        numbers, dropout = (self.scale, self.longest), (self.seed, self.dropout_p)
        return *own, *places, *dropout, *self.phi.tensors(), *numbers, *self.phi.numbers()

    @classmethod
    def of_operator(cls, arguments: tuple[Any, ...]) -> Attention:
        """Return what was flattened."""
        tensors, numbers = arguments[: len(TENSORS)], arguments[len(TENSORS) :]
        phi = Phi.of_operator(tensors[OWN_TENSORS:], numbers[OWN_NUMBERS:])
        own: tuple[Any, ...] = (*tensors[:OWN_TENSORS], *numbers[:OWN_NUMBERS], phi)
        return cls(*own)

    def atoms(self) -> int:
        """Atoms of all molecules, padding included."""
        return self.q.shape[0] * (self.q.shape[2] if self.cu_seqlens is None else 1)

    def molecules(self) -> Molecules:
        """Where the molecules are."""
        count = self.q.shape[0] if self.cu_seqlens is None else len(self.cu_seqlens) - 1
        places = self.cu_seqlens, self.pair_start, self.tiles
        return Molecules(count, self.longest, self.atoms(), self.phi.pairs, *places)

    def launched(self, located: Located, first_phi: Tensor | None = None) -> launch.AttentionInputs:
        """Return what the launchers take."""
        valid = None if self.valid is None else self.valid.contiguous().view(torch.uint8)
        sink = None if self.sink is None else self.sink.contiguous()
        others = first_phi, self.bias, sink, self.seed, self.dropout_p
        return launch.AttentionInputs(
            Projections(self.q, self.k, self.v),
            self.molecules(),
            valid,
            phi_terms.logit_terms(self.phi, located, *others),
            self.scale,
        )


class ForwardResults(NamedTuple):
    """What the forward operator returns; the backward operator takes all of it."""

    out: Tensor
    row_max: Tensor
    inverse_sum: Tensor
    spot: Tensor
    coefficients: Tensor

    def located(self) -> Located:
        """Where pairs are in the tables."""
        return Located(self.spot, self.coefficients)


class Requested(NamedTuple):
    """Which gradients are asked for, beside those of q, k and v."""

    bias: bool
    sink: bool
    phi: Learned[bool]

    @classmethod
    def of_operator(cls, requested: list[bool]) -> Requested:
        """Return what the operator's list stands for."""
        bias, sink, *phi = requested
        return cls(bias, sink, Learned(*phi))


OWN_TENSORS = Attention._fields.index("scale")
OWN_NUMBERS = 2
TENSORS = (*Attention._fields[:OWN_TENSORS], *phi_terms.TENSORS)
NUMBERS = ("scale", "longest", *phi_terms.NUMBERS)
PROJECTIONS = Projections._fields
OPTIONAL = ("bias", "sink", *phi_terms.LEARNED)  # in the order of `Requested`
LEARNED = (*PROJECTIONS, *OPTIONAL)  # in the order of the backward operator's results
PLACES = tuple(TENSORS.index(name) for name in LEARNED)


def attend(attention: Attention) -> Tensor:
    """Call the attention."""
    return call_forward(*attention.flattened())[0]


def run_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Launch what the forward operator stands for: two kernels."""
    attention = Attention.of_operator(arguments)
    located, first_phi = phi_terms.locate(attention.phi, attention.q)
    results = launch.forward(attention.launched(located, first_phi))
    return results.out, results.row_max, results.inverse_sum, *located


def run_backward(grad: Tensor, requested: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    """Launch what the backward operator stands for.

    That is three kernels, two more for u, and two for the exact Φ3d, which return at once where the
    table fits. Gradients are in the order of `LEARNED`; one that is not asked for has the shape
    [0].
    """
    results = ForwardResults(*arguments[: len(ForwardResults._fields)])
    attention = Attention.of_operator(arguments[len(results) :])
    located, phi, requests = results.located(), attention.phi, Requested.of_operator(requested)
    inputs, phi_requested = attention.launched(located), phi.read_of(requests.phi)
    segments = None
    if any(phi_requested):
        segments = launch_pairs.segments(inputs.terms, grad)
    rows = launch.Results(results.out, results.row_max, results.inverse_sum)
    learns = requests.bias, requests.sink
    own, rounds = launch.backward(inputs, rows, grad, *learns, segments)
    gradients = phi_terms.gradients_of(phi, located, inputs.terms, phi_requested, segments, rounds)
    by_bias, by_sink = no_gradient(grad), no_gradient(grad)
    if requests.bias:
        by_bias = phi_terms.gradient_or_zero(attention.bias, own.dbias, phi.pairs, grad)
    if own.dsink is not None:
        by_sink = own.dsink.sum(0)
    others = phi_terms.results(phi, gradients, phi_requested, grad)
    return own.dq, own.dk, own.dv, by_bias, by_sink, *others


# --- shapes -------------------------------------------------------------------------------------


def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return empty results of the right shapes and strides."""
    attention = Attention.of_operator(arguments)
    q = attention.q
    row = q.new_empty((attention.atoms(), q.shape[1]), dtype=torch.float32)
    located = phi_terms.fake_located(attention.phi, q)
    return torch.empty_like(q), row, torch.empty_like(row), *located


def fake_backward(grad: Tensor, requested: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    """Return empty gradients."""
    results = ForwardResults(*arguments[: len(ForwardResults._fields)])
    attention = Attention.of_operator(arguments[len(results) :])
    requests, bias, sink = Requested.of_operator(requested), attention.bias, attention.sink
    return (
        *(torch.empty_like(results.out) for _ in PROJECTIONS),
        no_gradient(grad) if bias is None or not requests.bias else launch.like_bias(bias),
        no_gradient(grad) if sink is None or not requests.sink else sink.new_empty(sink.shape),
        *phi_terms.fake_results(attention.phi, requests.phi, grad),
    )


# --- first derivative ---------------------------------------------------------------------------


def keep_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save everything: the backward operator takes it all again."""
    ctx.numbers = inputs[len(TENSORS) :]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else there are seven launches that fill in zeros for those
    ctx.save_for_backward(*output, *inputs[: len(TENSORS)])


def differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    """Gradients of the forward operator's inputs, by the backward operator."""
    if grad is None:  # only the results that the backward operator takes were differentiated
        return (None,) * (len(TENSORS) + len(NUMBERS))
    saved, needed = ctx.saved_tensors, ctx.needs_input_grad
    requested = [needed[at] for at in PLACES[len(PROJECTIONS) :]]
    results = call_backward(grad, requested, *saved, *ctx.numbers)
    inputs = saved[len(ForwardResults._fields) :]
    gradients: list[Tensor | None] = [None] * (len(TENSORS) + len(NUMBERS))
    for at, gradient in zip(PLACES, results, strict=True):
        if needed[at] and gradient.shape == inputs[at].shape:
            gradients[at] = gradient
    return tuple(gradients)


# --- second derivative --------------------------------------------------------------------------


def keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the definition needs."""
    grad, ctx.requested, *arguments = inputs
    arguments = arguments[len(ForwardResults._fields) :]
    ctx.numbers = arguments[len(TENSORS) :]
    ctx.set_materialize_grads(False)  # None tells a gradient that nobody uses from one that is 0
    ctx.save_for_backward(grad, *arguments[: len(TENSORS)])


def differentiate_again(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the backward operator's inputs, by the definition."""
    grad, *saved = ctx.saved_tensors
    unused = [x for x, wish in zip(OPTIONAL, ctx.requested, strict=True) if not wish]
    by_gradients = dict(zip(LEARNED, cotangents, strict=True)) | dict.fromkeys(unused)
    if by_gradients["u"] is not None:
        raise NotImplementedError(op.NO_SECOND_DERIVATIVE)
    arguments = dict(zip((*TENSORS, *NUMBERS), (*saved, *ctx.numbers), strict=True))
    learned = {name: arguments[name] for name in LEARNED if arguments[name] is not None}
    second = differentiate_twice(lambda x: _formula(arguments | x), learned, grad, by_gradients)
    by_results = [None] * len(ForwardResults._fields)
    by_tensors = (second.get(name) for name in TENSORS)
    return second["grad"], None, *by_results, *by_tensors, *[None] * len(NUMBERS)


def _formula(arguments: dict[str, Any]) -> Tensor:
    """What the forward operator computes of its arguments by name, in plain PyTorch."""
    attention = Attention.of_operator(tuple(arguments[name] for name in (*TENSORS, *NUMBERS)))
    bias, radial, hop = attention.bias, attention.phi.radial_term, attention.phi.hop_term
    if radial is not None:
        dense = _dense_phi3d(radial)
        if attention.cu_seqlens is None:
            dense = dense.unflatten(1, (-1, attention.longest, attention.longest)).transpose(0, 1)
        bias = dense if bias is None else bias.float() + dense
    return definition(
        Arguments(
            *(attention.q, attention.k, attention.v),
            hop_bias=None if hop is None else hop.hop_bias,
            bias=bias,
            sink=attention.sink,
            hops=None if hop is None else hop.hops,
            valid=attention.valid,
            cu_seqlens=attention.cu_seqlens,
            seed=attention.seed,
            scale=attention.scale,
            dropout_p=attention.dropout_p,
        )
    )


def _dense_phi3d(radial: phi_terms.RadialTerm) -> Tensor:
    """Φ3d ``[H, pairs]``, by the table where it fits."""
    first, per_block = radial.geometry.tolist()
    low, block = first / per_block, 1 / per_block
    table = RadialTable(radial.rows, radial.first_knot, low, block, [], radial.slope_rows)
    known = radial.u != float("inf")
    near = torch.where(known, radial.u, 0.0)
    heads = radial.rows.shape[2]
    parameters = separate(radial.layers, radial.gaussians, radial.hidden, heads)
    (exact,) = derivatives(near, *parameters, order=0)
    values = torch.where(radial.fits == 1, table.lookup(near), exact)  # [pairs, H]
    return (values * known[:, None]).t()


# --- registration -------------------------------------------------------------------------------

ARGUMENTS = f"{tensors(TENSORS, PROJECTIONS)}, float scale, SymInt longest, "
ARGUMENTS += phi_terms.NUMBERS_SCHEMA
RESULTS = tensors(ForwardResults._fields, ForwardResults._fields)
call_forward = define(
    "coattention_triton_forward",
    f"({ARGUMENTS}) -> ({RESULTS})",
    *(run_forward, fake_forward, keep_forward, differentiate),
)
call_backward = define(
    "coattention_triton_backward",
    f"(Tensor grad, bool[] requested, {RESULTS}, {ARGUMENTS}) -> {unnamed_tensors(len(LEARNED))}",
    *(run_backward, fake_backward, keep_backward, differentiate_again),
)
