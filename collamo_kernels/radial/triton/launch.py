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
    """A radial function: the parameters of `radial_op` in one tensor, and their numbers."""

    layers: Tensor
    gaussians: int
    hidden: int  # 0 for a linear head
    heads: int

    @property
    def units(self) -> int:
        """Units of the first layer."""
        return self.hidden or self.heads

    @property
    def kernel_arguments(self) -> kernels.Function:
        """Return what every kernel takes."""
        return kernels.Function(self.layers, self.gaussians, self.units, self.heads)

    def build(self, chunk: int | None = None, places: int | None = None) -> kernels.Build:
        """Return what is compiled in; `chunk` Gaussians and `places` at a time."""
        return _build(self.hidden > 0, self.heads, chunk, places)


def absent(heads: int) -> tuple[kernels.Function, kernels.Build]:
    """Return what kernels take that do without a radial function, of a table for `heads`."""
    return kernels.Function(None, 0, 0, heads), _build(False, 0)


def _build(
    mlp: bool, heads: int, chunk: int | None = None, places: int | None = None
) -> kernels.Build:
    columns = max(16, 1 << (heads - 1).bit_length())
    return kernels.Build(mlp, places or RADIAL.places, chunk or RADIAL.chunk, RADIAL.slice, columns)


# --- the table ------------------------------------------------------------------------------------


def tabulate(
    reach: Tensor, affine: Tensor | None, terms: int, function: RadialFunction, tolerance: float,
    derivative: bool, size: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `op.FIELDS` names, in two launches."""
    layers, heads = function.layers, function.heads
    rows = layers.new_empty((size, 2, heads))
    slope_rows = torch.empty_like(rows) if derivative else rows.new_empty((0, 2, heads))
    knots, lengths = rows.new_empty(size), rows.new_empty(size)
    first_knot, fits = (rows.new_empty(x, dtype=torch.int32) for x in ((BLOCKS + 1,), ()))
    geometry, errors = rows.new_empty(2), rows.new_empty(1 + derivative)
    survey = rows.new_empty((5, BLOCKS))
    types = 0 if affine is None else len(affine)
    shared = (reach, affine, types, function.kernel_arguments, survey)
    compiled = {"TERMS": terms, "SLOPES": derivative, "TABLE_BLOCKS": BLOCKS}
    launch(
        *(kernels.survey, (cdiv(BLOCKS, RADIAL.blocks),)),
        *shared,
        build=function.build(places=RADIAL.blocks),
        num_warps=RADIAL.survey_warps,
        **compiled,
    )
    made = slope_rows if derivative else None
    launch(
        *(kernels.tabulate, (cdiv(size, RADIAL.places),)),
        *shared,
        kernels.Table(rows, made, knots, lengths, first_knot, geometry, fits, errors),
        size=size,
        limit=384 * tolerance,
        slack=max(1.0, math.sqrt(function.gaussians / MLP_SLACK)) if function.hidden else 1.0,
        share=GAUSSIAN_SHARE,
        build=function.build(),
        num_warps=RADIAL.warps,
        **compiled,
    )
    return rows, slope_rows, knots, lengths, first_knot, geometry, fits, errors


@dataclass(frozen=True)
class Parts:
    """Where the programs of `add_parts` leave partial sums of a gradient of the parameters."""

    rows: Tensor  # [programs, size]
    grid: tuple[int, int, int]  # turns at the places, slices of the units, chunks of Gaussians

    @property
    def size(self) -> int:
        """Length of a row."""
        return self.rows.shape[1]


def parts(function: RadialFunction, places: int, chunk: int) -> Parts:
    """Set partial sums aside for a gradient from so many places."""
    slices = cdiv(function.units, RADIAL.slice)
    turns = max(1, min(RADIAL.parts, cdiv(places, RADIAL.places)))
    size = len(function.layers) + 2 * function.gaussians * (slices - 1)
    chunks = cdiv(function.gaussians, chunk)
    return Parts(function.layers.new_empty((turns, size)), (turns, slices, chunks))


def tabulate_backward(
    grad: Tensor, knots: Tensor, first_knot: Tensor, function: RadialFunction
) -> Tensor:
    """Gradient of the parameters ``[n]`` from that of a table's rows."""
    known, sums = first_knot[-1:], parts(function, len(knots), RADIAL.table_chunk)
    launch(
        *(kernels.differentiate, sums.grid),
        *(grad, knots, known, function.kernel_arguments, sums.rows, len(knots), sums.size),
        build=function.build(RADIAL.table_chunk),
        num_warps=RADIAL.warps,
    )
    out = torch.empty_like(function.layers)
    launch(
        *(kernels.collect, (cdiv(len(out), RADIAL.entries),)),
        *(sums.rows, known, out, len(knots)),
        programs=sums.grid[0],
        slices=sums.grid[1],
        count=function.gaussians,
        size=sums.size,
        length=len(out),
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
    kernels.add_exact[sums.grid](
        *(ds, u, fits, function.kernel_arguments, sums.rows, pairs, first_head, group, sums.size),
        build=function.build(),
        num_warps=RADIAL.warps,
        enable_fp_fusion=FUSION,
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
