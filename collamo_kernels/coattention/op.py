"""The compiled attention as an operator: its shapes, its gradients, and theirs.

``coattention_forward(q, k, v, …) -> (out, normalizers)`` and ``coattention_backward(grad, out,
normalizers, q, k, v, …, wanted) -> nine gradients`` share these arguments, where Φ3d is a table or
one row per pair:

- ``q, k, v`` as in `collamo_kernels.coattention`, float32, bfloat16 or float16
- ``hop_bias [H, S]``, ``affine [types, 2]`` (γ, β), ``coordinates``: float32
- ``rows, slope_rows, first_knot, low, block``: a `RadialTable`
- ``phi [P', H]`` float32: Φ3d of each pair of real atoms in a molecule with a conformer, or, with
  ``phi_of_all_pairs``, of every pair, padding included
- ``bias`` as in `coattention`; ``hops``, ``valid``, ``cu_seqlens``, ``has_3d`` as in `Relations`
- ``pair_types``, ``atom_types``: int32
- ``seed [1]`` int64: which weights dropout drops
- ``normalizers [2, atoms, H]`` float32: the largest logit of each row, and 1 / Σ exp(logit -
  largest); 0 for padding. Apart, because log Σ exp as one number rounds by 2e-7 at 5.

The backward operator recomputes the weights from them. Its own gradient, the second derivative, is
that of `definition`: the formula in plain PyTorch, at the memory of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.coattention.reference import attention_weights, valid_pairs
from collamo_kernels.extension import why_absent
from collamo_kernels.pairwise_distances.reference import pairwise_distances
from collamo_kernels.radial import RadialTable
from collamo_kernels.relations import Relations

TENSORS = (
    *("q", "k", "v", "hop_bias", "rows", "slope_rows", "phi", "bias", "coordinates", "affine"),
    *("hops", "valid", "cu_seqlens", "has_3d", "pair_types", "atom_types", "first_knot", "seed"),
)
NUMBERS = ("low", "block", "scale", "dropout_p", "phi_of_all_pairs")
LEARNED = ("q", "k", "v", "hop_bias", "rows", "phi", "bias", "coordinates", "affine")
OF_PHI3D = (
    *("rows", "slope_rows", "first_knot", "low", "block", "affine", "phi", "phi_of_all_pairs"),
    *("coordinates", "has_3d", "pair_types", "atom_types"),
)
UNUSED = {"low": 0.0, "block": 1.0, "phi_of_all_pairs": False}
NO_SECOND_DERIVATIVE = (
    "the gradients of coordinates, gamma and beta cannot be differentiated again: the "
    "table of the radial function has no second derivative; use backend='reference'"
)
ALWAYS = 3  # the first three of LEARNED; the others are bits of `wanted`


def attend(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    """Call the operator; a tensor left out is None."""
    arguments = UNUSED | arguments
    tensors = [arguments.get(name) for name in TENSORS[3:]]
    numbers = [arguments[name] for name in NUMBERS]
    compiling = torch.compiler.is_compiling()  # a graph has the operator itself
    run = torch.ops.collamo_kernels.coattention_forward if compiling else Attention.apply
    return run(q, k, v, *tensors, *numbers)[0]


# --- shapes ------------------------------------------------------------------------------------


def fake_forward(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Return empty results of the right shapes and strides."""
    atoms = q.shape[0] if q.dim() == 3 else q.shape[0] * q.shape[2]
    return torch.empty_like(q), q.new_empty((2, atoms, q.shape[1]), dtype=torch.float32)


