"""Making a table of a radial function: where its knots are, and what stands at each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.radial.bounds import derivative_bounds
from collamo_kernels.radial.derivatives import derivatives
from collamo_kernels.radial.op import serves
from collamo_kernels.radial.parameters import RadialParameters
from collamo_kernels.radial.table import RadialTable

# Interpolation error allowed in a table, as a part of max(1, |Φ3d|): 1 is the scale of a logit.
# float32: 1.2e-7, where PyTorch's own float32 Φ3d (128 Gaussians) is 7e-7 from float64 (linear
# head), 3e-7 (MLP). Half precision: a sixteenth of the distance between neighbours around 1.
TABLE_TOLERANCE = {
    torch.float32: torch.finfo(torch.float32).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps / 16,
    torch.float16: torch.finfo(torch.float16).eps / 16,
}
# Every single Gaussian is held to the tolerance times this, whatever its weight: its derivatives
# by μ and σ, summed over the pairs, are their gradients. At 0.25 it is off by half the rounding of
# a 1, and every gradient is as accurate as PyTorch's own; at 1 that of σ was up to 10 times less.
GAUSSIAN_SHARE = 0.25
# The MLP's bound adds K terms of either sign twice over; at K = 128 it is 20 to 40 times the true
# error (linear: 3). So it may be √(K / this) times larger.
MLP_SLACK = 8.0
MAX_KNOTS = 16384  # 4 MiB at 32 heads; 128 Gaussians that all are 1e-2 Å wide take 12,400
# Rows of a table of fixed size. Half precision allows 4,096 times the error, and that goes with the
# fourth power of a cell's length: an eighth is as good there.
FIXED_KNOTS = {
    torch.float32: MAX_KNOTS,
    torch.bfloat16: MAX_KNOTS // 8,
    torch.float16: MAX_KNOTS // 8,
}
BLOCKS = 128  # over the range, at most, and more than half: with 64 there are 20 % more knots


@dataclass(frozen=True)
class TableDemands:
    """What a table is held to.

    Parameters
    ----------
    tolerance
        The interpolation error allowed, as a part of max(1, |Φ3d|).
    derivative
        Whether the table of dΦ3d/du is made as well, to the same tolerance.
    slack
        How many times too large the bounds of Φ3d and its slope may be taken for.
    learning
        Whether every single Gaussian is held to it too, for the gradients of the parameters.
    """

    tolerance: float
    derivative: bool
    slack: float
    learning: bool = True


class Range(NamedTuple):
    """Where u can be: ``[low, high]``, and, unless None, in which equal parts of it."""

    occurring: Tensor | None
    low: float
    high: float


class Grid(NamedTuple):
    """Knots: `used` says which are next to a u that can be; None: all."""

    u: Tensor  # [G]
    first_knot: Tensor
    errors: list[float]
    used: Tensor | None


def demands_of(
    parameters: RadialParameters, dtype: torch.dtype, derivative: bool, learning: bool = True
) -> TableDemands:
    """Return what an attention in this dtype asks of a table."""
    slack = 1.0
    if parameters.weight2 is not None:
        slack = max(1.0, math.sqrt(len(parameters.centre) / MLP_SLACK))
    return TableDemands(TABLE_TOLERANCE[dtype], derivative, slack, learning)


def tabulate(
    parameters: RadialParameters, where: Range, demands: TableDemands
) -> RadialTable | None:
    """Return a table of as few knots as the demands allow; None where that is too many."""
    low, block, number = _blocks(where.low, where.high)
    grid = _grid(parameters, low, block, number, where, demands)
    if grid is None:
        return None
    rows, slope_rows = _rows(grid.u, parameters, demands.derivative, grid.used)
    return RadialTable(rows, grid.first_knot, low, block, grid.errors, slope_rows)


def tabulate_to_size(
    parameters: RadialParameters, low: Tensor, high: Tensor, size: int, demands: TableDemands
) -> RadialTable:
    """Return a table of `size` rows, which says on the device whether they are enough."""
    with torch.no_grad():
        first, block, centres = _blocks_on_device(low, high, parameters.centre)
        cells, errors = _cells(parameters, centres, block, demands)
        fits = cells.sum() < size  # not "≥": NaN does not fit
        cells = torch.where(fits, cells, 1.0)
        after = cells.cumsum(0)
        knot = torch.arange(size, device=cells.device, dtype=cells.dtype)
        m = torch.searchsorted(after, knot, right=True).clamp(max=len(cells) - 1)
        lengths = (block / cells)[m]
        u = (centres - block / 2)[m] + (knot - (after - cells)[m]) * lengths
        u = torch.minimum(u, centres[-1] + block / 2)  # rows to spare repeat the end
    rows, slope_rows = _rows(u, parameters, demands.derivative)
    first_knot = F.pad(after, (1, 0)).int()
    low = first * block
    return RadialTable(rows, first_knot, low, block, errors, slope_rows, lengths, fits.int())


@torch.no_grad()
def _grid(
    parameters: RadialParameters,
    low: float,
    block: float,
    number: int,
    where: Range,
    demands: TableDemands,
) -> Grid | None:
    """The knots of so many blocks; None if too many."""
    like = parameters.centre
    if serves(like):
        share = GAUSSIAN_SHARE if demands.learning else 0.0
        u, first_knot, errors, used = torch.ops.collamo_kernels.radial_grid(
            *(*parameters, *where, low, block, number, int(demands.derivative)),
            *(demands.tolerance, demands.slack, share, MAX_KNOTS),
        )
        used = None if where.occurring is None else used
        return Grid(u, first_knot, errors.tolist(), used) if len(u) else None
    index = torch.arange(number, dtype=like.dtype, device=like.device)
    centres = (index + 0.5) * block + low
    cells, bounds = _cells(parameters, centres, block, demands)
    if not cells.sum() < MAX_KNOTS:  # not "≥": NaN is refused as well
        return None
    first_knot = F.pad(cells.cumsum(0), (1, 0)).int()
    return Grid(_knots(centres, block, cells), first_knot, bounds.tolist(), None)


@torch.no_grad()
def _cells(
    parameters: RadialParameters, centres: Tensor, block: float | Tensor, demands: TableDemands
) -> tuple[Tensor, Tensor]:
    """Cells per block ``[M]``, and the bounds of the errors: of Φ3d, and of its slope if asked."""
    slopes = int(demands.derivative)
    weight, weight2 = parameters.weight.abs(), parameters.weight2
    weights = weight, None if weight2 is None else weight2.abs()
    shape = parameters.centre, parameters.width
    bounds, gaussian = derivative_bounds(centres, block / 2, *shape, *weights, 4 + slopes)
    values = _rows(centres, parameters)[0][:, : 1 + slopes]
    scale = values.abs().amax((0, 2)).clamp(min=1) * demands.slack
    worst = (bounds / scale).amax(1)
    if demands.learning:
        worst = torch.maximum(worst, gaussian / GAUSSIAN_SHARE)
    inverse = (worst / (384 * demands.tolerance)).pow(0.25)  # 1/h
    cells = (inverse * block).clamp(min=1).log2().ceil().exp2()
    return cells, (bounds * (block / cells).pow(4)[:, None]).amax(0) / 384


def _rows(
    u: Tensor, parameters: RadialParameters, curvature: bool = False, used: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Value and slope ``[M, 2, H]``; with `curvature` also slope and curvature."""
    if serves(u):
        operator = torch.ops.collamo_kernels.radial_rows
        rows, slope_rows = operator(u, used, *parameters, curvature)
        return rows, slope_rows if curvature else None
    rows = torch.stack(derivatives(u, *parameters, order=1), 1)
    if not curvature:
        return rows, None
    with torch.no_grad():
        return rows, torch.stack(derivatives(u, *parameters, order=2)[1:], 1)


