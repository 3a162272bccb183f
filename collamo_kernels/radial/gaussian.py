"""GaussianRadial: a learned function of the distance between two atoms, one value per head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collamo_kernels.radial.op import derivative_bounds, derivatives, serves, shapes

FIXED_GRID_END = 9.0  # Å; the fixed centres of Uni-Mol+ (linspace(0, 9, K), width = spacing)
INITIAL_RANGE = 3.0  # centres and widths start as U(0, 3), as in Graphormer-3D and Transformer-M

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


class GaussianRadial(nn.Module):
    """Φ3d: distances (Å) ``[M] → [M, H]`` through K Gaussians and a small head.

    With u = γ_t·r + β_t for a pair of type t (γ = 1, β = 0 where there are no types)::

        ψ_k(u) = exp(-½ ((u - μ_k) / s_k)²)  [ / (√(2π)·s_k) if normalized ]
        s_k    = |σ_k| + min_sigma
        Φ3d    = W ψ + b                             (head="linear")
        Φ3d    = W₂ GELU(W₁ ψ + b₁) + b₂, W₁ [K, K]  (head="mlp")

    Gaussians and head are computed in float32 at least, whatever the parameters' dtype and inside
    autocast too. Gradients: every parameter and the distances. Φ3d of a pair depends on nothing
    but u.

    Parameters
    ----------
    num_heads
        H.
    num_gaussians
        K; 128 as in Graphormer-3D, Transformer-M and Uni-Mol.
    head
        ``"mlp"`` (those three models) or ``"linear"`` (the plain basis expansion).
    grid
        ``"learned"``: μ and σ are parameters, started as U(0, 3) like Graphormer-3D and
        Transformer-M. ``"fixed"``: μ = linspace(0, 9 Å, K) and s = their spacing, as in Uni-Mol+;
        buffers.
    min_sigma
        Floor added to |σ|, Å. 1e-2 is Transformer-M's; 1e-5 (Uni-Mol, Graphormer-3D) lets a
        gradient reach 1e5. Unused by the fixed grid.
    normalized
        Divide by √(2π)·s. The published models do; False is our choice, because ψ then stays in
        [0, 1] and a narrow Gaussian cannot swamp the head. π is exact (the models write 3.14159).
    pair_types
        Number of rows of the affine tables γ (started at 1) and β (0), or None for no tables.

    Notes
    -----
    The head starts with PyTorch's own Linear initialisation, as in Graphormer-3D.
    Sources: Shi et al. 2022 (Graphormer-3D), Luo et al. 2022 (Transformer-M, eq. 6), Lu et al.
    2023 (Uni-Mol+).

    Examples
    --------
    >>> import torch
    >>> GaussianRadial(num_heads=4)(torch.tensor([0.0, 1.5])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        num_heads: int,
        num_gaussians: int = 128,
        head: str = "mlp",
        grid: str = "learned",
        min_sigma: float = 1e-2,
        normalized: bool = False,
        pair_types: int | None = None,
    ):
        super().__init__()
        _check_choice("head", head, ("mlp", "linear"))
        _check_choice("grid", grid, ("learned", "fixed"))
        for name, number, least in (
            ("num_heads", num_heads, 1),
            ("num_gaussians", num_gaussians, 2 if grid == "fixed" else 1),
            ("pair_types", 1 if pair_types is None else pair_types, 1),
        ):
            if number < least:
                raise ValueError(f"{name} is {number}; it must be at least {least}")
        if not min_sigma > 0:
            raise ValueError(f"min_sigma is {min_sigma}; it must be a positive length in Å")
        self.num_heads, self.num_gaussians = num_heads, num_gaussians
        self.head_kind, self.grid = head, grid
        self.min_sigma, self.normalized, self.pair_types = min_sigma, normalized, pair_types
        self._make_grid()
        self.head = _make_head(head, num_gaussians, num_heads)
        self.gamma = None if pair_types is None else nn.Parameter(torch.ones(pair_types))
        self.beta = None if pair_types is None else nn.Parameter(torch.zeros(pair_types))

    def _make_grid(self) -> None:
        shape = (self.num_gaussians,)
        if self.grid == "learned":
            self.mu = nn.Parameter(torch.empty(shape).uniform_(0, INITIAL_RANGE))
            self.sigma = nn.Parameter(torch.empty(shape).uniform_(0, INITIAL_RANGE))
            return
        centres = torch.linspace(0, FIXED_GRID_END, self.num_gaussians)
        self.register_buffer("mu", centres)
        self.register_buffer("sigma", torch.full(shape, float(centres[1] - centres[0])))

    def extra_repr(self) -> str:
        """Name the options in ``print(module)``."""
        return (
            f"num_heads={self.num_heads}, num_gaussians={self.num_gaussians}, grid={self.grid!r}, "
            f"min_sigma={self.min_sigma}, normalized={self.normalized}, "
            f"pair_types={self.pair_types}"
        )

    def forward(self, distances: Tensor, types: Tensor | None = None) -> Tensor:
        """Return Φ3d.

        Parameters
        ----------
        distances
            ``[M]`` Å, floating point.
        types
            With ``pair_types`` only: integer ``[M]``, one id per pair, or ``[M, 2]``, two ids
            whose rows of γ and β are added (Transformer-M: γ then starts at 2, as it does there).

        Returns
        -------
        Tensor
            ``[M, H]`` in the wider of the distances' dtype and float32.
        """
        with torch.autocast(distances.device.type, enabled=False):
            return self._apply_head(self.gaussians(self.affine(distances, types)))

    def affine(self, distances: Tensor, types: Tensor | None = None) -> Tensor:
        """u = γ_t·r + β_t, ``[M]``."""
        r = distances.to(torch.promote_types(distances.dtype, torch.float32))
        if self.pair_types is None:
            if types is not None:
                raise ValueError(
                    "types is given, but pair_types=None; build GaussianRadial with pair_types"
                )
            return r
        if types is None:
            raise ValueError(
                f"types is missing, but pair_types={self.pair_types}; "
                "give Relations its pair_types or atom_types, or pass types"
            )
        if types.shape not in ((len(r),), (len(r), 2)):
            raise ValueError(
                f"types has shape {list(types.shape)}; it must be [M] or [M, 2], M = {len(r)}"
            )
        # F.embedding sums its gradient in a fixed order; an index would use atomics.
        table = torch.stack([self.gamma, self.beta], 1).to(r.dtype)
        gamma_beta = F.embedding(types.long(), table)
        gamma, beta = (gamma_beta if types.dim() == 1 else gamma_beta.sum(1)).unbind(-1)
        return gamma * r + beta

    def gaussians(self, u: Tensor) -> Tensor:
        """ψ, ``[M, K]``."""
        s = self.widths(u.dtype)
        z = (u[:, None] - self.mu.to(u.dtype)) / s
        psi = torch.exp(-0.5 * z * z)
        return psi / (math.sqrt(2 * math.pi) * s) if self.normalized else psi

    def widths(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """s, ``[K]`` in Å: |σ| + min_sigma, or the spacing of the fixed grid."""
        sigma = self.sigma.to(dtype)
        return sigma if self.grid == "fixed" else sigma.abs() + self.min_sigma

    def is_standard(self) -> bool:
        """Whether Φ3d is the formula above: no subclass and no other head has changed it."""
        formula = ("forward", "affine", "gaussians", "widths", "float_parameters")
        if any(getattr(type(self), x) is not getattr(GaussianRadial, x) for x in formula):
            return False
        hidden = self.num_gaussians if self.head_kind == "mlp" else 0
        found = [tuple(x.shape) for x in self.head.parameters()]
        return (
            [type(x) for x in self.head] in ([nn.Linear], [nn.Linear, nn.GELU, nn.Linear])
            and all(x.approximate == "none" for x in self.head if isinstance(x, nn.GELU))
            and found == shapes(self.num_gaussians, hidden, self.num_heads)[2:]
        )

    def table(
        self,
        low: float | Tensor,
        high: float | Tensor,
        dtype: torch.dtype = torch.float32,
        derivative: bool = False,
        fixed_size: bool = False,
        occurring: Tensor | None = None,
    ) -> RadialTable | None:
        """Φ3d on a grid fine enough for every u of ``[low, high]``, or None where none is.

        On a cell of width h, cubic Hermite interpolation is off by at most ``h⁴/384 · max|Φ⁗|``.
        The range is cut into blocks; each block has ``2^k`` equal cells, as few as the tolerance
        allows there.

        *Proven*: max|Φ⁗| over a block is bounded from the parameters alone. ``|ψ⁗|`` is at most
        the largest ``|He₄(z)| exp(-z²/2) / s⁴`` from the block's nearest point to μ outwards,
        likewise for the other derivatives; the triangle inequality takes it through ``|W|``, and
        for the MLP the chain rule to order four (Faà di Bruno) with the largest values of GELU's
        derivatives. The true error is some 3 times (linear) or 20 times (MLP) smaller.
        *Measured*: only the scale ``max(1, |Φ3d|)`` of the tolerance, at the blocks' centres.

        Parameters
        ----------
        low, high
            Range of u, Å: of the distances themselves where there are no pair types.
        dtype
            What the attention computes in: sets the tolerance (`TABLE_TOLERANCE`). None comes
            back for float64, which is for exact work.
        derivative
            Also make the table of dΦ3d/du, held to the same tolerance (with a third more
            knots). Needed where coordinates, γ or β get gradients.
        fixed_size
            Ask the device for no number, as a GPU wants it: `FIXED_KNOTS` rows, whatever is needed
            of them, and `low` and `high` are 0-d tensors. The table itself says on the device
            whether they are enough, by `RadialTable.fits`.
        occurring
            bool ``[M]``: in which of M equal parts of ``[low, high]`` a u can be, such as
            `Relations.occurring_distances`; None: anywhere. Knots that no such u is next to need
            not be worked out: their rows may be 0. A grid is finest where Gaussians are narrow,
            and that is mostly where no two atoms are: a third of the knots and more.

        Returns
        -------
        RadialTable or None
            Values and slopes carry the history of every parameter. None where more than
            `MAX_KNOTS` knots would be needed (a Gaussian of 5e-4 Å, say), where
            a parameter is not finite, or where the module is not `is_standard`: evaluate the
            module itself then.

        Examples
        --------
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> radial = GaussianRadial(num_heads=4)
        >>> table, r = radial.table(0.0, 25.0), torch.rand(1000) * 25
        >>> bool((table.lookup(r) - radial(r)).abs().max() < 1e-6)
        True
        """
        if dtype not in TABLE_TOLERANCE or not self.is_standard():
            return None
        if fixed_size:
            with torch.autocast(self.mu.device.type, enabled=False):
                return self._table_of_fixed_size(low, high, dtype, derivative)
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"the range is [{low}, {high}]; it must be finite and low <= high")
        with torch.autocast(self.mu.device.type, enabled=False):
            parameters = self.float_parameters()
            places = occurring, low, high
            low, block, number = _blocks(low, high)
            learning = torch.is_grad_enabled() and any(x.requires_grad for x in self.parameters())
            demands = int(derivative), TABLE_TOLERANCE[dtype], learning
            found = self._grid(parameters, low, block, number, *demands, places)
            if found is None:
                return None
            u, first_knot, errors, used = found
            rows, slope_rows = self._rows(u, parameters, derivative, used)
            return RadialTable(rows, first_knot, low, block, errors, slope_rows)

    @torch.no_grad()
    def _grid(
        self,
        parameters: tuple[Tensor | None, ...],
        low: float,
        block: float,
        number: int,
        slopes: int,
        tolerance: float,
        learning: bool,
        places: tuple[Tensor | None, float, float],
    ) -> tuple[Tensor, Tensor, list[float], Tensor | None] | None:
        """Every knot's u ``[G]``, `first_knot` and `errors` of the table; None if too many.

        The last result is bool ``[G]``, which knots are next to one of the `places`: parts of a
        range, and its ends. None where all have to be worked out.
        """
        like = parameters[0]
        if serves(like):
            share = GAUSSIAN_SHARE if learning else 0.0
            demands = slopes, tolerance, self._slack(), share, MAX_KNOTS
            operator = _operators().radial_grid
            u, first_knot, errors, used = operator(
                *parameters, *places, low, block, number, *demands
            )
            found = u, first_knot, errors.tolist(), None if places[0] is None else used
            return found if len(u) else None
        index = torch.arange(number, dtype=like.dtype, device=like.device)
        centres = (index + 0.5) * block + low
        cells, errors = self._cells(centres, block, tolerance, slopes, learning)
        if not cells.sum() < MAX_KNOTS:  # not "≥": NaN is refused as well
            return None
        first_knot = F.pad(cells.cumsum(0), (1, 0)).int()
        return _knots(centres, block, cells), first_knot, errors.tolist(), None

    def _table_of_fixed_size(
        self, low: Tensor, high: Tensor, dtype: torch.dtype, derivative: bool
    ) -> RadialTable:
        with torch.no_grad():
            first, block, centres = _blocks_on_device(low, high, self.mu)
            cells, errors = self._cells(centres, block, TABLE_TOLERANCE[dtype], int(derivative))
            size = FIXED_KNOTS[dtype]
            fits = cells.sum() < size  # not "≥": NaN does not fit
            cells = torch.where(fits, cells, 1.0)
            after = cells.cumsum(0)
            knot = torch.arange(size, device=cells.device, dtype=cells.dtype)
            m = torch.searchsorted(after, knot, right=True).clamp(max=len(cells) - 1)
            lengths = (block / cells)[m]
            u = (centres - block / 2)[m] + (knot - (after - cells)[m]) * lengths
            u = torch.minimum(u, centres[-1] + block / 2)  # rows to spare repeat the end
        rows, slope_rows = self._rows(u, self.float_parameters(), derivative)
        first_knot = F.pad(after, (1, 0)).int()
        low = first * block
        return RadialTable(rows, first_knot, low, block, errors, slope_rows, lengths, fits.int())

    @torch.no_grad()
    def _cells(
        self,
        centres: Tensor,
        block: float | Tensor,
        tolerance: float,
        slopes: int,
        learning: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Cells per block ``[M]``, and the bounds of the errors: of Φ3d, and of `slopes` slopes.

        `learning`: hold every single Gaussian too, for the gradients of the parameters.
        """
        parameters = self.float_parameters()
        centre, width, weight, _, weight2, _ = parameters
        weights = weight.abs(), None if weight2 is None else weight2.abs()
        bounds, gaussian = derivative_bounds(
            centres, block / 2, centre, width, *weights, 4 + slopes
        )
        values = self._rows(centres, parameters)[0][:, : 1 + slopes]
        scale = values.abs().amax((0, 2)).clamp(min=1) * self._slack()
        worst = (bounds / scale).amax(1)
        if learning:
            worst = torch.maximum(worst, gaussian / GAUSSIAN_SHARE)
        inverse = (worst / (384 * tolerance)).pow(0.25)  # 1/h
        cells = (inverse * block).clamp(min=1).log2().ceil().exp2()
        return cells, (bounds * (block / cells).pow(4)[:, None]).amax(0) / 384

    def _slack(self) -> float:
        """How many times too large the bounds of Φ3d and its slope may be taken for."""
        return (
            max(1.0, math.sqrt(self.num_gaussians / MLP_SLACK)) if self.head_kind == "mlp" else 1.0
        )

    def _rows(
        self,
        u: Tensor,
        parameters: tuple[Tensor | None, ...],
        curvature: bool = False,
        used: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Value and slope ``[M, 2, H]``; with `curvature` also slope and curvature."""
        if serves(u):
            rows, slope_rows = _operators().radial_rows(u, used, *parameters, curvature)
            return rows, slope_rows if curvature else None
        rows = torch.stack(derivatives(u, *parameters, order=1), 1)
        if not curvature:
            return rows, None
        with torch.no_grad():
            return rows, torch.stack(derivatives(u, *parameters, order=2)[1:], 1)

    def float_parameters(self) -> tuple[Tensor | None, ...]:
        """The parameters of `radial.op`, in float32 at least, the normalisation in the weights."""
        dtype = torch.promote_types(self.mu.dtype, torch.float32)
        width = self.widths(dtype)
        layers = [x.to(dtype) for layer in self._linear_layers() for x in layer.parameters()]
        if self.normalized:
            layers[0] = layers[0] / (math.sqrt(2 * math.pi) * width)
        return self.mu.to(dtype), width, *layers, *[None] * (4 - len(layers))

    def _linear_layers(self) -> list[nn.Linear]:
        return [layer for layer in self.head if isinstance(layer, nn.Linear)]

    def _apply_head(self, psi: Tensor) -> Tensor:
        first, *rest = self._linear_layers()
        out = F.linear(psi, first.weight.to(psi.dtype), first.bias.to(psi.dtype))
        for layer in rest:
            out = F.linear(F.gelu(out), layer.weight.to(psi.dtype), layer.bias.to(psi.dtype))
        return out


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


def _operators() -> Any:
    return torch.ops.collamo_kernels


def _make_head(kind: str, gaussians: int, heads: int) -> nn.Sequential:
    if kind == "linear":
        return nn.Sequential(nn.Linear(gaussians, heads))
    return nn.Sequential(nn.Linear(gaussians, gaussians), nn.GELU(), nn.Linear(gaussians, heads))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use {' or '.join(map(repr, choices))}")
