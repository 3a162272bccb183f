"""Φ2d + Φ3d as the operators take it: its tensors in the order of their schemas, its gradients.

Φ3d comes as u of every pair, a table and, for when that is too coarse, the parameters it was made
from (`radial.triton.op`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from collamo_kernels.coattention.triton import launch_pairs as launch
from collamo_kernels.coattention.triton.launch_pairs import Located
from collamo_kernels.coattention.triton.pairs import CellTable
from collamo_kernels.coattention.triton.terms import LogitTerms
from collamo_kernels.radial.triton import launch as on_radial
from collamo_kernels.triton_library import no_gradient

T = TypeVar("T")
CELL_BITS = 0x1FFFF  # of a spot: see `pairs.locate`


class HopTerm(NamedTuple):
    """Φ2d: hops and the table they are looked up in."""

    hop_bias: Tensor  # [H, S]
    hops: Tensor
    hop_order: Tensor | None = None  # pairs sorted by hops, where the table gets a gradient
    hop_keys: Tensor | None = None
    hop_offsets: Tensor | None = None

    def launched(self) -> tuple[Tensor, Tensor]:
        """Return hops and table as the launchers take them."""
        return self.hops.contiguous(), self.hop_bias.contiguous()


class RadialTerm(NamedTuple):
    """Φ3d: u of every pair, a table of fixed size, and the parameters that it was made from."""

    rows: Tensor  # [C + 1, 2, H]
    layers: Tensor
    u: Tensor  # [pairs]
    first_knot: Tensor
    geometry: Tensor
    lengths: Tensor
    fits: Tensor
    pair_order: Tensor | None  # pairs sorted by cell, where the table gets a gradient; [0]: sort
    slope_rows: Tensor | None  # the table of dΦ3d/du, where u gets a gradient
    gaussians: int
    hidden: int

    def function(self) -> on_radial.RadialFunction:
        """Return the function that the table was made from."""
        layers, heads = self.layers.contiguous(), self.rows.shape[2]
        return on_radial.RadialFunction(layers, self.gaussians, self.hidden, heads)

    def table(self, rows: Tensor) -> CellTable:
        """Return a table of these rows, as the launchers take it."""
        return CellTable(rows.contiguous(), self.first_knot, self.geometry, self.lengths)


class Learned(NamedTuple, Generic[T]):
    """Something of each learned tensor of Φ."""

    hop_bias: T
    rows: T
    layers: T
    u: T


class Phi(NamedTuple):
    """Φ2d + Φ3d of every pair; None leaves one out."""

    hop_term: HopTerm | None
    radial_term: RadialTerm | None
    pairs: int

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return its tensors in the order of `TENSORS`."""
        hop, radial = self.hop_term, self.radial_term
        return (
            *(HOP_TENSORS * (None,) if hop is None else hop),
            *(RADIAL_TENSORS * (None,) if radial is None else radial[:RADIAL_TENSORS]),
        )

    def numbers(self) -> tuple[int, int, int]:
        """Return its numbers in the order of `NUMBERS`."""
        radial = self.radial_term
        return self.pairs, *((0, 0) if radial is None else (radial.gaussians, radial.hidden))

    @classmethod
    def of_operator(cls, tensors: tuple[Any, ...], numbers: tuple[Any, ...]) -> Phi:
        """Return what `tensors` and `numbers` were made from."""
        hop, radial = HopTerm(*tensors[:HOP_TENSORS]), tensors[HOP_TENSORS:]
        pairs, *sizes = numbers
        read = hop.hop_bias is not None and hop.hops is not None
        return cls(
            hop if read else None,
            None if radial[0] is None else RadialTerm(*radial, *sizes),
            pairs,
        )

    def learned(self) -> Learned[Tensor | None]:
        """Return the tensors that the formula reads and that may get a gradient."""
        hop, radial = self.hop_term, self.radial_term
        hop_bias = None if hop is None else hop.hop_bias
        if radial is None:
            return Learned(hop_bias, None, None, None)
        return Learned(hop_bias, radial.rows, radial.layers, radial.u)

    def read_of(self, requested: Learned[bool]) -> Learned[bool]:
        """Return which gradients are asked for of what the formula reads."""
        pairs = zip(requested, self.learned(), strict=True)
        return Learned(*(wish and x is not None for wish, x in pairs))


HOP_TENSORS = len(HopTerm._fields)
RADIAL_TENSORS = RadialTerm._fields.index("gaussians")
TENSORS = (*HopTerm._fields, *RadialTerm._fields[:RADIAL_TENSORS])
NUMBERS = ("pairs", "gaussians", "hidden")
NUMBERS_SCHEMA = "SymInt pairs, int gaussians, int hidden"
LEARNED = Learned._fields


