"""Launch the Triton kernels of a radial function: its table, and the exact Φ3d."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from collamo_kernels.coattention.triton.configuration import RADIAL
from collamo_kernels.radial import BLOCKS, GAUSSIAN_SHARE, MLP_SLACK
from collamo_kernels.radial.triton import kernels as kernels
from collamo_kernels.triton_launch import Launch, cdiv, planned


class Shape(NamedTuple):
    """The numbers of a radial function: what its launches depend on, but for their tensors."""

    gaussians: int
    hidden: int  # 0 for a linear head
    heads: int
    length: int  # of the parameters
    functions: int

    @property
    def units(self) -> int:
        """Units of the first layer."""
        return self.hidden or self.heads

    def build(self, chunk: int | None = None) -> kernels.Build:
        """Return what is compiled in; `chunk` Gaussians at a time."""
        return _build(self.hidden > 0, self.heads, chunk)

    def survey_build(self) -> kernels.Build:
        """Return what is compiled into `survey`."""
        return self.build(RADIAL.survey_chunk)._replace(
            PLACES=RADIAL.blocks, SLICE=RADIAL.survey_slice
        )


class RadialFunction(NamedTuple):
    """A radial function: the parameters of `radial_op` in one tensor, and their numbers.

    Or several of the same numbers, ``[functions, n]``, for what takes several.
    """

    layers: Tensor
    gaussians: int
    hidden: int  # 0 for a linear head
    heads: int

    @property
    def shape(self) -> Shape:
        """Return the numbers."""
        functions = 1 if self.layers.dim() == 1 else self.layers.shape[0]
        return Shape(self.gaussians, self.hidden, self.heads, self.layers.shape[-1], functions)

    @property
    def kernel_arguments(self) -> kernels.Function:
        """Return what every kernel takes."""
        units = self.hidden or self.heads
        return kernels.Function(self.layers, self.gaussians, units, self.heads)


def absent(heads: int) -> kernels.Function:
    """Return what kernels take that do without a radial function, of a table for `heads`."""
    return kernels.Function(None, 0, 0, heads)


def absent_build() -> kernels.Build:
    """Return what is compiled into them."""
    return _build(False, 0)


def _build(mlp: bool, heads: int, chunk: int | None = None) -> kernels.Build:
    columns = max(16, 1 << (heads - 1).bit_length())
    return kernels.Build(mlp, RADIAL.places, chunk or RADIAL.chunk, RADIAL.slice, columns)


# --- the table ------------------------------------------------------------------------------------


def empty_table(
    layers: Tensor, heads: int, derivative: bool, size: int
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `op.FIELDS` names, of every function whose parameters stand in `layers`.

    Each tensor of each function begins at a multiple of 16 bytes, as `kernels` counts on: kernels
    are compiled for that, and once more where it is otherwise.
    """
    each = layers.shape[:-1]
    rows = layers.new_empty((*each, size, 2, heads))
    slope_rows = layers.new_empty((*each, size if derivative else 0, 2, heads))
    knots, lengths = layers.new_empty((*each, size)), layers.new_empty((*each, size))
    if not each:  # a tensor of its own begins there without more; four views take 6 µs
        first_knot = layers.new_empty(BLOCKS + 1, dtype=torch.int32)
        geometry, errors = layers.new_empty(2), layers.new_empty(1 + derivative)
        fits = layers.new_empty((), dtype=torch.int32)
        return rows, slope_rows, knots, lengths, first_knot, geometry, fits, errors
    first_knot = layers.new_empty((*each, BLOCKS + 4), dtype=torch.int32)[..., : BLOCKS + 1]
    geometry = layers.new_empty((*each, 4))[..., :2]
    fits = layers.new_empty((*each, 4), dtype=torch.int32)[..., 0]
    errors = layers.new_empty((*each, 4))[..., : 1 + derivative]
    return rows, slope_rows, knots, lengths, first_knot, geometry, fits, errors


