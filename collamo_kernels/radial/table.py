"""A radial function as a table of values and slopes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class RadialTable:
    """A radial function as values and slopes on a grid, to be read by cubic Hermite interpolation.

    Block m covers ``[low + m·block, low + (m + 1)·block]`` in ``first_knot[m + 1] -
    first_knot[m]`` equal cells (a power of two); neighbouring blocks share the knot between them.

    Parameters
    ----------
    rows
        ``[G, 2, H]`` float32: value, and slope per Å, at every knot (0 at one that no u was said
        to be near). Carries the history of the parameters it was made from.
    first_knot
        int32 ``[M + 1]``: where in `rows` each block begins; the last entry is G - 1.
    low
        Where block 0 begins, Å: a multiple of `block`, at most the `low` that was asked for.
    block
        Length of a block, Å: a power of two, so that ``floor(u / block)`` and what is left of u
        are exact. (``u - low`` is not, where low < 0: it cost half of the accuracy.)
    errors
        Proven bounds, floating-point rounding aside, of ``|interpolated - Φ3d|`` and, where there
        are `slope_rows`, of the same for dΦ3d/du, per Å.
    slope_rows
        ``[G, 2, H]``, without history: slope and curvature, the table of dΦ3d/du; None unless
        asked for. The derivative of what `rows` interpolate is no substitute: it divides the
        rounding of two values by h, which cost 6e-4 per Å in float32 where PyTorch's own
        derivative is off by 5e-7.
    lengths
        ``[G]`` Å: of the cell that begins at each knot. Of a table of fixed size alone, in which
        `low`, `block` and `errors` are tensors too.
    fits
        int32 ``[]``: 1 where the table of fixed size is as fine as `errors` say, 0 where it
        is not and must not be read. None where that was found out before.
    """

    rows: Tensor
    first_knot: Tensor
    low: float | Tensor
    block: float | Tensor
    errors: list[float] | Tensor
    slope_rows: Tensor | None = None
    lengths: Tensor | None = None
    fits: Tensor | None = None

    def lookup(self, u: Tensor) -> Tensor:
        """Interpolate Φ3d: ``[M] → [M, H]``. This is the definition for every backend.

        With y, s at the ends of a cell of width h and x in [0, 1] inside it::

            y₀ + x²(3 - 2x)·(y₁ - y₀) + h·x(1 - x)·((1 - x)·s₀ - x·s₁)

        u must be finite; outside the grid the value of its nearest end comes back. Gradients:
        `rows`, and u where there are `slope_rows`.
        """
        value = self._interpolate(u.detach(), self.rows)
        if self.slope_rows is None or not u.requires_grad:
            return value
        slope = self._interpolate(u.detach(), self.slope_rows)
        return value + (u - u.detach())[:, None] * slope  # adds 0, and the gradient

    def _interpolate(self, u: Tensor, rows: Tensor) -> Tensor:
        at, first = u / self.block, int(self.low / self.block)
        start = at.floor().clamp(first, first + len(self.first_knot) - 2)
        m = start.long() - first
        cells = self.first_knot.diff()[m]
        at = (at - start) * cells
        cell = torch.minimum(at.long().clamp(min=0), cells - 1)
        x = (at - cell).clamp(0, 1)[:, None]
        # F.embedding sums its gradient in a fixed order; an index would use atomics.
        knot = (self.first_knot[m] + cell)[:, None] + torch.arange(2, device=u.device)
        ends = F.embedding(knot, rows.flatten(1)).unflatten(2, rows.shape[1:])
        (y0, s0), (y1, s1) = (end.unbind(1) for end in ends.unbind(1))
        h = (self.block / cells)[:, None]
        return y0 + x * x * (3 - 2 * x) * (y1 - y0) + h * x * (1 - x) * ((1 - x) * s0 - x * s1)
