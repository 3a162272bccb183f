"""The Triton attention as an operator, with the arguments and gradients that `op` explains.

Its own are ``hop_order, hop_keys`` (`Relations.pairs_by_hops`, where the hop table gets a
gradient), ``max_seqlen`` and ``num_pairs``; `phi` is never given. On the CPU the kernels run in
Triton's interpreter alone, so these are operators of their own, beside the compiled ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collamo_kernels.coattention import op
from collamo_kernels.coattention.op import ALWAYS, LEARNED, NUMBERS, TENSORS

EXTRA = ("hop_order", "hop_keys", "max_seqlen", "num_pairs")
FORWARD = "collamo_kernels::coattention_triton_forward"
BACKWARD = "collamo_kernels::coattention_triton_backward"


def attend(q: Tensor, k: Tensor, v: Tensor, **arguments: object) -> Tensor:
    """Call the operator; a tensor left out is None."""
    arguments = op.UNUSED | arguments
    others = [arguments.get(name) for name in (*TENSORS[3:], *NUMBERS, *EXTRA)]
    out, _ = torch.ops.collamo_kernels.coattention_triton_forward(q, k, v, *others)
    return out


def run_forward(*arguments: object) -> tuple[Tensor, Tensor]:
    """Launch what the forward operator stands for."""
    from collamo_kernels.coattention import _triton_launch as launch

    a = _Arguments(arguments)
    batch, terms = a.batch(), a.terms()
    q, k, v = a.q, a.k, a.v
    return launch.forward(q, k, v, batch, a.valid, terms, a.scale, a.dropout_p)


def run_backward(grad: Tensor, out: Tensor, lse: Tensor, *arguments: object) -> tuple[Tensor, ...]:
    """Launch what the backward operator stands for: gradients in the order of `LEARNED`."""
    from collamo_kernels.coattention import _triton_launch as launch

    count = len(TENSORS) + len(NUMBERS)
    wanted = {name for bit, name in enumerate(LEARNED[ALWAYS:]) if arguments[count] >> bit & 1}
    a = _Arguments((*arguments[:count], *arguments[count + 1 :]))
    batch, terms = a.batch(), a.terms()
    table = terms.cell is not None
    wants = {
        "hop_bias": "hop_bias" in wanted and terms.hops is not None,
        "rows": "rows" in wanted and table,
        "u": table and bool(wanted & {"coordinates", "affine"}),
    }
    dq, dk, dv, dbias, rounds = launch.backward(
        *(grad, out, lse, a.q, a.k, a.v, batch, a.valid, terms, a.scale, a.dropout_p),
        keep=any(wants.values()) and batch.pairs > 0,
        bias="bias" in wanted and terms.bias is not None,
    )
    sums = _sum_rounds(a, terms, wants, rounds)
    found = {"q": dq.to(out.dtype), "k": dk, "v": dv, "bias": dbias, **sums}
    if "du" in found:
        dx, found["affine"] = launch.pull(batch, a.molecules(), found.pop("du"))
        found["coordinates"] = dx.view(a.coordinates.shape)
    return tuple(_given(name, name in wanted, found, a, grad) for name in LEARNED)


def _sum_rounds(a: _Arguments, terms: object, wants: dict, rounds: object) -> dict[str, Tensor]:
    """Gradients of the tables, and dL/du of every pair, from dL/dlogits of some heads at a time."""
    from collamo_kernels.coattention import _triton_launch as launch

    hop_bias, moments, du = [], [], None
    slope_table = a.polynomials(a.slope_rows) if wants["u"] else None
    for heads, ds in rounds:
        if wants["hop_bias"]:
            hop_bias.append(launch.hop_sums(ds, a.hop_order, a.hop_keys, terms.buckets))
        if wants["rows"]:
            moments.append(launch.cell_moments(ds, terms.cell, terms.fraction, terms.cells))
        if wants["u"]:
            du = launch.slopes(ds, terms.cell, terms.fraction, slope_table[heads], du)
    found = {}
    if hop_bias:
        found["hop_bias"] = torch.cat(hop_bias)
    if moments:
        found["rows"] = launch.row_gradient(torch.cat(moments), a.first_knot, a.block)
    return found if du is None else {**found, "du": du}


def _given(name: str, wanted: bool, found: dict, a: _Arguments, grad: Tensor) -> Tensor:
    """The gradient, zeros where no pair was there to give one, [0] where it is not wanted."""
    gradient = found.get(name)
    if name in LEARNED[:ALWAYS]:
        return gradient
    x = getattr(a, name)
    unread = name == "hop_bias" and a.hops is None
    unread |= name in ("coordinates", "affine") and a.rows is None
    if x is None or not wanted or unread:
        return grad.new_empty((0,), dtype=torch.float32)
    return torch.zeros_like(x) if gradient is None else gradient.contiguous()


class _Arguments:
    """The operator's arguments by name, and what the launcher makes of them."""

    def __init__(self, arguments: tuple[object, ...]):
        self.__dict__.update(zip((*TENSORS, *NUMBERS, *EXTRA), arguments, strict=True))
        self.valid = _bytes(self.valid)
        self.has_3d = _bytes(self.has_3d)

    def batch(self) -> object:
        from collamo_kernels.coattention import _triton_launch as launch

        self._batch = launch.batch_of(self.q, self.cu_seqlens, self.max_seqlen, self.num_pairs)
        return self._batch

    def polynomials(self, rows: Tensor) -> Tensor:
        from collamo_kernels.coattention import _triton_launch as launch

        return launch.polynomials(rows, self.first_knot, self.block)

    def molecules(self) -> dict[str, Tensor | None]:
        """What distances and their affine map are made of."""
        return {
            "coordinates": self.coordinates.contiguous(),
            "valid": self.valid,
            "has_3d": self.has_3d,
            "affine": None if self.affine is None else self.affine.contiguous(),
            "pair_types": _contiguous(self.pair_types),
            "atom_types": _contiguous(self.atom_types),
        }

    def terms(self) -> object:
        from collamo_kernels.coattention import _triton_launch as launch

        found = {"bias": self.bias, "seed": self.seed}
        if self.hops is not None and self.hop_bias is not None:
            found |= {"hops": self.hops.contiguous(), "hop_bias": self.hop_bias.contiguous()}
        if self.rows is not None:
            table = {"first_knot": self.first_knot, "low": self.low, "block": self.block}
            cell, fraction = launch.locate(self._batch, table, self.molecules())
            coefficients = self.polynomials(self.rows)
            found |= {"cell": cell, "fraction": fraction, "coefficients": coefficients}
        return launch.Terms(**found)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _bytes(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous().view(torch.uint8)


# --- shapes and derivatives ---------------------------------------------------------------------


def fake_backward(grad: Tensor, out: Tensor, lse: Tensor, *shared: object) -> tuple[Tensor, ...]:
    """Return empty gradients; those of k and v have the strides of q."""
    like, *gradients = op.fake_backward(grad, out, lse, *shared[: -len(EXTRA)])
    return like, torch.empty_like(like), torch.empty_like(like), *gradients[ALWAYS - 1 :]


def keep_forward(ctx: object, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """Save everything: the backward operator takes it all again."""
    *_, hop_order, hop_keys, ctx.max_seqlen, ctx.num_pairs = inputs
    ctx.numbers = inputs[len(TENSORS) : -len(EXTRA)]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, hop_order, hop_keys, *inputs[: len(TENSORS)])


def differentiate(ctx: object, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the forward operator's inputs, by the backward operator."""
    out, lse, hop_order, hop_keys, *tensors = ctx.saved_tensors
    wanted = sum(
        1 << bit
        for bit, name in enumerate(LEARNED[ALWAYS:])
        if ctx.needs_input_grad[TENSORS.index(name)]
    )
    extra = hop_order, hop_keys, ctx.max_seqlen, ctx.num_pairs
    operator = torch.ops.collamo_kernels.coattention_triton_backward
    gradients = operator(grad, out, lse, *tensors, *ctx.numbers, wanted, *extra)
    by_name = dict(zip(LEARNED, gradients, strict=True))
    found = []
    for name, x, needed in zip(TENSORS, tensors, ctx.needs_input_grad, strict=False):
        gradient = by_name.get(name) if needed else None
        found.append(gradient if gradient is not None and gradient.shape == x.shape else None)
    return *found, *[None] * (len(NUMBERS) + len(EXTRA))


def keep_backward(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Save what the definition needs."""
    op.keep_backward(ctx, inputs[: -len(EXTRA)], output)


def differentiate_again(ctx: object, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the definition twice, as every backend does."""
    return *op.differentiate_again(ctx, *cotangents), *[None] * len(EXTRA)


def _register() -> torch.library.Library:
    types = {"q": "Tensor", "k": "Tensor", "v": "Tensor", "phi_of_all_pairs": "bool"}
    types |= dict.fromkeys(EXTRA[2:], "SymInt")
    names = *TENSORS, *NUMBERS
    default = dict.fromkeys(NUMBERS, "float")
    shared = ", ".join(f"{types.get(x) or default.get(x, 'Tensor?')} {x}" for x in names)
    extra = ", ".join(f"{types.get(x, 'Tensor?')} {x}" for x in EXTRA)
    nine = ", ".join(["Tensor"] * len(LEARNED))
    before = "Tensor grad, Tensor out, Tensor lse"
    library = torch.library.Library("collamo_kernels", "FRAGMENT")
    library.define(f"coattention_triton_forward({shared}, {extra}) -> (Tensor out, Tensor lse)")
    library.define(
        f"coattention_triton_backward({before}, {shared}, int wanted, {extra}) -> ({nine})"
    )
    for key in ("CPU", "CUDA"):
        library.impl("coattention_triton_forward", run_forward, key)
        library.impl("coattention_triton_backward", run_backward, key)
    torch.library.register_fake(FORWARD, op.fake_forward, lib=library)
    torch.library.register_fake(BACKWARD, fake_backward, lib=library)
    torch.library.register_autograd(FORWARD, differentiate, setup_context=keep_forward, lib=library)
    torch.library.register_autograd(
        BACKWARD, differentiate_again, setup_context=keep_backward, lib=library
    )
    return library


LIBRARY = _register()  # the operators live as long as this does