def tabulate(
    reach: Tensor, affine: Tensor | None, terms: int, function: RadialFunction, tolerance: float,
    derivative: bool, size: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `op.FIELDS` names, in two launches, of every function that there is."""
    shape, types = function.shape, 0 if affine is None else len(affine)
    surveying, tabulating = _tabulating(shape, terms, tolerance, derivative, size)
    table = empty_table(function.layers, function.heads, derivative, size)
    survey = function.layers.new_empty((shape.functions, 5, BLOCKS))
    shared = (reach, affine, types, function.kernel_arguments, survey)
    surveying(*shared)
    rows, slope_rows, *others = table
    tabulating(*shared, kernels.Table(rows, slope_rows if derivative else None, *others))
    return table


@planned
def _tabulating(
    shape: Shape, terms: int, tolerance: float, derivative: bool, size: int
) -> tuple[Launch, Launch]:
    """`survey` and `tabulate`."""
    compiled: dict[str, Any] = {"TERMS": terms, "SLOPES": derivative, "TABLE_BLOCKS": BLOCKS}
    survey = Launch(
        *(kernels.survey, (cdiv(BLOCKS, RADIAL.blocks), shape.functions)),
        num_warps=RADIAL.survey_warps,
        build=shape.survey_build(),
        **compiled,
    )
    tabulate = Launch(
        *(kernels.tabulate, (cdiv(size, RADIAL.places), shape.functions)),
        num_warps=RADIAL.warps,
        size=size,
        limit=384 * tolerance,
        slack=max(1.0, math.sqrt(shape.gaussians / MLP_SLACK)) if shape.hidden else 1.0,
        share=GAUSSIAN_SHARE,
        build=shape.build(),
        **compiled,
    )
    return survey, tabulate


class Turns(NamedTuple):
    """How the programs of `add_parts` share a gradient of the parameters from many places."""

    grid: tuple[int, int, int]  # turns at the places, slices of the units, chunks of Gaussians
    size: int  # of the partial sums that a turn leaves

    @classmethod
    def at(cls, places: int, shape: Shape, chunk: int) -> Turns:
        """Return those at so many places."""
        slices = cdiv(shape.units, RADIAL.slice)
        turns = max(1, min(RADIAL.parts, cdiv(places, RADIAL.places)))
        size = shape.length + 2 * shape.gaussians * (slices - 1)
        return cls((turns, slices, cdiv(shape.gaussians, chunk)), size)


def tabulate_backward(
    grad: Tensor, knots: Tensor, first_knot: Tensor, function: RadialFunction
) -> Tensor:
    """Gradient of the parameters ``[n]``, of each function, from that of its table's rows."""
    known, shape = first_knot[..., BLOCKS:], function.shape
    between = first_knot.stride(0) if shape.functions > 1 else 0
    turns, differentiating, collecting = _differentiating(shape, knots.shape[-1], between)
    parts = function.layers.new_empty((shape.functions, turns.grid[0], turns.size))
    differentiating(grad, knots, known, function.kernel_arguments, parts)
    out = torch.empty_like(function.layers)
    collecting(parts, known, out)
    return out


@planned
def _differentiating(shape: Shape, size: int, between: int) -> tuple[Turns, Launch, Launch]:
    """`differentiate` and `collect`; known numbers of knots lie so far apart."""
    shared = Turns.at(size, shape, RADIAL.table_chunk)
    turns, slices, chunks = shared.grid
    differentiate = Launch(
        *(kernels.differentiate, (turns, slices, chunks * shape.functions)),
        num_warps=RADIAL.warps,
        pairs=size,
        size=shared.size,
        chunks=chunks,
        between=between,
        build=shape.build(RADIAL.table_chunk),
    )
    collect = Launch(
        *(kernels.collect, (cdiv(shape.length, RADIAL.entries), shape.functions)),
        pairs=size,
        programs=turns,
        slices=slices,
        count=shape.gaussians,
        size=shared.size,
        length=shape.length,
        between=between,
        PLACES=RADIAL.places,
        ENTRIES=RADIAL.entries,
    )
    return shared, differentiate, collect


# --- the exact Φ3d --------------------------------------------------------------------------------


def evaluate(u: Tensor, fits: Tensor, function: RadialFunction, heads: slice) -> Tensor:
    """Φ3d ``[heads, pairs]`` of some heads; left as it is in memory where the table fits."""
    phi = u.new_empty((heads.stop - heads.start, len(u)))
    launch = _evaluating(function.shape, len(u), heads.start, heads.stop)
    launch(u, fits, function.kernel_arguments, phi)
    return phi


@planned
def _evaluating(shape: Shape, pairs: int, first_head: int, end: int) -> Launch:
    return _on_pairs(kernels.evaluate, shape, pairs, first_head, end)


def pull_back(
    ds: Tensor, u: Tensor, fits: Tensor, function: RadialFunction, heads: slice, du: Tensor
) -> None:
    """Add to du ``[pairs]`` what those heads send back to u; nothing where the table fits."""
    launch = _pulling_back(function.shape, len(u), heads.start, heads.stop)
    launch(ds, u, fits, function.kernel_arguments, du)


@planned
def _pulling_back(shape: Shape, pairs: int, first_head: int, end: int) -> Launch:
    return _on_pairs(kernels.pull_back, shape, pairs, first_head, end)


def _on_pairs(
    kernel: triton.JITFunction, shape: Shape, pairs: int, first_head: int, end: int
) -> Launch:
    return Launch(
        *(kernel, (programs(pairs),)),
        num_warps=RADIAL.warps,
        pairs=pairs,
        first_head=first_head,
        group=end - first_head,
        build=shape.build(),
    )


def add_exact(
    ds: Tensor, u: Tensor, fits: Tensor, function: RadialFunction, first_head: int
) -> tuple[Tensor, Turns]:
    """Partial sums of the gradient of the parameters from ``ds [pairs, group]`` of some heads.

    None are written where the table fits. ``[1, turns, size]``, and how they were shared out.
    """
    pairs, group = ds.shape
    turns, launch = _adding_exact(function.shape, pairs, group, first_head)
    parts = function.layers.new_empty((1, turns.grid[0], turns.size))
    launch(ds, u, fits, function.kernel_arguments, parts)
    return parts, turns


@planned
def _adding_exact(shape: Shape, pairs: int, group: int, first_head: int) -> tuple[Turns, Launch]:
    turns = Turns.at(pairs, shape, RADIAL.chunk)
    launch = Launch(
        *(kernels.add_exact, turns.grid),
        num_warps=RADIAL.warps,
        pairs=pairs,
        first_head=first_head,
        group=group,
        size=turns.size,
        build=shape.build(),
    )
    return turns, launch


def programs(pairs: int) -> int:
    """Programs that take turns at all pairs."""
    return max(1, min(RADIAL.programs, cdiv(pairs, RADIAL.places)))
