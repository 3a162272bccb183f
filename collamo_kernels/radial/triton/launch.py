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

FUSION = True  # a·b + c in one rounding; said aloud because Triton's default is about to change


@dataclass(frozen=True)
class Function:
    """A radial function: the parameters of `radial_op` in one tensor, and their numbers."""

    layers: Tensor | None
    gaussians: int
    hidden: int  # 0 for a linear head
    heads: int

    def sizes(self, chunk: int) -> dict:
        """What every kernel takes; what is compiled in is in capitals."""
        return {
            "count": self.gaussians,
            "units": self.hidden or self.heads,
            "heads": self.heads,
            "MLP": self.hidden > 0,
            "CHUNK": chunk,
            "SLICE": RADIAL.slice,
            "HEADS": max(16, triton.next_power_of_2(self.heads)),
            "enable_fp_fusion": FUSION,
        }


ABSENT = Function(None, 0, 0, 0)  # for kernels that do without

# --- the table ------------------------------------------------------------------------------------


def tabulate(
    reach: Tensor, affine: Tensor | None, terms: int, of: Function, tolerance: float,
    derivative: bool, size: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What `op.FIELDS` names, in two launches."""
    rows = of.layers.new_empty((size, 2, of.heads))
    slope_rows = torch.empty_like(rows) if derivative else rows.new_empty((0, 2, of.heads))
    knots, lengths = rows.new_empty(size), rows.new_empty(size)
    first_knot, fits = (rows.new_empty(x, dtype=torch.int32) for x in ((BLOCKS + 1,), ()))
    geometry, errors = rows.new_empty(2), rows.new_empty(1 + derivative)
    seen = rows.new_empty((5, BLOCKS))
    grid = {"affine": affine, "types": 0 if affine is None else len(affine), "TERMS": terms}
    shared = {**grid, **of.sizes(RADIAL.chunk), "SLOPES": derivative, "TABLE_BLOCKS": BLOCKS}
    kernels.survey[(triton.cdiv(BLOCKS, RADIAL.blocks),)](
        reach,
        layers=of.layers,
        survey=seen,
        PLACES=RADIAL.blocks,
        num_warps=RADIAL.survey_warps,
        **shared,
    )
    kernels.tabulate[(triton.cdiv(size, RADIAL.places),)](
        reach,
        layers=of.layers,
        survey=seen,
        rows=rows,
        slope_rows=slope_rows if derivative else None,
        knots=knots,
        lengths=lengths,
        first_knot=first_knot,
        geometry=geometry,
        fits=fits,
        errors=errors,
        size=size,
        limit=384 * tolerance,
        slack=max(1.0, math.sqrt(of.gaussians / MLP_SLACK)) if of.hidden else 1.0,
        share=GAUSSIAN_SHARE,
        PLACES=RADIAL.places,
        num_warps=RADIAL.warps,
        **shared,
    )
    return rows, slope_rows, knots, lengths, first_knot, geometry, fits, errors


@dataclass(frozen=True)
class Parts:
    """Where the programs of `add_parts` leave partial sums of a gradient of the parameters."""

    rows: Tensor | None  # [programs, size]
    grid: tuple[int, int, int]  # turns at the places, slices of the units, chunks of Gaussians

    def numbers(self) -> dict:
        """What kernels take of them."""
        size = 0 if self.rows is None else self.rows.shape[1]
        return {"programs": self.grid[0], "slices": self.grid[1], "size": size}


def parts(of: Function, places: int, chunk: int) -> Parts:
    """Set partial sums aside for a gradient from so many places."""
    if of.layers is None:
        return Parts(None, (0, 0, 0))
    slices = triton.cdiv(of.hidden or of.heads, RADIAL.slice)
    turns = max(1, min(RADIAL.parts, triton.cdiv(places, RADIAL.places)))
    size = len(of.layers) + 2 * of.gaussians * (slices - 1)
    chunks = triton.cdiv(of.gaussians, chunk)
    return Parts(of.layers.new_empty((turns, size)), (turns, slices, chunks))


def tabulate_backward(grad: Tensor, knots: Tensor, first_knot: Tensor, of: Function) -> Tensor:
    """Gradient of the parameters ``[n]`` from that of a table's rows."""
    known, sums = first_knot[-1:], parts(of, len(knots), RADIAL.table_chunk)
    numbers = sums.numbers()
    kernels.differentiate[sums.grid](
        *(grad, knots, known, of.layers, sums.rows, len(knots)),
        size=numbers["size"],
        PLACES=RADIAL.places,
        num_warps=RADIAL.warps,
        **of.sizes(RADIAL.table_chunk),
    )
    out = torch.empty_like(of.layers)
    kernels.collect[(triton.cdiv(len(out), RADIAL.entries),)](
        *(sums.rows, known, out, len(knots)),
        count=of.gaussians,
        length=len(out),
        PLACES=RADIAL.places,
        ENTRIES=RADIAL.entries,
        enable_fp_fusion=FUSION,
        **numbers,
    )
    return out


# --- the exact Φ3d --------------------------------------------------------------------------------


def evaluate(u: Tensor, fits: Tensor, of: Function, heads: slice) -> Tensor:
    """Φ3d ``[heads, pairs]`` of some heads; left as it is in memory where the table fits."""
    phi = u.new_empty((heads.stop - heads.start, len(u)))
    kernels.evaluate[(programs(len(u)),)](*(u, fits, of.layers, phi), **_of_pairs(u, of, heads))
    return phi


def pull_back(ds: Tensor, u: Tensor, fits: Tensor, of: Function, heads: slice, du: Tensor) -> None:
    """Add to du ``[pairs]`` what those heads send back to u; nothing where the table fits."""
    kernels.pull_back[(programs(len(u)),)](*(ds, u, fits, of.layers, du), **_of_pairs(u, of, heads))


def programs(pairs: int) -> int:
    """Programs that take turns at all pairs."""
    return max(1, min(RADIAL.programs, triton.cdiv(pairs, RADIAL.places)))


def _of_pairs(u: Tensor, of: Function, heads: slice) -> dict:
    return {
        "pairs": len(u),
        "first_head": heads.start,
        "group": heads.stop - heads.start,
        "PLACES": RADIAL.places,
        "num_warps": RADIAL.warps,
        **of.sizes(RADIAL.chunk),
    }
