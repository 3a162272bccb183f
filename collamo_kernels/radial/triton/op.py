"""Φ3d as operators of the Triton backend, each differentiable by a backward operator.

- ``radial_argument``: u = γ·r + β of every pair, where coordinates, γ or β get gradients
- ``radial_table``: a `RadialTable` of fixed size, made on the device by two launches, and its
  gradient by two

`GaussianRadial.table` with ``fixed_size`` is the definition of the second.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from collamo_kernels.coattention import op
from collamo_kernels.radial import BLOCKS, FIXED_KNOTS, TABLE_TOLERANCE, GaussianRadial
from collamo_kernels.radial import op as radial_op
from collamo_kernels.triton_library import define, keep_nothing, tensors


class Table(NamedTuple):
    """A `RadialTable` of fixed size, and what its gradient needs.

    ``knots [G]`` are Å; ``geometry`` holds the number of the first block and 1 / its length, and
    ``layers`` the parameters of the radial function, whose K, K' and H are `sizes`.
    """

    rows: Tensor
    slope_rows: Tensor
    knots: Tensor
    lengths: Tensor
    first_knot: Tensor
    geometry: Tensor
    fits: Tensor
    errors: Tensor
    layers: Tensor
    sizes: tuple[int, int, int]


FIELDS = Table._fields[:8]


def tabulate(
    radial: GaussianRadial,
    reach: Tensor,
    affine: Tensor | None,
    terms: int,
    dtype: torch.dtype,
    derivative: bool,
) -> Table:
    """Φ3d of every u that a distance up to `reach` (Å, ``[]``) can have, for an attention in dtype.

    Parameters
    ----------
    radial
        Its parameters get gradients through `rows` and `layers`.
    reach
        float32 ``[]``.
    affine
        ``[types, 2]``: γ and β, or None where u is the distance itself.
    terms
        How many rows of `affine` are added for a pair.
    dtype
        Sets tolerance and number of rows.
    derivative
        Whether `slope_rows` is made.
    """
    parameters = radial.float_parameters()
    hidden = radial.num_gaussians if radial.head_kind == "mlp" else 0
    sizes = radial.num_gaussians, hidden, radial.num_heads
    layers = radial_op.join(parameters).float()
    affine = None if affine is None else affine.detach()
    numbers = terms, *sizes, TABLE_TOLERANCE[dtype], derivative, FIXED_KNOTS[dtype]
    made = torch.ops.collamo_kernels.radial_table(reach, affine, layers, *numbers)
    return Table(*made, layers, sizes)


# --- the table ------------------------------------------------------------------------------------


def run_table(
    reach: Tensor, affine: Tensor | None, layers: Tensor, terms: int, gaussians: int, hidden: int,
    heads: int, *numbers: object,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Launch two kernels."""
    from collamo_kernels.radial.triton import launch as launch

    affine = None if affine is None else affine.contiguous()
    function = launch.Function(layers.contiguous(), gaussians, hidden, heads)
    return launch.tabulate(reach, affine, terms, function, *numbers)


