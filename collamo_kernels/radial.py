"""GaussianRadial: a learned function of the distance between two atoms, one value per head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

    def _apply_head(self, psi: Tensor) -> Tensor:
        layers = [layer for layer in self.head if isinstance(layer, nn.Linear)]
        out = F.linear(psi, layers[0].weight.to(psi.dtype), layers[0].bias.to(psi.dtype))
        for layer in layers[1:]:
            out = F.linear(F.gelu(out), layer.weight.to(psi.dtype), layer.bias.to(psi.dtype))
        return out


def _make_head(kind: str, gaussians: int, heads: int) -> nn.Sequential:
    if kind == "linear":
        return nn.Sequential(nn.Linear(gaussians, heads))
    return nn.Sequential(nn.Linear(gaussians, gaussians), nn.GELU(), nn.Linear(gaussians, heads))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use {' or '.join(map(repr, choices))}")
