"""Launch the Triton kernels of a radial function: its table, and the exact Φ3d."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from collamo_kernels.coattention.triton.configuration import RADIAL
from collamo_kernels.radial import BLOCKS, GAUSSIAN_SHARE, MLP_SLACK
from collamo_kernels.radial.triton import kernels as kernels
from collamo_kernels.triton_launch import cdiv, launch


@dataclass(frozen=True)
class RadialFunction:
    """A radial function: the parameters of `radial_op` in one tensor, and their numbers.

    Or several of the same numbers, ``[functions, n]``, for what takes several.
    """

    layers: Tensor
    gaussians: int
    hidden: int  # 0 for a linear head
    heads: int

    @property
    def count(self) -> int:
        """How many functions."""
        return math.prod(self.layers.shape[:-1])

    @property
    def units(self) -> int:
        """Units of the first layer."""
        return self.hidden or self.heads

    @property
    def kernel_arguments(self) -> kernels.Function:
        """Return what every kernel takes."""
        return kernels.Function(self.layers, self.gaussians, self.units, self.heads)

    def build(self, chunk: int | None = None) -> kernels.Build:
        """Return what is compiled in; `chunk` Gaussians at a time."""
        return _build(self.hidden > 0, self.heads, chunk)

    def survey_build(self) -> kernels.Build:
        """Return what is compiled into `survey`."""
        return self.build(RADIAL.survey_chunk)._replace(
            PLACES=RADIAL.blocks, SLICE=RADIAL.survey_slice
        )


def absent(heads: int) -> tuple[kernels.Function, kernels.Build]:
    """Return what kernels take that do without a radial function, of a table for `heads`."""
    return kernels.Function(None, 0, 0, heads), _build(False, 0)


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
    table = empty_table(function.layers, function.heads, derivative, size)
    survey = function.layers.new_empty((function.count, 5, BLOCKS))
    types = 0 if affine is None else len(affine)
    shared = (reach, affine, types, function.kernel_arguments, survey)
    compiled = {"TERMS": terms, "SLOPES": derivative, "TABLE_BLOCKS": BLOCKS}
    launch(
        *(kernels.survey, (cdiv(BLOCKS, RADIAL.blocks), function.count)),
        *shared,
        build=function.survey_build(),
        num_warps=RADIAL.survey_warps,
        **compiled,
    )
    rows, slope_rows, *others = table
    launch(
        *(kernels.tabulate, (cdiv(size, RADIAL.places), function.count)),
        *shared,
        kernels.Table(rows, slope_rows if derivative else None, *others),
        size=size,
        limit=384 * tolerance,
        slack=max(1.0, math.sqrt(function.gaussians / MLP_SLACK)) if function.hidden else 1.0,
        share=GAUSSIAN_SHARE,
        build=function.build(),
        num_warps=RADIAL.warps,
        **compiled,
    )
    return table


@dataclass(frozen=True)
class Parts:
    """Where the programs of `add_parts` leave partial sums of a gradient of the parameters."""

    rows: Tensor  # [functions, programs, size]
    grid: tuple[int, int, int]  # turns at the places, slices of the units, chunks of Gaussians

    @property
    def size(self) -> int:
        """Length of a row."""
        return self.rows.shape[2]


def parts(function: RadialFunction, places: int, chunk: int) -> Parts:
    """Set partial sums aside for a gradient from so many places."""
    slices = cdiv(function.units, RADIAL.slice)
    turns = max(1, min(RADIAL.parts, cdiv(places, RADIAL.places)))
    size = function.layers.shape[-1] + 2 * function.gaussians * (slices - 1)
    chunks = cdiv(function.gaussians, chunk)
    rows = function.layers.new_empty((function.count, turns, size))
    return Parts(rows, (turns, slices, chunks))


def tabulate_backward(
    grad: Tensor, knots: Tensor, first_knot: Tensor, function: RadialFunction
) -> Tensor:
    """Gradient of the parameters ``[n]``, of each function, from that of its table's rows."""
    known, size = first_knot[..., BLOCKS:], knots.shape[-1]
    between = first_knot.stride(0) if function.count > 1 else 0
    sums = parts(function, size, RADIAL.table_chunk)
    turns, slices, chunks = sums.grid
    launch(
        *(kernels.differentiate, (turns, slices, chunks * function.count)),
        *(grad, knots, known, function.kernel_arguments, sums.rows, size, sums.size),
        chunks=chunks,
        between=between,
        build=function.build(RADIAL.table_chunk),
        num_warps=RADIAL.warps,
    )
    out = torch.empty_like(function.layers)
    length = out.shape[-1]
    launch(
        *(kernels.collect, (cdiv(length, RADIAL.entries), function.count)),
        *(sums.rows, known, out, size),
        programs=turns,
        slices=slices,
        count=function.gaussians,
        size=sums.size,
        length=length,
        between=between,
        PLACES=RADIAL.places,
        ENTRIES=RADIAL.entries,
    )
    return out


# --- the exact Φ3d --------------------------------------------------------------------------------


def evaluate(u: Tensor, fits: Tensor, function: RadialFunction, heads: slice) -> Tensor:
    """Φ3d ``[heads, pairs]`` of some heads; left as it is in memory where the table fits."""
    phi = u.new_empty((heads.stop - heads.start, len(u)))
    _launch_on_pairs(kernels.evaluate, (u, fits), function, phi, heads)
    return phi


def add_exact(
    ds: Tensor, u: Tensor, fits: Tensor, function: RadialFunction, first_head: int
) -> Parts:
    """Partial sums of the gradient of the parameters from ``ds [pairs, group]`` of some heads.

    None are written where the table fits.
    """
    pairs, group = ds.shape
    sums = parts(function, pairs, RADIAL.chunk)
    launch(
        *(kernels.add_exact, sums.grid),
        *(ds, u, fits, function.kernel_arguments, sums.rows, pairs, first_head, group, sums.size),
        build=function.build(),
        num_warps=RADIAL.warps,
    )
    return sums


def pull_back(
    ds: Tensor, u: Tensor, fits: Tensor, function: RadialFunction, heads: slice, du: Tensor
) -> None:
    """Add to du ``[pairs]`` what those heads send back to u; nothing where the table fits."""
    _launch_on_pairs(kernels.pull_back, (ds, u, fits), function, du, heads)


def _launch_on_pairs(
    kernel: triton.JITFunction, inputs: tuple[Tensor, ...], function: RadialFunction,
    output: Tensor, heads: slice,
) -> None:  # fmt: skip
    pairs = output.shape[-1]
    launch(
        *(kernel, (programs(pairs),)),
        *(*inputs, function.kernel_arguments, output, pairs, heads.start),
        group=heads.stop - heads.start,
        build=function.build(),
        num_warps=RADIAL.warps,
    )


def programs(pairs: int) -> int:
    """Programs that take turns at all pairs."""
    return max(1, min(RADIAL.programs, cdiv(pairs, RADIAL.places)))
