"""Φ3d as operators of the Triton backend, each differentiable by a backward operator.

- ``radial_argument``: u = γ·r + β of every pair, where coordinates, γ or β get gradients
- ``radial_table``: a `RadialTable` of fixed size, made on the device by two launches, and its
  gradient by two; or those of several functions, whose parameters are ``[functions, n]``: every
  result is then ``[functions, …]`` (`tabulate_together`)

`GaussianRadial.table` with ``fixed_size`` is the definition of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from collamo_kernels.coattention import op
from collamo_kernels.coattention.triton import launch_pairs as launch_pairs
from collamo_kernels.coattention.triton.molecules import Molecules
from collamo_kernels.coattention.triton.pairs import Affine
from collamo_kernels.radial import FIXED_KNOTS, TABLE_TOLERANCE, GaussianRadial
from collamo_kernels.radial.derivatives import derivatives
from collamo_kernels.radial.parameters import join, separate
from collamo_kernels.radial.triton import launch as launch
from collamo_kernels.triton_library import define, keep_nothing, tensors


class FixedTable(NamedTuple):
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


FIELDS = FixedTable._fields[:8]


def tabulate(
    radial: GaussianRadial,
    reach: Tensor,
    affine: Tensor | None,
    terms: int,
    dtype: torch.dtype,
    derivative: bool,
) -> FixedTable:
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
    layers, sizes = join(radial.float_parameters()).float(), sizes_of(radial)
    affine = None if affine is None else affine.detach()
    numbers = terms, *sizes, TABLE_TOLERANCE[dtype], derivative, FIXED_KNOTS[dtype]
    made = call_table(reach, affine, layers, *numbers)
    fields: tuple[Any, ...] = (*made, layers, sizes)
    return FixedTable(*fields)


def sizes_of(radial: GaussianRadial) -> tuple[int, int, int]:
    """K, K' and H."""
    hidden = radial.num_gaussians if radial.head_kind == "mlp" else 0
    return radial.num_gaussians, hidden, radial.num_heads


def tabulate_together(
    radials: Sequence[GaussianRadial], reach: Tensor, dtype: torch.dtype
) -> list[FixedTable]:
    """`tabulate` of several radial functions of the same sizes and without types, in its launches.

    The same bits as one by one.
    """
    sizes = sizes_of(radials[0])
    layers = torch.cat([join(x.float_parameters()) for x in radials]).float()
    layers = layers.view(len(radials), -1)
    numbers = 1, *sizes, TABLE_TOLERANCE[dtype], False, FIXED_KNOTS[dtype]
    made = call_table(reach, None, layers, *numbers)
    each = zip(*(x.unbind() for x in made), layers.unbind(), strict=True)
    return [FixedTable(*(*fields, sizes)) for fields in each]


# --- the table ------------------------------------------------------------------------------------


