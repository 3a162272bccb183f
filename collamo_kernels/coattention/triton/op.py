"""The Triton attention as operators: their shapes, their gradients, and theirs.

Two operators, each differentiable by a backward operator. They take Φ3d as u of every pair, a table
and, for when that is too coarse, the parameters it was made from (`radial.triton.op`):

- ``coattention_triton``: the attention
- ``pair_bias``: Φ2d + Φ3d of every pair, for layers that share them

On the CPU the kernels run in Triton's interpreter alone, so these are operators of their own,
beside the compiled ones of `op`.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import torch
from torch import Tensor

from collamo_kernels.coattention import definition as attention
from collamo_kernels.coattention import op
from collamo_kernels.coattention.arguments import Arguments
from collamo_kernels.coattention.second_derivative import differentiate_twice
from collamo_kernels.radial import RadialTable
from collamo_kernels.radial import op as radial_op
from collamo_kernels.triton_library import define, keep_nothing, tensors

LEARNED = ("q", "k", "v", "hop_bias", "rows", "layers", "bias", "u")
ALWAYS = 3  # the first three of LEARNED; the others are bits of `wanted`
TENSORS = (
    *LEARNED,
    *("hops", "valid", "cu_seqlens", "pair_start", "tiles", "hop_order", "hop_keys"),
    *("hop_offsets", "pair_order", "slope_rows", "first_knot", "geometry", "lengths", "fits"),
    "seed",
)
NUMBERS = ("scale", "dropout_p", "longest", "pairs", "gaussians", "hidden")
LOCATED = ("spot", "coefficients", "segments")
RESULTS = ("out", "most", "inverse", *LOCATED)


def attend(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    """Call the attention; a tensor left out is None."""
    arguments = {"gaussians": 0, "hidden": 0} | arguments
    others = [arguments.get(name) for name in (*TENSORS[3:], *NUMBERS)]
    return torch.ops.collamo_kernels.coattention_triton_forward(q, k, v, *others)[0]


def _batch(a: SimpleNamespace) -> object:
    from collamo_kernels.coattention.triton import launch as launch

    molecules = a.q.shape[0] if a.cu_seqlens is None else len(a.cu_seqlens) - 1
    atoms = a.q.shape[0] * (a.q.shape[2] if a.cu_seqlens is None else 1)
    where = a.cu_seqlens, a.pair_start, a.tiles
    return launch.Batch(molecules, a.longest, atoms, a.pairs, *where)


def _terms(a: SimpleNamespace) -> object:
    from collamo_kernels.coattention.triton import launch as launch

    found = {"bias": a.bias, "seed": a.seed, **_hops(a)}
    if a.rows is not None:
        found |= {name: getattr(a, name) for name in (*LOCATED[:2], "fits", "u")}
        found |= {"exact": _function(a), "ready": getattr(a, "phi", None)}
    return launch.Terms(**found)


def _hops(a: SimpleNamespace) -> dict[str, Tensor]:
    """Hops and the table they are looked up in, where both are there."""
    if a.hops is None or a.hop_bias is None:
        return {}
    return {"hops": a.hops.contiguous(), "hop_bias": a.hop_bias.contiguous()}


def _table(a: SimpleNamespace, rows: Tensor) -> object:
    from collamo_kernels.coattention.triton import launch as launch

    return launch.Table(rows.contiguous(), a.first_knot, a.geometry, a.lengths)


def _named(names: tuple[str, ...], values: tuple) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip(names, values, strict=True)))


def _bytes(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous().view(torch.uint8)


def run_forward(*arguments: object) -> tuple[Tensor, ...]:
    """Launch what the forward operator stands for: two kernels."""
    from collamo_kernels.coattention.triton import launch as launch

    a = _named((*TENSORS, *NUMBERS), arguments)
    located = _locate(a, a.q)
    forward = launch.forward(
        a.q, a.k, a.v, _batch(a), _bytes(a.valid), _terms(a), a.scale, a.dropout_p
    )
    return *forward, *located


def _locate(a: SimpleNamespace, like: Tensor) -> Iterable[Tensor]:
    """Add `LOCATED` to the arguments, and Φ3d of the first heads where the table does not fit."""
    from collamo_kernels.coattention.triton import launch as launch

    located, a.phi = [like.new_empty(0) for _ in LOCATED], None
    if a.rows is not None:
        wanted = a.pair_order is not None
        function, hops = _function(a), _hops(a)
        located, a.phi = launch.locate(a.u, _table(a, a.rows), wanted, a.fits, function, **hops)
    a.__dict__.update(zip(LOCATED, located, strict=True))
    return located


def _function(a: SimpleNamespace) -> object:
    from collamo_kernels.coattention.triton import launch as launch

    sizes = a.gaussians, a.hidden, a.rows.shape[2]
    return launch.on_radial.Function(a.layers.contiguous(), *sizes)


def run_backward(grad: Tensor, wanted: int, *arguments: object) -> tuple[Tensor, ...]:
    """Launch what the backward operator stands for.

    That is two kernels, two more for u, and one for the exact Φ3d, which returns at once where the
    table fits. Gradients are in the order of `LEARNED`; one that is not wanted has the shape
    [0].
    """
    from collamo_kernels.coattention.triton import launch as launch

    a = _named((*RESULTS, *TENSORS, *NUMBERS), arguments)
    terms = _terms(a)
    wants = {name for bit, name in enumerate(LEARNED[ALWAYS:]) if wanted >> bit & 1}
    wants -= {x for x in ("hop_bias", "rows", "layers", "u") if not _is_read(a, x)}
    counters = launch.counters(terms, grad, a.q.shape[1]) if wants - {"bias"} else None
    dq, dk, dv, dbias, rounds = launch.backward(
        *(grad, a.out, a.most, a.inverse, a.q, a.k, a.v, _batch(a), _bytes(a.valid), terms),
        *(a.scale, a.dropout_p, "bias" in wants, counters),
    )
    gradients = _table_gradients(a, terms, wants, counters, rounds)
    gradients |= {"q": dq, "k": dk, "v": dv, "bias": dbias}
    return tuple(_given(a, name, gradients.get(name), wants, grad) for name in LEARNED)


def _table_gradients(
    a: SimpleNamespace, terms: object, wants: set[str], counters: Tensor | None,
    rounds: Iterable[tuple[slice, Tensor]],
) -> dict[str, Tensor]:  # fmt: skip
    """Gradients of hop table, radial table or its parameters, and u; dL/dlogits come in rounds.

    Whoever makes a round sets the counters to 0.
    """
    from collamo_kernels.coattention.triton import launch as launch

    gradients = {
        name: torch.empty_like(getattr(a, name), memory_format=torch.contiguous_format)
        for name in wants & {"hop_bias", "rows", "layers"}
    }
    coefficients = None
    if "u" in wants:
        (_, coefficients, _), _ = launch.locate(a.u[:0], _table(a, a.slope_rows), sums=False)
    sums = launch.Sums(a.hop_order, a.hop_keys, a.hop_offsets, _order(a, wants), a.segments)
    tables = dict(gradients)
    for number, (heads, ds) in enumerate(rounds):
        if tables:
            launch.sum_up(ds, heads, sums, terms, a.lengths, counters, add=number > 0, **tables)
        if "u" in wants:
            of_heads = coefficients[heads]
            gradients["u"] = launch.slopes(ds, terms, of_heads, gradients.get("u"))
            launch.on_radial.pull_back(ds, a.u, a.fits, terms.exact, heads, gradients["u"])
    return gradients


def _is_read(a: SimpleNamespace, name: str) -> bool:
    """Whether the formula reads a learned tensor: a hop table without hops is not read."""
    if name == "hop_bias":
        return a.hop_bias is not None and a.hops is not None
    return a.rows is not None


def _order(a: SimpleNamespace, wants: set[str]) -> Tensor | None:
    """Pairs sorted by cell; [0] stands for "sort them": u changes with γ and β."""
    if "rows" not in wants or len(a.pair_order) == a.pairs:
        return a.pair_order
    return (a.spot & 0x1FFFF).sort(stable=True).indices


def _given(a, name: str, gradient: Tensor | None, wants: set[str], grad: Tensor) -> Tensor:
    if name not in (*LEARNED[:ALWAYS], *wants):
        return grad.new_empty((0,), dtype=torch.float32)
    if gradient is None or not a.pairs:  # no pair was there to give one
        return torch.zeros_like(getattr(a, name))
    return gradient


# --- shapes -------------------------------------------------------------------------------------


def fake_forward(*arguments: object) -> tuple[Tensor, ...]:
    """Return empty results of the right shapes and strides."""
    a = _named((*TENSORS, *NUMBERS), arguments)
    atoms = a.q.shape[0] * (a.q.shape[2] if a.cu_seqlens is None else 1)
    row = a.q.new_empty((atoms, a.q.shape[1]), dtype=torch.float32)
    return torch.empty_like(a.q), row, torch.empty_like(row), *_fake_located(a, a.q)


def _fake_located(a: SimpleNamespace, like: Tensor) -> list[Tensor]:
    if a.rows is None:
        return [like.new_empty(0) for _ in LOCATED]
    cells, _, heads = a.rows.shape
    cells = cells - 1
    return [
        a.u.new_empty(a.u.shape, dtype=torch.int64),
        a.u.new_empty((heads, cells + 1, 4)),
        a.u.new_empty((2, 0 if a.pair_order is None else cells), dtype=torch.int64),
    ]


def fake_backward(grad: Tensor, wanted: int, *arguments: object) -> tuple[Tensor, ...]:
    """Return empty gradients."""
    a = _named((*RESULTS, *TENSORS, *NUMBERS), arguments)
    found = [torch.empty_like(a.out) for _ in range(ALWAYS)]
    for bit, name in enumerate(LEARNED[ALWAYS:]):
        read = name == "bias" or _is_read(a, name)
        if wanted >> bit & 1 and read:
            x = getattr(a, name)
            found.append(_like_bias(x) if name == "bias" else x.new_empty(x.shape))
        else:
            found.append(grad.new_empty((0,), dtype=torch.float32))
    return tuple(found)


def _like_bias(bias: Tensor) -> Tensor:
    from collamo_kernels.coattention.triton import launch as launch

    return launch.like_bias(bias)


# --- first derivative ---------------------------------------------------------------------------


def keep_forward(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Save everything: the backward operator takes it all again."""
    ctx.numbers = inputs[len(TENSORS) :]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else there are seven launches that fill in zeros for those
    ctx.save_for_backward(*output, *inputs[: len(TENSORS)])


