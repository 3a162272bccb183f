"""What is added to the logits, as the launchers take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from collamo_kernels.coattention.triton import kernels as kernels
from collamo_kernels.radial.triton import launch as on_radial


class LogitTerms(NamedTuple):
    """What is added to the logits, and the seed of dropout; None leaves a term out."""

    hops: Tensor | None = None
    hop_bias: Tensor | None = None  # [H, S]
    spot: Tensor | None = None  # [pairs] int64: where a pair is in both tables
    coefficients: Tensor | None = None  # [H, C + 1, 4]
    fits: Tensor | None = None  # whether the table is fine enough
    exact: on_radial.RadialFunction | None = None  # Φ3d where it is not
    u: Tensor | None = None  # [pairs]
    first_phi: Tensor | None = None  # what `phi` gives of the first round of heads, if known
    bias: Tensor | None = None
    sink: Tensor | None = None  # [H]
    seed: Tensor | None = None
    dropout_p: Tensor | None = None  # [1] float64, with a seed

    @property
    def dropout(self) -> tuple[Tensor | None, Tensor | None]:
        """Seed and probability."""
        return self.seed, self.dropout_p

    @property
    def buckets(self) -> int:
        """Columns of the hop table."""
        return 0 if self.hop_bias is None else self.hop_bias.shape[1]

    @property
    def cells(self) -> int:
        """Cells of the radial table."""
        return 0 if self.coefficients is None else self.coefficients.shape[1] - 1

    def phi(self, heads: slice) -> Tensor | None:
        """Φ3d ``[heads, pairs]`` of some heads where the table does not fit, else left as it is."""
        if self.exact is None or self.u is None or self.fits is None:
            return None
        if self.first_phi is not None and heads.start == 0:
            return self.first_phi
        return on_radial.evaluate(self.u, self.fits, self.exact, heads)

    def of_heads(self, heads: slice) -> kernels.Terms:
        """Return what the kernels take for some heads."""
        tables = self.hops, self.hop_bias, self.spot, self.coefficients
        phi = self.phi(heads)
        return kernels.Terms(*tables, phi, self.fits, self.bias, self.sink, *self.dropout)