def run_table(
    reach: Tensor, affine: Tensor | None, layers: Tensor, terms: int, gaussians: int, hidden: int,
    heads: int, tolerance: float, derivative: bool, size: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Launch two kernels."""
    affine = None if affine is None else affine.contiguous()
    function = launch.RadialFunction(layers.contiguous(), gaussians, hidden, heads)
    return launch.tabulate(reach, affine, terms, function, tolerance, derivative, size)


def fake_table(
    reach: Tensor, affine: Tensor | None, layers: Tensor, terms: int, gaussians: int, hidden: int,
    heads: int, tolerance: float, derivative: bool, size: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return an empty table."""
    return launch.empty_table(layers, heads, derivative, size)


def run_table_backward(
    grad: Tensor, knots: Tensor, first_knot: Tensor, layers: Tensor, *sizes: int
) -> Tensor:
    """Launch two kernels: the gradient of `layers`."""
    function = launch.RadialFunction(layers.contiguous(), *sizes)
    return launch.tabulate_backward(grad.contiguous(), knots, first_knot, function)


def _keep_table(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    made = dict(zip(FIELDS, output, strict=True))
    ctx.sizes = inputs[4:7]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(made["knots"], made["first_knot"], inputs[2])


def _differentiate_table(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    by_layers = call_table_backward(grad, *ctx.saved_tensors, *ctx.sizes)
    return None, None, by_layers, *[None] * 7


def _keep_table_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *saved, ctx.gaussians, ctx.hidden, ctx.heads = inputs
    ctx.save_for_backward(*saved)


def _differentiate_table_again(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """By the definition; can be differentiated."""
    grad, knots, first_knot, layers = ctx.saved_tensors
    sizes = ctx.gaussians, ctx.hidden, ctx.heads
    used = torch.arange(knots.shape[-1], device=knots.device) <= first_knot[..., -1:]

    def rows(layers: Tensor) -> Tensor:
        if layers.dim() > 1:
            return torch.stack([rows_at(*x) for x in zip(knots, layers, strict=True)])
        return rows_at(knots, layers)

    def rows_at(knots: Tensor, layers: Tensor) -> Tensor:
        parameters = separate(layers, *sizes)
        return torch.stack(derivatives(knots, *parameters, order=1), 1)

    def first(grad: Tensor, layers: Tensor) -> Tensor:
        return torch.func.vjp(rows, layers)[1](grad * used[..., None, None])[0]

    by_grad, by_layers = torch.func.vjp(first, grad, layers)[1](cotangent)
    return by_grad, None, None, by_layers, None, None, None


SIZES = "int gaussians, int hidden, int heads"
call_table = define(
    "radial_table",
    f"(Tensor reach, Tensor? affine, Tensor layers, int terms, {SIZES}, float tolerance, "
    f"bool derivative, SymInt size) -> ({tensors(FIELDS, FIELDS)})",
    *(run_table, fake_table, _keep_table, _differentiate_table),
)
call_table_backward = define(
    "radial_table_backward",
    f"(Tensor grad, Tensor knots, Tensor first_knot, Tensor layers, {SIZES}) -> Tensor",
    run_table_backward,
    lambda grad, knots, first_knot, layers, *sizes: layers.new_empty(layers.shape),
    *(_keep_table_backward, _differentiate_table_again),
)

# --- u --------------------------------------------------------------------------------------------


class DistancePlaces(NamedTuple):
    """Distances of all pairs, what types they have, and where the molecules begin."""

    distances: Tensor
    pair_types: Tensor | None
    atom_types: Tensor | None
    cu_seqlens: Tensor | None
    pair_start: Tensor | None
    tiles: Tensor | None
    longest: int

    def molecules(self, coordinates: Tensor) -> Molecules:
        """Where the molecules are."""
        count = coordinates.shape[0] if self.cu_seqlens is None else len(self.cu_seqlens) - 1
        atoms, places = coordinates.numel() // 3, (self.cu_seqlens, self.pair_start, self.tiles)
        return Molecules(count, self.longest, atoms, len(self.distances), *places)

    def affine(self, affine: Tensor | None) -> Affine:
        """Return γ and β with the types that choose them."""
        return Affine(affine, self.pair_types, self.atom_types)


def run_argument(coordinates: Tensor, affine: Tensor | None, *arguments: Any) -> Tensor:
    """u ``[pairs]``: γ·r + β, or r; ∞ where a pair has no distance."""
    places = DistancePlaces(*arguments)
    if affine is None:
        return places.distances.clone()
    molecules = places.molecules(coordinates)
    return launch_pairs.stretch(molecules, places.distances, places.affine(affine))


def run_argument_backward(
    du: Tensor, coordinates: Tensor, affine: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of coordinates and of γ, β."""
    places = DistancePlaces(*arguments)
    dx, daffine = launch_pairs.pull(
        *(places.molecules(coordinates), du.contiguous(), coordinates.contiguous()),
        *(places.distances, places.affine(affine)),
    )
    return dx.view(coordinates.shape), du.new_empty(0) if daffine is None else daffine


def _keep_argument(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *saved, ctx.longest = inputs
    ctx.save_for_backward(*saved)


def _differentiate_argument(ctx: Any, du: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    dx, daffine = call_argument_backward(du, *saved, ctx.longest)
    return dx, None if saved[1] is None else daffine, *[None] * len(DistancePlaces._fields)


def _refuse(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError(op.NO_SECOND_DERIVATIVE)


PLACES = tensors(DistancePlaces._fields[:-1], ["distances"])
ARGUMENTS = f"Tensor coordinates, Tensor? affine, {PLACES}, SymInt longest"
call_argument = define(
    "radial_argument",
    f"({ARGUMENTS}) -> Tensor",
    run_argument,
    lambda coordinates, affine, distances, *_: torch.empty_like(distances),
    *(_keep_argument, _differentiate_argument),
)
call_argument_backward = define(
    "radial_argument_backward",
    f"(Tensor du, {ARGUMENTS}) -> (Tensor, Tensor)",
    run_argument_backward,
    lambda du, x, affine, *_: (
        x.new_empty(x.shape),
        du.new_empty(0 if affine is None else affine.shape),
    ),
    *(keep_nothing, _refuse),
)
