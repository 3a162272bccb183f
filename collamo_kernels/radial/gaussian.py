"""GaussianRadial: a learned function of the distance between two atoms, one value per head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collamo_kernels.bare import is_bare
from collamo_kernels.radial.parameters import RadialParameters, shapes
from collamo_kernels.radial.table import RadialTable
from collamo_kernels.radial.tabulation import (
    FIXED_KNOTS,
    TABLE_TOLERANCE,
    Range,
    demands_of,
    tabulate,
    tabulate_to_size,
)

FIXED_GRID_END = 9.0  # Å; the fixed centres of Uni-Mol+ (linspace(0, 9, K), width = spacing)
INITIAL_RANGE = 3.0  # centres and widths start as U(0, 3), as in Graphormer-3D and Transformer-M


class GaussianRadial(nn.Module):
    """Φ3d: distances (Å) ``[M] → [M, H]`` through K Gaussians and a small head.

    With u = γ_t·r + β_t for a pair of type t (γ = 1, β = 0 where there are no types)::

        ψ_k(u) = exp(-½ ((u - μ_k) / s_k)²)  [ / (√(2π)·s_k) if normalized ]
        s_k    = |σ_k| + min_sigma
        Φ3d    = W ψ + b                             (head="linear")
        Φ3d    = W₂ GELU(W₁ ψ + b₁) + b₂, W₁ [K, K]  (head="mlp")

    Gaussians and head are computed in float32 at least, whatever the parameters' dtype and inside
    autocast too; only what wraps a layer of the head (LoRA, a quantiser) computes as it will.
    Gradients: every parameter and the distances. Φ3d of a pair depends on nothing but u.

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
        centres, width = self._fixed_grid()
        self.register_buffer("mu", centres.to(torch.get_default_device()))
        self.register_buffer("sigma", torch.full(shape, width))

    def _fixed_grid(self) -> tuple[Tensor, float]:
        """Centres and their distance, Å, on the CPU: there are none to read on device meta."""
        centres = torch.linspace(0, FIXED_GRID_END, self.num_gaussians, device="cpu")
        return centres, float(centres[1] - centres[0])

    def reset_parameters(self) -> None:
        """Draw every parameter anew, and lay a fixed grid again; after ``to_empty``."""
        with torch.no_grad():
            if self.grid == "learned":
                self.mu.uniform_(0, INITIAL_RANGE)
                self.sigma.uniform_(0, INITIAL_RANGE)
            else:
                centres, width = self._fixed_grid()
                self.mu.copy_(centres)
                self.sigma.fill_(width)
            if self.gamma is not None and self.beta is not None:
                self.gamma.fill_(1.0)
                self.beta.fill_(0.0)
        for layer in self.head.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

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
        if self.gamma is None or self.beta is None:
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
        number = r.shape[0]
        if types.shape not in ((number,), (number, 2)):
            raise ValueError(
                f"types has shape {list(types.shape)}; it must be [M] or [M, 2], M = {number}"
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
        """Whether Φ3d is the formula above: no subclass, other head or wrapper has changed it."""
        formula = ("affine", "gaussians", "widths", "float_parameters")
        if any(getattr(type(self), x) is not getattr(GaussianRadial, x) for x in formula):
            return False
        layers = self._head_layers()
        linear, gelu = layers[::2], layers[1::2]
        if not is_bare(self, GaussianRadial) or not all(is_bare(x, nn.Linear) for x in linear):
            return False
        hidden = self.num_gaussians if self.head_kind == "mlp" else 0
        sizes = [tuple(x.shape) for x in self._head_parameters()]
        return (
            len(layers) in (1, 3)
            and all(is_bare(x, nn.GELU) and x.approximate == "none" for x in gelu)
            and sizes == shapes(self.num_gaussians, hidden, self.num_heads)[2:]
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
        with torch.autocast(self.mu.device.type, enabled=False):
            parameters = self.float_parameters()
            if fixed_size:
                first, last = (torch.as_tensor(x, device=self.mu.device) for x in (low, high))
                demands = demands_of(parameters, dtype, derivative)
                return tabulate_to_size(parameters, first, last, FIXED_KNOTS[dtype], demands)
            where = Range(occurring, float(low), float(high))
            if not -math.inf < where.low <= where.high < math.inf:
                raise ValueError(f"the range is [{low}, {high}]; it must be finite and low <= high")
            learning = torch.is_grad_enabled() and any(x.requires_grad for x in self.parameters())
            return tabulate(parameters, where, demands_of(parameters, dtype, derivative, learning))

    def float_parameters(self) -> RadialParameters:
        """Return what the formula reads, in float32 at least, the normalisation in the weights."""
        dtype = torch.promote_types(self.mu.dtype, torch.float32)
        width = self.widths(dtype)
        layers = [x.to(dtype) for x in self._head_parameters()]
        if self.normalized:
            layers[0] = layers[0] / (math.sqrt(2 * math.pi) * width)
        weight, bias, *second = layers
        weight2, bias2 = second or (None, None)
        return RadialParameters(self.mu.to(dtype), width, weight, bias, weight2, bias2)

    def _head_layers(self) -> list[nn.Module]:
        """The layers of the head, or what has been wrapped around all of them."""
        return list(self.head) if is_bare(self.head, nn.Sequential) else [self.head]

    def _head_parameters(self) -> list[Tensor]:
        """Weights and biases of those layers, in order (``parameters()`` is ten times as slow)."""
        every = (x for layer in self._head_layers() for x in layer._parameters.values())
        return [x for x in every if x is not None]

    def _apply_head(self, psi: Tensor) -> Tensor:
        out = psi
        for layer in self._head_layers():
            if is_bare(layer, nn.Linear):
                bias = None if layer.bias is None else layer.bias.to(out.dtype)
                out = F.linear(out, layer.weight.to(out.dtype), bias)
            else:
                out = layer(out.to(_dtype_of(layer, psi.dtype))).to(psi.dtype)
        return out


def _dtype_of(layer: nn.Module, default: torch.dtype) -> torch.dtype:
    """What a layer, or what wraps it, is to be called in: its weights' dtype if it shows one."""
    parameters = (x.dtype for x in layer.parameters() if x.is_floating_point())
    return next(parameters, default)


def _make_head(kind: str, gaussians: int, heads: int) -> nn.Sequential:
    if kind == "linear":
        return nn.Sequential(nn.Linear(gaussians, heads))
    return nn.Sequential(nn.Linear(gaussians, gaussians), nn.GELU(), nn.Linear(gaussians, heads))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use {' or '.join(map(repr, choices))}")
