"""The Triton attention as operators: their shapes, their gradients, and theirs.

Four operators, each differentiable by a backward operator:

- ``radial_argument``: u = γ·r + β of every pair, where coordinates, γ or β get gradients
- ``radial_of_pairs``: the exact Φ3d ``[H, pairs]``, worked out where a table does not fit
- ``coattention_triton``: the attention, from u, the table and the exact Φ3d
- ``pair_bias``: Φ2d + Φ3d of every pair, for layers that share them

On the CPU the kernels run in Triton's interpreter alone, so these are operators of their own,
beside the compiled ones of `op`.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import torch
from torch import Tensor

from collamo_kernels.coattention import op
from collamo_kernels.radial import RadialTable

LEARNED = ("q", "k", "v", "hop_bias", "rows", "phi", "bias", "u")
ALWAYS = 3  # the first three of LEARNED; the others are bits of `wanted`
TENSORS = (
    *LEARNED,
    *("hops", "valid", "cu_seqlens", "pair_start", "tiles", "hop_order", "hop_keys"),
    *("hop_offsets", "pair_order", "slope_rows", "first_knot", "geometry", "lengths", "fits"),
    "seed",
)
NUMBERS = ("scale", "dropout_p", "longest", "pairs")
LOCATED = ("cell", "fraction", "coefficients", "segments")
RESULTS = ("out", "most", "inverse", *LOCATED)


def attend(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    """Call the attention; a tensor left out is None."""
    others = [arguments.get(name) for name in (*TENSORS[3:], *NUMBERS)]
    return torch.ops.collamo_kernels.coattention_triton_forward(q, k, v, *others)[0]


def _batch(a: SimpleNamespace) -> object:
    from collamo_kernels.coattention import _triton_launch as launch

    molecules = a.q.shape[0] if a.cu_seqlens is None else len(a.cu_seqlens) - 1
    atoms = a.q.shape[0] * (a.q.shape[2] if a.cu_seqlens is None else 1)
    where = a.cu_seqlens, a.pair_start, a.tiles
    return launch.Batch(molecules, a.longest, atoms, a.pairs, *where)


def _terms(a: SimpleNamespace) -> object:
    from collamo_kernels.coattention import _triton_launch as launch

    found = {"bias": a.bias, "seed": a.seed}
    if a.hops is not None and a.hop_bias is not None:
        found |= {"hops": a.hops.contiguous(), "hop_bias": a.hop_bias.contiguous()}
    if a.rows is not None:
        found |= {name: getattr(a, name) for name in (*LOCATED[:3], "phi", "fits")}
    return launch.Terms(**found)


def _table(a: SimpleNamespace, rows: Tensor) -> object:
    from collamo_kernels.coattention import _triton_launch as launch

    return launch.Table(rows.contiguous(), a.first_knot, a.geometry, a.lengths)


def _named(names: tuple[str, ...], values: tuple) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip(names, values, strict=True)))


def _bytes(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous().view(torch.uint8)


def run_forward(*arguments: object) -> tuple[Tensor, ...]:
    """Launch what the forward operator stands for: at most two kernels."""
    from collamo_kernels.coattention import _triton_launch as launch

    a = _named((*TENSORS, *NUMBERS), arguments)
    located = [a.q.new_empty(0) for _ in LOCATED]
    if a.rows is not None:
        located = launch.locate(a.u, _table(a, a.rows), sums=a.pair_order is not None)
    a.__dict__.update(zip(LOCATED, located, strict=True))
    forward = launch.forward(
        a.q, a.k, a.v, _batch(a), _bytes(a.valid), _terms(a), a.scale, a.dropout_p
    )
    return *forward, *located


def run_backward(grad: Tensor, wanted: int, *arguments: object) -> tuple[Tensor, ...]:
    """Launch what the backward operator stands for: three kernels, one more for u.

    Gradients are in the order of `LEARNED`; one that is not wanted has the shape [0].
    """
    from collamo_kernels.coattention import _triton_launch as launch

    a = _named((*RESULTS, *TENSORS, *NUMBERS), arguments)
    terms = _terms(a)
    wants = {name for bit, name in enumerate(LEARNED[ALWAYS:]) if wanted >> bit & 1}
    wants -= {x for x in ("hop_bias", "rows", "phi", "u") if not _is_read(a, x)}
    keep = "all" if "phi" in wants else "rounds" if wants - {"bias"} else "nothing"
    dq, dk, dv, dbias, rounds = launch.backward(
        *(grad, a.out, a.most, a.inverse, a.q, a.k, a.v, _batch(a), _bytes(a.valid), terms),
        *(a.scale, a.dropout_p, keep, "bias" in wants),
    )
    gradients = _table_gradients(a, terms, wants, rounds)
    gradients |= {"q": dq, "k": dk, "v": dv, "bias": dbias}
    return tuple(_given(a, name, gradients.get(name), wants, grad) for name in LEARNED)


def _table_gradients(
    a: SimpleNamespace, terms: object, wants: set[str], rounds: Iterable[tuple[slice, Tensor]]
) -> dict[str, Tensor]:
    """Gradients of hop table, radial table, u and exact Φ3d from dL/dlogits of heads in rounds."""
    from collamo_kernels.coattention import _triton_launch as launch

    gradients = {
        name: torch.empty_like(getattr(a, name), memory_format=torch.contiguous_format)
        for name in wants & {"hop_bias", "rows"}
    }
    coefficients = None
    if "u" in wants:
        coefficients = launch.locate(a.u[:0], _table(a, a.slope_rows), sums=False)[2]
    sums = launch.Sums(a.hop_order, a.hop_keys, a.hop_offsets, _order(a, wants), a.segments)
    tables = [gradients.get(name) for name in ("hop_bias", "rows")]
    for heads, ds in rounds:
        if gradients.keys() & {"hop_bias", "rows"}:
            launch.sum_tables(ds, heads, sums, terms, a.lengths, *tables)
        if "u" in wants:
            of_heads = coefficients[heads]
            gradients["u"] = launch.slopes(ds, terms, of_heads, gradients.get("u"))
        if "phi" in wants:
            gradients["phi"] = ds
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
    return a.cell.sort(stable=True).indices


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
        a.u.new_empty(a.u.shape, dtype=torch.int32),
        torch.empty_like(a.u),
        a.u.new_empty((heads, cells, 4)),
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
    from collamo_kernels.coattention import _triton_launch as launch

    return launch.like_bias(bias)


# --- first derivative ---------------------------------------------------------------------------


def keep_forward(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Save everything: the backward operator takes it all again."""
    ctx.numbers = inputs[len(TENSORS) :]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output, *inputs[: len(TENSORS)])