def _blocks(low: float, high: float) -> tuple[float, float, int]:
    """Where the grid starts, the length of its blocks, and their number M."""
    # Powers of two make u/block, the borders and the knots exact in floating point.
    block = 2.0 ** math.ceil(math.log2(max(high - low, 1e-3) / (BLOCKS - 1)))
    low = math.floor(low / block) * block
    return low, block, max(1, math.ceil((high - low) / block))


def _blocks_on_device(low: Tensor, high: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of the first of `BLOCKS` blocks, their length, and their centres."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    low, high = low.detach().to(dtype), high.detach().to(dtype)
    _, exponent = torch.frexp((high - low).clamp(min=1e-3) / (BLOCKS - 1))
    # 2^exponent by its bits: a power function may be off by one in the last place.
    block = ((exponent.int() + 127) << 23).view(torch.float32).to(dtype)
    first = (low / block).floor()
    number = torch.arange(BLOCKS, dtype=dtype, device=like.device)
    return first, block, (first + number + 0.5) * block


def _knots(centres: Tensor, block: float, cells: Tensor) -> Tensor:
    """Every knot's u, ``[G]``: the left ends of all cells, then the end of the grid."""
    first = centres - block / 2
    before = cells.cumsum(0) - cells
    per_cell = torch.stack([first, block / cells, before]).repeat_interleave(cells.long(), 1)
    left, h, before = per_cell
    index = torch.arange(len(left), dtype=left.dtype, device=left.device)
    return torch.cat([left + (index - before) * h, centres[-1:] + block / 2])