def fake_table(
    reach: Tensor, affine: Tensor | None, layers: Tensor, terms: int, gaussians: int, hidden: int,
    heads: int, tolerance: float, derivative: bool, size: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return an empty table."""
    whole = {"dtype": torch.int32}
    return (
        layers.new_empty((size, 2, heads)),
        layers.new_empty((size if derivative else 0, 2, heads)),
        layers.new_empty(size),
        layers.new_empty(size),
        layers.new_empty(BLOCKS + 1, **whole),
        layers.new_empty(2),
        layers.new_empty((), **whole),
        layers.new_empty(1 + derivative),
    )


def run_table_backward(
    grad: Tensor, knots: Tensor, first_knot: Tensor, layers: Tensor, *sizes: int
) -> Tensor:
    """Launch two kernels: the gradient of `layers`."""
    from collamo_kernels.radial.triton import launch as launch

    function = launch.Function(layers.contiguous(), *sizes)
    return launch.tabulate_backward(grad.contiguous(), knots, first_knot, function)


def _keep_table(ctx: object, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    made = dict(zip(FIELDS, output, strict=True))
    ctx.sizes = inputs[4:7]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(made["knots"], made["first_knot"], inputs[2])


def _differentiate_table(ctx: object, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    operator = torch.ops.collamo_kernels.radial_table_backward
    return None, None, operator(grad, *ctx.saved_tensors, *ctx.sizes), *[None] * 7


def _keep_table_backward(ctx: object, inputs: tuple, output: Tensor) -> None:
    *saved, ctx.gaussians, ctx.hidden, ctx.heads = inputs
    ctx.save_for_backward(*saved)


def _differentiate_table_again(ctx: object, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """By the definition; can be differentiated."""
    grad, knots, first_knot, layers = ctx.saved_tensors
    sizes = ctx.gaussians, ctx.hidden, ctx.heads
    used = torch.arange(len(knots), device=knots.device) <= first_knot[-1]

    def rows(layers: Tensor) -> Tensor:
        parameters = radial_op.separate(layers, *sizes)
        return torch.stack(radial_op.derivatives(knots, *parameters, order=1), 1)

    def first(grad: Tensor, layers: Tensor) -> Tensor:
        return torch.func.vjp(rows, layers)[1](grad * used[:, None, None])[0]

    of_grad, of_layers = torch.func.vjp(first, grad, layers)[1](cotangent)
    return of_grad, None, None, of_layers, None, None, None


SIZES = "int gaussians, int hidden, int heads"
define(
    "radial_table",
    f"(Tensor reach, Tensor? affine, Tensor layers, int terms, {SIZES}, float tolerance, "
    f"bool derivative, SymInt size) -> ({tensors(FIELDS, FIELDS)})",
    *(run_table, fake_table, _keep_table, _differentiate_table),
)
define(
    "radial_table_backward",
    f"(Tensor grad, Tensor knots, Tensor first_knot, Tensor layers, {SIZES}) -> Tensor",
    run_table_backward,
    lambda grad, knots, first_knot, layers, *sizes: layers.new_empty(layers.shape),
    *(_keep_table_backward, _differentiate_table_again),
)

# --- u --------------------------------------------------------------------------------------------

PLACES = ("distances", "pair_types", "atom_types", "cu_seqlens", "pair_start", "tiles")


def _places_batch(coordinates: Tensor, a: SimpleNamespace) -> object:
    from collamo_kernels.coattention.triton import launch as launch

    packed = a.cu_seqlens is not None
    molecules = len(a.cu_seqlens) - 1 if packed else coordinates.shape[0]
    atoms = coordinates.numel() // 3
    return launch.Batch(
        *(molecules, a.longest, atoms, len(a.distances), a.cu_seqlens, a.pair_start, a.tiles)
    )


def _named(places: tuple) -> SimpleNamespace:
    return SimpleNamespace(**dict(zip((*PLACES, "longest"), places, strict=True)))


def run_argument(coordinates: Tensor, affine: Tensor | None, *places: object) -> Tensor:
    """u ``[pairs]``: γ·r + β, or r; ∞ where a pair has no distance."""
    from collamo_kernels.coattention.triton import launch as launch

    a = _named(places)
    if affine is None:
        return a.distances.clone()
    types = a.pair_types, a.atom_types
    return launch.stretch(_places_batch(coordinates, a), a.distances, affine, *types)


def run_argument_backward(
    du: Tensor, coordinates: Tensor, affine: Tensor | None, *places: object
) -> tuple[Tensor, Tensor]:
    """Gradients of coordinates and of γ, β."""
    from collamo_kernels.coattention.triton import launch as launch

    a = _named(places)
    batch = _places_batch(coordinates, a)
    arguments = coordinates.contiguous(), a.distances, affine, a.pair_types, a.atom_types
    dx, of_affine = launch.pull(batch, du.contiguous(), *arguments)
    return dx.view(coordinates.shape), du.new_empty(0) if of_affine is None else of_affine


def _keep_argument(ctx: object, inputs: tuple, output: Tensor) -> None:
    *saved, ctx.longest = inputs
    ctx.save_for_backward(*saved)


def _differentiate_argument(ctx: object, du: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    operator = torch.ops.collamo_kernels.radial_argument_backward
    dx, of_affine = operator(du, *saved, ctx.longest)
    return dx, None if saved[1] is None else of_affine, *[None] * (len(PLACES) + 1)


def _refuse(ctx: object, *_: Tensor) -> None:
    raise NotImplementedError(op.NO_SECOND_DERIVATIVE)


ARGUMENTS = f"Tensor coordinates, Tensor? affine, {tensors(PLACES, PLACES[:1])}, SymInt longest"
define(
    "radial_argument",
    f"({ARGUMENTS}) -> Tensor",
    run_argument,
    lambda coordinates, affine, distances, *_: torch.empty_like(distances),
    *(_keep_argument, _differentiate_argument),
)
define(
    "radial_argument_backward",
    f"(Tensor du, {ARGUMENTS}) -> (Tensor, Tensor)",
    run_argument_backward,
    lambda du, x, affine, *_: (
        x.new_empty(x.shape),
        du.new_empty(0 if affine is None else affine.shape),
    ),
    *(keep_nothing, _refuse),
)