def fake_backward(
    grad: Tensor, out: Tensor, normalizers: Tensor, *shared: object
) -> tuple[Tensor, ...]:
    """Return empty gradients; one that is not wanted has the shape [0]."""
    wanted = shared[-1]
    given = dict(zip(TENSORS, shared, strict=False))
    if given["hops"] is None:
        given["hop_bias"] = None
    if given["rows"] is None:
        given["coordinates"] = given["affine"] = None
    gradients = [torch.empty_like(given[name]) for name in LEARNED[:ALWAYS]]
    for bit, name in enumerate(LEARNED[ALWAYS:]):
        if given[name] is None or not wanted >> bit & 1:
            gradients.append(grad.new_empty((0,), dtype=torch.float32))
        else:
            gradients.append(given[name].new_empty(given[name].shape))
    return tuple(gradients)


# --- first derivative --------------------------------------------------------------------------


def keep_forward(ctx: object, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """Save everything: the backward operator takes it all again."""
    ctx.numbers = inputs[len(TENSORS) :]
    ctx.set_materialize_grads(False)  # else zeros are made, the normalizers' size, for nobody
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, *inputs[: len(TENSORS)])


def differentiate(ctx: object, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    """Gradients of the forward operator's inputs, by the backward operator."""
    if grad is None:  # the second derivative has none by `out`
        return (None,) * (len(TENSORS) + len(NUMBERS))
    out, normalizers, *tensors = ctx.saved_tensors
    wanted = sum(
        1 << bit
        for bit, name in enumerate(LEARNED[ALWAYS:])
        if ctx.needs_input_grad[TENSORS.index(name)]
    )
    operator = torch.ops.collamo_kernels.coattention_backward
    gradients = operator(grad, out, normalizers, *tensors, *ctx.numbers, wanted)
    by_name = dict(zip(LEARNED, gradients, strict=True))
    found = []
    for name, x, needed in zip(TENSORS, tensors, ctx.needs_input_grad, strict=False):
        gradient = by_name.get(name) if needed else None
        # A tensor that the formula does not read, such as hop_bias without hops, has gradient [0].
        found.append(gradient if gradient is not None and gradient.shape == x.shape else None)
    return *found, *[None] * len(NUMBERS)


class Attention(torch.autograd.Function):
    """The forward operator with its gradient, for calls that are not compiled.

    The operator has the same gradient by itself, but `torch.library` then reads its whole schema
    anew for each of 23 arguments: 0.25 ms a call, of 14 for 64 molecules.
    """

    @staticmethod
    def forward(*inputs: object) -> tuple[Tensor, Tensor]:
        """Run the operator."""
        return torch.ops.collamo_kernels.coattention_forward(*inputs)

    setup_context = staticmethod(keep_forward)
    backward = staticmethod(differentiate)


# --- second derivative -------------------------------------------------------------------------


def keep_backward(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Save what the definition needs."""
    grad, _, _, *shared, ctx.wanted = inputs
    ctx.numbers = shared[len(TENSORS) :]
    ctx.set_materialize_grads(False)  # None tells a gradient that nobody uses from one that is 0
    ctx.save_for_backward(grad, *shared[: len(TENSORS)])


def differentiate_again(ctx: object, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the backward operator's inputs, by the definition.

    Raises
    ------
    NotImplementedError
        For derivatives of dL/dcoordinates or of dL/dγ, dL/dβ through a table, which has no second
        derivative.
    """
    grad, *tensors = ctx.saved_tensors
    given = dict(zip(LEARNED, cotangents, strict=True))
    for bit, name in enumerate(LEARNED[ALWAYS:]):
        if not ctx.wanted >> bit & 1:
            given[name] = None
    of_u = given["coordinates"] is not None or given["affine"] is not None
    if of_u and tensors[TENSORS.index("rows")] is not None:
        raise NotImplementedError(NO_SECOND_DERIVATIVE)
    operator = torch.ops.collamo_kernels.coattention_second
    found = operator(grad, tensors, list(given.values()), *ctx.numbers)
    by_name = dict(zip(_given(tensors), found[1:], strict=True))
    return found[0], None, None, *map(by_name.get, TENSORS), *[None] * (len(NUMBERS) + 1)


def _given(tensors: list[Tensor | None]) -> list[str]:
    """Names of the learned tensors that are there."""
    return [name for name in LEARNED if tensors[TENSORS.index(name)] is not None]


def second_derivative(
    grad: Tensor, tensors: list[Tensor | None], cotangents: list[Tensor | None], *numbers: object
) -> list[Tensor]:
    """Gradients of ``Σ cotangent · gradient`` by `grad` and the learned tensors that are there."""
    arguments = dict(zip((*TENSORS, *NUMBERS), (*tensors, *numbers), strict=True))
    given = dict(zip(LEARNED, cotangents, strict=True))
    return list(differentiate_twice(definition, arguments, LEARNED, grad, given).values())


def differentiate_twice(
    run: Callable[..., Tensor],
    arguments: dict[str, object],
    learned: tuple[str, ...],
    grad: Tensor,
    cotangents: dict[str, Tensor | None],
) -> dict[str, Tensor]:
    """Likewise for the formula `run` of `arguments`: by name, that of `grad` first."""
    names = [name for name in learned if arguments[name] is not None]
    # hop_bias without hops, say, is there, but the formula does not read it: its gradient is [0].
    same = [
        name
        for name in names
        if cotangents[name] is not None and cotangents[name].shape == arguments[name].shape
    ]

    def first(grad: Tensor, *values: Tensor) -> dict[str, Tensor]:
        def of(*values: Tensor) -> Tensor:
            return run(**arguments | dict(zip(names, values, strict=True)))

        gradients = torch.func.vjp(of, *values)[1](grad)
        return {n: x for n, x in zip(names, gradients, strict=True) if n in same}

    _, pull_back = torch.func.vjp(first, grad, *(arguments[name] for name in names))
    found = pull_back({name: cotangents[name] for name in same})
    return {name: x.clone() for name, x in zip(("grad", *names), found, strict=True)}


def fake_second(
    grad: Tensor, tensors: list[Tensor | None], cotangents: list[Tensor | None], *_: object
) -> list[Tensor]:
    """Return empty gradients."""
    learned = (tensors[TENSORS.index(name)] for name in _given(tensors))
    return [torch.empty_like(x) for x in (grad, *learned)]


def definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    hop_bias: Tensor | None,
    bias: Tensor | None,
    hops: Tensor | None,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    **phi3d: object,
) -> Tensor:
    """What the forward operator computes, in plain PyTorch."""
    dtype = q.dtype
    relations = Relations(hops=hops, valid=valid, cu_seqlens=cu_seqlens)
    dense = _phi3d(q, relations, **phi3d)  # [B, N, N, H]
    if not relations.packed:
        bias = _sum(bias, None if dense is None else dense.permute(0, 3, 1, 2))
        weights = attention_weights(q, k, relations, hop_bias, None, bias, scale)
        if dropout_p > 0:
            weights = weights * dropout_factors(seed, weights.shape, dropout_p)
        v = v if valid is None else torch.where(valid[:, None, :, None], v, 0.0)
        return (weights @ v.to(weights.dtype)).to(dtype)
    layout = relations.packed_layout()
    q, k, v = (layout.pad(x).transpose(1, 2) for x in (q, k, v))
    bias = None if bias is None else layout.pad_pairs(bias.t()).permute(0, 3, 1, 2)
    bias = _sum(bias, None if dense is None else dense.permute(0, 3, 1, 2))
    padded = relations.padded()
    out = definition(
        *(q, k, v),
        hop_bias=hop_bias,
        bias=bias,
        hops=padded.hops,
        valid=padded.valid,
        cu_seqlens=None,
        scale=scale,
        dropout_p=dropout_p,
        seed=seed,
        **dict.fromkeys(phi3d),
    )
    return layout.pack(out.transpose(1, 2))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a.to(b.dtype) + b


def _phi3d(
    q: Tensor,
    relations: Relations,
    *,
    rows: Tensor | None,
    slope_rows: Tensor | None,
    first_knot: Tensor | None,
    low: float,
    block: float,
    affine: Tensor | None,
    phi: Tensor | None,
    phi_of_all_pairs: bool,
    coordinates: Tensor | None,
    has_3d: Tensor | None,
    pair_types: Tensor | None,
    atom_types: Tensor | None,
) -> Tensor | None:
    """Φ3d ``[B, N, N, H]``, 0 where a pair has none; None without a table and without rows."""
    if rows is None and phi is None:
        return None
    relations = Relations(
        valid=relations.valid,
        cu_seqlens=relations.cu_seqlens,
        coordinates=coordinates,
        pair_types=pair_types,
        atom_types=atom_types,
    )
    if relations.packed and phi is not None and phi_of_all_pairs:
        layout = relations.packed_layout()
        phi = layout.pad_pairs(phi).flatten(0, 2)
    relations = relations.padded()
    shape = (q.shape[0], q.shape[2]) if relations.valid is None else relations.valid.shape
    atoms = torch.ones(shape, dtype=torch.bool) if relations.valid is None else relations.valid
    pairs = valid_pairs(atoms if has_3d is None else atoms & has_3d[:, None])
    if phi is not None:
        values = phi[pairs.flatten()] if phi_of_all_pairs else phi
    else:
        distance = pairwise_distances(relations.coordinates, pairs.any(-1))[pairs]
        u = distance if affine is None else _affine(distance, affine, relations, pairs)
        table = RadialTable(rows, first_knot, low, block, [], slope_rows)
        values = table.lookup(u)
    return values.new_zeros(*pairs.shape, values.shape[-1]).index_put((pairs,), values)


def _affine(distance: Tensor, affine: Tensor, relations: Relations, pairs: Tensor) -> Tensor:
    if relations.pair_types is not None:
        gamma_beta = F.embedding(relations.pair_types[pairs].long(), affine)
    else:
        query, key = F.embedding(relations.atom_types.long(), affine).unbind(2)
        gamma_beta = (query[:, :, None] + key[:, None])[pairs]
    gamma, beta = gamma_beta.unbind(-1)
    return gamma * distance + beta


# --- dropout -----------------------------------------------------------------------------------

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
WORD = 0xFFFFFFFF


def dropout_factors(seed: Tensor, shape: torch.Size, dropout_p: float) -> Tensor:
    """0 or 1/(1 - p) for each weight ``[B, H, i, j]``: the definition for every backend.

    A weight is kept where the first word of Philox4x32-10 (Salmon et al. 2011), key = seed, counter
    = (j, i, h, b), is at least p·2³². Atoms are counted by their place in the molecule.
    """
    number = int(seed)
    key = [number & WORD, number >> 32 & WORD]
    b, h, i, j = (torch.arange(n) for n in shape)
    c = [j, i[:, None], h[:, None, None], b[:, None, None, None]]
    for _ in range(10):
        a, d = c[0] * MULTIPLIERS[0], c[2] * MULTIPLIERS[1]  # wraps; the 64 bits are right
        high_a, high_d = a >> 32 & WORD, d >> 32 & WORD
        c = [high_d ^ c[1] ^ key[0], d & WORD, high_a ^ c[3] ^ key[1], a & WORD]
        key = [(k + w) & WORD for k, w in zip(key, WEYL, strict=True)]
    kept = c[0].expand(shape) >= math.floor(dropout_p * 2**32)
    return kept.float() / (1 - dropout_p)


# An operator of its own, so that a compiler never looks into the definition, whose sizes depend on
# the data.
torch.library.custom_op(
    "collamo_kernels::coattention_second",
    second_derivative,
    mutates_args=(),
    schema="(Tensor grad, Tensor?[] tensors, Tensor?[] cotangents, float low, float block, "
    "float scale, float dropout_p, bool phi_of_all_pairs) -> Tensor[]",
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