def locate(phi: Phi, like: Tensor) -> tuple[Located, Tensor | None]:
    """Where pairs are in the tables, and Φ3d of the first heads where the table does not fit.

    Without a table all are empty, on the device of `like`.
    """
    radial = phi.radial_term
    if radial is None:
        return Located(*(like.new_empty(0) for _ in Located._fields)), None
    table = radial.table(radial.rows)
    hops = (None, None) if phi.hop_term is None else phi.hop_term.launched()
    return launch.locate(radial.u, table, radial.fits, radial.function(), *hops)


def fake_located(phi: Phi, like: Tensor) -> Located:
    """Return empty tensors of the shapes that `locate` gives."""
    radial = phi.radial_term
    if radial is None:
        return Located(*(like.new_empty(0) for _ in Located._fields))
    knots, _, heads = radial.rows.shape
    return Located(
        radial.u.new_empty(radial.u.shape, dtype=torch.int64),
        radial.u.new_empty((heads, knots, 4)),
    )


def logit_terms(
    phi: Phi, located: Located, first_phi: Tensor | None = None, bias: Tensor | None = None,
    sink: Tensor | None = None, seed: Tensor | None = None, dropout_p: Tensor | None = None,
) -> LogitTerms:  # fmt: skip
    """Return what the launchers take."""
    hops, hop_bias = (None, None) if phi.hop_term is None else phi.hop_term.launched()
    others: dict[str, Any] = {"bias": bias, "sink": sink, "seed": seed, "dropout_p": dropout_p}
    radial = phi.radial_term
    if radial is None:
        return LogitTerms(hops, hop_bias, **others)
    return LogitTerms(
        *(hops, hop_bias),
        spot=located.spot,
        coefficients=located.coefficients,
        fits=radial.fits,
        exact=radial.function(),
        u=radial.u,
        first_phi=first_phi,
        **others,
    )


def gradients_of(
    phi: Phi, located: Located, terms: LogitTerms, requested: Learned[bool],
    segments: Tensor | None, rounds: Iterable[tuple[slice, Tensor | None]],
) -> Learned[Tensor | None]:  # fmt: skip
    """Gradients that are asked for of what the formula reads; dL/dlogits come in rounds of heads.

    Whoever makes a round sets the segments to 0.
    """
    hop, radial = phi.hop_term, phi.radial_term
    learned = zip(phi.learned()[:3], requested[:3], strict=True)
    tables = launch.TableGradients(
        *(_empty_like(x) if wish and x is not None else None for x, wish in learned)
    )
    coefficients = None
    if requested.u and radial is not None and radial.slope_rows is not None:
        slopes, _ = launch.locate(radial.u[:0], radial.table(radial.slope_rows))
        coefficients = slopes.coefficients
    orders = launch.SumOrders(
        *((None, None, None) if hop is None else hop[2:]),
        cell_order=_cell_order(phi, located, requested),
    )
    lengths, du = None if radial is None else radial.lengths, None
    for number, (heads, ds) in enumerate(rounds):
        if ds is None or segments is None:
            continue
        if any(requested[:3]):
            launch.sum_up(ds, heads, orders, terms, lengths, segments, number > 0, tables)
        if coefficients is not None and radial is not None:
            du = launch.slopes(ds, terms, coefficients[heads], du)
            on_radial.pull_back(ds, radial.u, radial.fits, radial.function(), heads, du)
    return Learned(tables.hop_bias, tables.rows, tables.layers, du)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _cell_order(phi: Phi, located: Located, requested: Learned[bool]) -> Tensor | None:
    """Pairs sorted by cell; [0] stands for "sort them": u changes with γ and β."""
    order = None if phi.radial_term is None else phi.radial_term.pair_order
    if order is None or not requested.rows or len(order) == phi.pairs:
        return order
    return (located.spot & CELL_BITS).sort(stable=True).indices


def results(
    phi: Phi, gradients: Learned[Tensor | None], requested: Learned[bool], like: Tensor
) -> tuple[Tensor, ...]:
    """Gradients as an operator returns them; one that is not asked for has the shape [0]."""
    each = zip(phi.learned(), gradients, requested, strict=True)
    return tuple(
        gradient_or_zero(x, gradient, phi.pairs, like) if wish else no_gradient(like)
        for x, gradient, wish in each
    )


def gradient_or_zero(x: Tensor | None, gradient: Tensor | None, pairs: int, like: Tensor) -> Tensor:
    """Return the gradient of x; 0 where there was no pair to give one."""
    if x is None:
        return no_gradient(like)
    return torch.zeros_like(x) if gradient is None or not pairs else gradient


def fake_results(phi: Phi, requested: Learned[bool], like: Tensor) -> tuple[Tensor, ...]:
    """Return empty tensors of the shapes that `results` gives."""
    return tuple(
        x.new_empty(x.shape) if wish and x is not None else no_gradient(like)
        for x, wish in zip(phi.learned(), requested, strict=True)
    )