def differentiate(ctx: object, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the forward operator's inputs, by the backward operator."""
    saved = ctx.saved_tensors
    tensors = saved[len(RESULTS) :]
    wanted = sum(
        1 << bit for bit, name in enumerate(LEARNED[ALWAYS:]) if ctx.needs_input_grad[bit + ALWAYS]
    )
    operator = torch.ops.collamo_kernels.coattention_triton_backward
    gradients = operator(grad, wanted, *saved, *ctx.numbers)
    found = [
        gradient if needed and gradient.shape == x.shape else None
        for x, gradient, needed in zip(tensors, gradients, ctx.needs_input_grad, strict=False)
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
    grad, *tensors = ctx.saved_tensors
    given = dict(zip(LEARNED, cotangents, strict=True))
    for bit, name in enumerate(LEARNED[ALWAYS:]):
        if not ctx.wanted >> bit & 1:
            given[name] = None
    if given["u"] is not None:
        raise NotImplementedError(op.NO_SECOND_DERIVATIVE)
    arguments = dict(zip((*TENSORS, *NUMBERS), (*tensors, *ctx.numbers), strict=True))
    found = op.differentiate_twice(definition, arguments, LEARNED, grad, given)
    gradients = (found.get(name) for name in TENSORS)
    return found["grad"], None, *[None] * len(RESULTS), *gradients, *[None] * len(NUMBERS)


def definition(
    q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor | None, slope_rows: Tensor | None,
    phi: Tensor | None, bias: Tensor | None, u: Tensor | None, first_knot: Tensor | None,
    geometry: Tensor | None, fits: Tensor | None, longest: int, **arguments: object,
) -> Tensor:  # fmt: skip
    """What the forward operator computes, in plain PyTorch."""
    if rows is not None:
        first, per_block = geometry.tolist()
        table = RadialTable(rows, first_knot, first / per_block, 1 / per_block, [], slope_rows)
        known = u != float("inf")
        values = table.lookup(torch.where(known, u, 0.0)) * known[:, None]  # [pairs, H]
        dense = torch.where(fits == 1, values, phi.t()).t()
        if arguments["cu_seqlens"] is None:
            dense = dense.unflatten(1, (-1, longest, longest)).transpose(0, 1)
        bias = dense if bias is None else bias.float() + dense
    names = ("hop_bias", "hops", "valid", "cu_seqlens", "scale", "dropout_p", "seed")
    return op.definition(
        q, k, v, bias=bias, **{x: arguments[x] for x in names}, **dict.fromkeys(op.OF_PHI3D)
    )


# --- Φ built once -------------------------------------------------------------------------------

OF_BIAS = ("hop_bias", "rows", "phi", "u")  # what gets a gradient
BIAS_TENSORS = (
    *OF_BIAS,
    *("hops", "hop_order", "hop_keys", "hop_offsets", "pair_order", "slope_rows", "first_knot"),
    *("geometry", "lengths", "fits"),
)


def build_bias(dtype: torch.dtype, pairs: int, **arguments: object) -> Tensor:
    """Φ2d + Φ3d ``[H, pairs]``; a tensor left out is None."""
    tensors = [arguments.get(name) for name in BIAS_TENSORS]
    return torch.ops.collamo_kernels.pair_bias(*tensors, dtype, pairs)[0]


def run_bias(*arguments: object) -> tuple[Tensor, ...]:
    """Launch two kernels: the cells of all pairs, and the bias of all pairs and heads."""
    from collamo_kernels.coattention import _triton_launch as launch

    a = _named((*BIAS_TENSORS, "dtype", "pairs"), arguments)
    like, heads = (a.u, a.rows.shape[2]) if a.rows is not None else (a.hop_bias, len(a.hop_bias))
    located = [like.new_empty(0) for _ in LOCATED]
    if a.rows is not None:
        located = launch.locate(a.u, _table(a, a.rows), sums=a.pair_order is not None)
    a.__dict__.update(zip(LOCATED, located, strict=True), bias=None, seed=None)
    return launch.build(_terms(a), like, heads, a.pairs, a.dtype), *located


def fake_bias(*arguments: object) -> tuple[Tensor, ...]:
    """Return an empty bias and empty cells."""
    a = _named((*BIAS_TENSORS, "dtype", "pairs"), arguments)
    like, heads = (a.u, a.rows.shape[2]) if a.rows is not None else (a.hop_bias, len(a.hop_bias))
    return like.new_empty((heads, a.pairs), dtype=a.dtype), *_fake_located(a, like)


def run_bias_backward(grad: Tensor, wanted: int, *arguments: object) -> tuple[Tensor, ...]:
    """Gradients in the order of `OF_BIAS`; one that is not wanted has the shape [0]."""
    a = _named((*LOCATED, *BIAS_TENSORS, "pairs"), arguments)
    a.bias = a.seed = None
    wants = {x for bit, x in enumerate(OF_BIAS) if wanted >> bit & 1 and _is_read(a, x)}
    grad = grad.contiguous()
    gradients = _table_gradients(a, _terms(a), wants, [(slice(0, len(grad)), grad)])
    if "phi" in gradients:
        gradients["phi"] = grad.float()
    return tuple(_given(a, name, gradients.get(name), wants, grad) for name in OF_BIAS)


def fake_bias_backward(grad: Tensor, wanted: int, *arguments: object) -> tuple[Tensor, ...]:
    """Return empty gradients."""
    a = _named((*LOCATED, *BIAS_TENSORS, "pairs"), arguments)
    read = (wanted >> bit & 1 and _is_read(a, name) for bit, name in enumerate(OF_BIAS))
    return tuple(
        getattr(a, name).new_empty(getattr(a, name).shape if needed else 0)
        if needed
        else grad.new_empty((0,), dtype=torch.float32)
        for name, needed in zip(OF_BIAS, read, strict=True)
    )


def keep_bias(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Save everything."""
    *tensors, _, ctx.pairs = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *tensors)


def differentiate_bias(ctx: object, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the builder's inputs, by its backward operator."""
    wanted = sum(1 << bit for bit in range(len(OF_BIAS)) if ctx.needs_input_grad[bit])
    operator = torch.ops.collamo_kernels.pair_bias_backward
    gradients = operator(grad, wanted, *ctx.saved_tensors, ctx.pairs)
    found = (
        x if needed else None for x, needed in zip(gradients, ctx.needs_input_grad, strict=False)
    )
    return *found, *[None] * (len(BIAS_TENSORS) - len(OF_BIAS) + 2)


# --- u and the exact Φ3d ------------------------------------------------------------------------

PLACES = ("distances", "pair_types", "atom_types", "cu_seqlens", "pair_start", "tiles")


def _places_batch(coordinates: Tensor, a: SimpleNamespace) -> object:
    from collamo_kernels.coattention import _triton_launch as launch

    packed = a.cu_seqlens is not None
    molecules = len(a.cu_seqlens) - 1 if packed else coordinates.shape[0]
    atoms = coordinates.numel() // 3
    return launch.Batch(
        *(molecules, a.longest, atoms, len(a.distances), a.cu_seqlens, a.pair_start, a.tiles)
    )


def run_argument(coordinates: Tensor, affine: Tensor | None, *places: object) -> Tensor:
    """u ``[pairs]``: γ·r + β, or r; ∞ where a pair has no distance."""
    from collamo_kernels.coattention import _triton_launch as launch

    a = _named((*PLACES, "longest"), places)
    if affine is None:
        return a.distances.clone()
    types = a.pair_types, a.atom_types
    return launch.stretch(_places_batch(coordinates, a), a.distances, affine, *types)


def run_argument_backward(
    du: Tensor, coordinates: Tensor, affine: Tensor | None, *places: object
) -> tuple[Tensor, Tensor]:
    """Gradients of coordinates and of γ, β."""
    from collamo_kernels.coattention import _triton_launch as launch

    a = _named((*PLACES, "longest"), places)
    batch = _places_batch(coordinates, a)
    arguments = coordinates.contiguous(), a.distances, affine, a.pair_types, a.atom_types
    dx, of_affine = launch.pull(batch, du.contiguous(), *arguments)
    return dx.view(coordinates.shape), du.new_empty(0) if of_affine is None else of_affine


def _keep_argument(ctx: object, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.longest = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_argument(ctx: object, du: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    operator = torch.ops.collamo_kernels.radial_argument_backward
    dx, of_affine = operator(du, *tensors, ctx.longest)
    return dx, None if tensors[1] is None else of_affine, *[None] * (len(PLACES) + 1)


def run_of_pairs(u: Tensor, fits: Tensor, *layers: Tensor | None) -> Tensor:
    """Φ3d ``[H, pairs]`` of `layers`, the parameters of `radial_op`."""
    from collamo_kernels.coattention import _triton_launch as launch

    return launch.evaluate(u, fits, launch.Gaussians(*_contiguous(layers)))


def run_of_pairs_backward(
    dphi: Tensor, u: Tensor, fits: Tensor, of_u: bool, *layers: Tensor | None
) -> tuple[Tensor, ...]:
    """Du, and the gradients of `layers`; [0] where there is none."""
    from collamo_kernels.coattention import _triton_launch as launch

    layers = launch.Gaussians(*_contiguous(layers))
    du, found = launch.evaluate_backward(dphi.contiguous(), u, fits, layers, of_u)
    gradients = (du, *vars(found).values())
    return tuple(u.new_empty(0) if x is None else x.contiguous().clone() for x in gradients)


def _contiguous(layers: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in layers]


def _keep_of_pairs(ctx: object, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_of_pairs(ctx: object, dphi: Tensor) -> tuple[Tensor | None, ...]:
    u, fits, *layers = ctx.saved_tensors
    operator = torch.ops.collamo_kernels.radial_of_pairs_backward
    du, *gradients = operator(dphi, u, fits, ctx.needs_input_grad[0], *layers)
    found = (None if x is None else y for x, y in zip(layers, gradients, strict=True))
    return du if ctx.needs_input_grad[0] else None, None, *found


def _fake_of_pairs_backward(
    dphi: Tensor, u: Tensor, fits: Tensor, of_u: bool, *layers: Tensor | None
) -> tuple[Tensor, ...]:
    found = (u.new_empty(0) if x is None else x.new_empty(x.shape) for x in layers)
    return u.new_empty(u.shape if of_u else 0), *found


def _refuse(ctx: object, *_: Tensor) -> None:
    raise NotImplementedError(op.NO_SECOND_DERIVATIVE)


def _refuse_bias(ctx: object, *_: Tensor) -> None:
    raise NotImplementedError(
        "the gradients of a Φ that was built once cannot be differentiated again; give hop_bias "
        "and radial to each layer instead of what share_bias returns"
    )


# --- registration -------------------------------------------------------------------------------


def _register() -> torch.library.Library:
    library = torch.library.Library("collamo_kernels", "FRAGMENT")

    def define(name: str, schema: str, run: object, fake: object, derivative: object) -> None:
        library.define(f"{name}{schema}")
        for key in ("CPU", "CUDA"):
            library.impl(name, run, key)
        full = f"collamo_kernels::{name}"
        torch.library.register_fake(full, fake, lib=library)
        keep, differentiate = derivative
        torch.library.register_autograd(full, differentiate, setup_context=keep, lib=library)

    def tensors(names: tuple[str, ...], always: tuple[str, ...] = ()) -> str:
        return ", ".join(f"Tensor{'' if x in always else '?'} {x}" for x in names)

    numbers = "float scale, float dropout_p, SymInt longest, SymInt pairs"
    shared = f"{tensors(TENSORS, LEARNED[:ALWAYS])}, {numbers}"
    results = tensors(RESULTS, RESULTS)
    define(
        "coattention_triton_forward",
        f"({shared}) -> ({results})",
        run_forward,
        fake_forward,
        (keep_forward, differentiate),
    )
    eight, seven, four = (", ".join(["Tensor"] * count) for count in (len(LEARNED), 7, 4))
    define(
        "coattention_triton_backward",
        f"(Tensor grad, int wanted, {results}, {shared}) -> ({eight})",
        run_backward,
        fake_backward,
        (keep_backward, differentiate_again),
    )
    located = tensors(LOCATED, LOCATED)
    of_bias = tensors(BIAS_TENSORS)
    define(
        "pair_bias",
        f"({of_bias}, ScalarType dtype, SymInt pairs) -> (Tensor bias, {located})",
        run_bias,
        fake_bias,
        (keep_bias, differentiate_bias),
    )
    define(
        "pair_bias_backward",
        f"(Tensor grad, int wanted, {located}, {of_bias}, SymInt pairs) -> ({four})",
        run_bias_backward,
        fake_bias_backward,
        (lambda ctx, inputs, output: None, _refuse_bias),
    )
    places = f"Tensor coordinates, Tensor? affine, {tensors(PLACES, PLACES[:1])}, SymInt longest"
    define(
        "radial_argument",
        f"({places}) -> Tensor",
        run_argument,
        lambda coordinates, affine, distances, *_: torch.empty_like(distances),
        (_keep_argument, _differentiate_argument),
    )
    define(
        "radial_argument_backward",
        f"(Tensor du, {places}) -> (Tensor, Tensor)",
        run_argument_backward,
        lambda du, x, affine, *_: (
            x.new_empty(x.shape),
            du.new_empty(0 if affine is None else affine.shape),
        ),
        (lambda ctx, inputs, output: None, _refuse),
    )
    layers = "Tensor centre, Tensor width, Tensor weight, Tensor bias, Tensor? weight2, "
    layers += "Tensor? bias2"
    define(
        "radial_of_pairs",
        f"(Tensor u, Tensor fits, {layers}) -> Tensor",
        run_of_pairs,
        lambda u, fits, *layers: u.new_empty(
            (len(layers[3] if layers[5] is None else layers[5]), len(u))
        ),
        (_keep_of_pairs, _differentiate_of_pairs),
    )
    define(
        "radial_of_pairs_backward",
        f"(Tensor dphi, Tensor u, Tensor fits, bool of_u, {layers}) -> ({seven})",
        run_of_pairs_backward,
        _fake_of_pairs_backward,
        (lambda ctx, inputs, output: None, _refuse),
    )
    return library


LIBRARY = _register()  # the operators live as long as this does