def differentiate(ctx: object, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    """Gradients of the forward operator's inputs, by the backward operator."""
    if grad is None:  # only the results that the backward operator takes were differentiated
        return (None,) * (len(TENSORS) + len(NUMBERS))
    saved = ctx.saved_tensors
    given = saved[len(RESULTS) :]
    wanted = sum(
        1 << bit for bit, name in enumerate(LEARNED[ALWAYS:]) if ctx.needs_input_grad[bit + ALWAYS]
    )
    operator = torch.ops.collamo_kernels.coattention_triton_backward
    gradients = operator(grad, wanted, *saved, *ctx.numbers)
    found = [
        gradient if needed and gradient.shape == x.shape else None
        for x, gradient, needed in zip(given, gradients, ctx.needs_input_grad, strict=False)
    ]
    return *found, *[None] * (len(TENSORS) - len(LEARNED) + len(NUMBERS))


# --- second derivative --------------------------------------------------------------------------


def keep_backward(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Save what the definition needs."""
    grad, ctx.wanted, *rest = inputs
    rest = rest[len(RESULTS) :]
    ctx.numbers = rest[len(TENSORS) :]
    ctx.set_materialize_grads(False)  # None tells a gradient that nobody uses from one that is 0
    ctx.save_for_backward(grad, *rest[: len(TENSORS)])


def differentiate_again(ctx: object, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the backward operator's inputs, by the definition."""
    grad, *saved = ctx.saved_tensors
    given = dict(zip(LEARNED, cotangents, strict=True))
    for bit, name in enumerate(LEARNED[ALWAYS:]):
        if not ctx.wanted >> bit & 1:
            given[name] = None
    if given["u"] is not None:
        raise NotImplementedError(op.NO_SECOND_DERIVATIVE)
    arguments = dict(zip((*TENSORS, *NUMBERS), (*saved, *ctx.numbers), strict=True))

    def formula(learned: dict[str, Tensor]) -> Tensor:
        return definition(**arguments | learned)

    learned = {name: arguments[name] for name in LEARNED if arguments[name] is not None}
    found = differentiate_twice(formula, learned, grad, given)
    gradients = (found.get(name) for name in TENSORS)
    return found["grad"], None, *[None] * len(RESULTS), *gradients, *[None] * len(NUMBERS)


def definition(
    q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor | None, slope_rows: Tensor | None,
    layers: Tensor | None, bias: Tensor | None, u: Tensor | None, first_knot: Tensor | None,
    geometry: Tensor | None, fits: Tensor | None, longest: int, gaussians: int, hidden: int,
    **arguments: object,
) -> Tensor:  # fmt: skip
    """What the forward operator computes, in plain PyTorch."""
    if rows is not None:
        first, per_block = geometry.tolist()
        table = RadialTable(rows, first_knot, first / per_block, 1 / per_block, [], slope_rows)
        known = u != float("inf")
        near = torch.where(known, u, 0.0)
        parameters = radial_op.separate(layers, gaussians, hidden, rows.shape[2])
        (exact,) = radial_op.derivatives(near, *parameters, order=0)
        values = torch.where(fits == 1, table.lookup(near), exact)  # [pairs, H]
        dense = (values * known[:, None]).t()
        if arguments["cu_seqlens"] is None:
            dense = dense.unflatten(1, (-1, longest, longest)).transpose(0, 1)
        bias = dense if bias is None else bias.float() + dense
    names = ("hop_bias", "hops", "valid", "cu_seqlens", "scale", "dropout_p", "seed")
    return attention.definition(Arguments(q, k, v, bias=bias, **{x: arguments[x] for x in names}))


# --- Φ built once -------------------------------------------------------------------------------

OF_BIAS = ("hop_bias", "rows", "layers", "u")  # what gets a gradient
BIAS_TENSORS = (
    *OF_BIAS,
    *("hops", "hop_order", "hop_keys", "hop_offsets", "pair_order", "slope_rows", "first_knot"),
    *("geometry", "lengths", "fits"),
)
BIAS_NUMBERS = ("pairs", "gaussians", "hidden")


def build_bias(dtype: torch.dtype, **arguments: object) -> Tensor:
    """Φ2d + Φ3d ``[H, pairs]``; a tensor left out is None."""
    values = [arguments.get(name) for name in BIAS_TENSORS]
    numbers = [arguments.get(name, 0) for name in BIAS_NUMBERS]
    return torch.ops.collamo_kernels.pair_bias(*values, dtype, *numbers)[0]


def run_bias(*arguments: object) -> tuple[Tensor, ...]:
    """Launch two kernels: cells of all pairs, with the exact Φ3d, and the bias."""
    from collamo_kernels.coattention.triton import launch as launch

    a = _named((*BIAS_TENSORS, "dtype", *BIAS_NUMBERS), arguments)
    like, heads = (a.u, a.rows.shape[2]) if a.rows is not None else (a.hop_bias, len(a.hop_bias))
    located = _locate(a, like)
    a.bias = a.seed = None
    return launch.build(_terms(a), like, heads, a.pairs, a.dtype), *located


def fake_bias(*arguments: object) -> tuple[Tensor, ...]:
    """Return an empty bias and empty cells."""
    a = _named((*BIAS_TENSORS, "dtype", *BIAS_NUMBERS), arguments)
    like, heads = (a.u, a.rows.shape[2]) if a.rows is not None else (a.hop_bias, len(a.hop_bias))
    return like.new_empty((heads, a.pairs), dtype=a.dtype), *_fake_located(a, like)


def run_bias_backward(grad: Tensor, wanted: int, *arguments: object) -> tuple[Tensor, ...]:
    """Gradients in the order of `OF_BIAS`; one that is not wanted has the shape [0]."""
    from collamo_kernels.coattention.triton import launch as launch

    a = _named((*LOCATED, *BIAS_TENSORS, *BIAS_NUMBERS), arguments)
    a.bias = a.seed = None
    wants = {x for bit, x in enumerate(OF_BIAS) if wanted >> bit & 1 and _is_read(a, x)}
    grad = grad.contiguous()
    terms = _terms(a)
    counters = launch.counters(terms, grad, len(grad)).zero_()
    gradients = _table_gradients(a, terms, wants, counters, [(slice(0, len(grad)), grad)])
    return tuple(_given(a, name, gradients.get(name), wants, grad) for name in OF_BIAS)


def fake_bias_backward(grad: Tensor, wanted: int, *arguments: object) -> tuple[Tensor, ...]:
    """Return empty gradients."""
    a = _named((*LOCATED, *BIAS_TENSORS, *BIAS_NUMBERS), arguments)
    read = (wanted >> bit & 1 and _is_read(a, name) for bit, name in enumerate(OF_BIAS))
    return tuple(
        getattr(a, name).new_empty(getattr(a, name).shape if needed else 0)
        if needed
        else grad.new_empty((0,), dtype=torch.float32)
        for name, needed in zip(OF_BIAS, read, strict=True)
    )


def keep_bias(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Save everything."""
    *saved, _, pairs, gaussians, hidden = inputs
    ctx.numbers = pairs, gaussians, hidden
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], *saved)


def differentiate_bias(ctx: object, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the builder's inputs, by its backward operator."""
    wanted = sum(1 << bit for bit in range(len(OF_BIAS)) if ctx.needs_input_grad[bit])
    operator = torch.ops.collamo_kernels.pair_bias_backward
    gradients = operator(grad, wanted, *ctx.saved_tensors, *ctx.numbers)
    found = (
        x if needed else None for x, needed in zip(gradients, ctx.needs_input_grad, strict=False)
    )
    return *found, *[None] * (len(BIAS_TENSORS) - len(OF_BIAS) + 1 + len(BIAS_NUMBERS))


def _refuse_bias(ctx: object, *_: Tensor) -> None:
    raise NotImplementedError(
        "the gradients of a Φ that was built once cannot be differentiated again; give hop_bias "
        "and radial to each layer instead of what share_bias returns"
    )


# --- registration -------------------------------------------------------------------------------


def _several(count: int) -> str:
    return f"({', '.join(['Tensor'] * count)})"


ARGUMENTS = f"{tensors(TENSORS, LEARNED[:ALWAYS])}, float scale, float dropout_p, SymInt longest, "
ARGUMENTS += "SymInt pairs, int gaussians, int hidden"
MADE = tensors(RESULTS, RESULTS)
define(
    "coattention_triton_forward",
    f"({ARGUMENTS}) -> ({MADE})",
    *(run_forward, fake_forward, keep_forward, differentiate),
)
define(
    "coattention_triton_backward",
    f"(Tensor grad, int wanted, {MADE}, {ARGUMENTS}) -> {_several(len(LEARNED))}",
    *(run_backward, fake_backward, keep_backward, differentiate_again),
)
PLACED = tensors(LOCATED, LOCATED)
OF_PAIRS = "SymInt pairs, int gaussians, int hidden"
define(
    "pair_bias",
    f"({tensors(BIAS_TENSORS)}, ScalarType dtype, {OF_PAIRS}) -> (Tensor bias, {PLACED})",
    *(run_bias, fake_bias, keep_bias, differentiate_bias),
)
define(
    "pair_bias_backward",
    f"(Tensor grad, int wanted, {PLACED}, {tensors(BIAS_TENSORS)}, {OF_PAIRS}) -> "
    + _several(len(OF_BIAS)),
    *(run_bias_backward, fake_bias_backward, keep_nothing, _refuse_bias),
)
