"""Launch the Triton kernels on pairs: where pairs are in the tables, and the tables' gradients."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from triton import JITFunction

from collamo_kernels.coattention.triton import pairs as kernels
from collamo_kernels.coattention.triton import table_gradients
from collamo_kernels.coattention.triton.configuration import PAIRS
from collamo_kernels.coattention.triton.molecules import Extent, Molecules
from collamo_kernels.coattention.triton.pairs import Affine, CellTable
from collamo_kernels.coattention.triton.rounds import rounds_of
from collamo_kernels.coattention.triton.table_gradients import (
    CellSums,
    FinishBuild,
    HopSums,
    LayerSums,
    SumBuild,
)
from collamo_kernels.coattention.triton.terms import LogitTerms
from collamo_kernels.radial import BLOCKS
from collamo_kernels.radial.triton import launch as on_radial
from collamo_kernels.radial.triton.kernels import Function
from collamo_kernels.radial.triton.launch import RadialFunction
from collamo_kernels.triton_launch import Launch, cdiv, planned

ABSENT_HOPS = HopSums(*(None,) * len(HopSums._fields))
ABSENT_CELLS = CellSums(*(None,) * len(CellSums._fields))
ABSENT_LAYERS = LayerSums(*(None,) * len(LayerSums._fields))


class Located(NamedTuple):
    """Where pairs are in the tables: see `pairs.locate`."""

    spot: Tensor  # [pairs]
    coefficients: Tensor  # [H, C + 1, 4]


# --- both tables --------------------------------------------------------------------------------


def locate(
    u: Tensor, table: CellTable, fits: Tensor | None = None,
    exact: RadialFunction | None = None, hops: Tensor | None = None, hop_bias: Tensor | None = None,
) -> tuple[Located, Tensor | None]:  # fmt: skip
    """Spots ``[pairs]`` and coefficients ``[H, C + 1, 4]``.

    Beside them, of a radial function, what `LogitTerms.phi` gives of the first round of heads.
    """
    (knots, _, heads), (pairs,) = table.rows.shape, u.shape
    function, shape = on_radial.absent(heads), None
    if exact is not None:
        function, shape = exact.kernel_arguments, exact.shape
    buckets = 0 if hop_bias is None else hop_bias.shape[1]
    launch, group = _locating(pairs, knots - 1, buckets, heads, shape)
    spot = u.new_empty(pairs, dtype=torch.int64)
    coefficients = u.new_empty((heads, knots, 4))
    phi = None if exact is None else u.new_empty((group, pairs))
    launch(u, hops, table, spot, coefficients, fits, function, phi)
    return Located(spot, coefficients), phi


@planned
def _locating(
    pairs: int, cells: int, buckets: int, heads: int, exact: on_radial.Shape | None
) -> tuple[Launch, int]:
    """Beside the launch, how many heads the first round has."""
    group = next(rounds_of(heads, pairs, limited=True)).stop
    pair_programs, cell_programs = cdiv(pairs, PAIRS.pairs), cells // PAIRS.cells + 1
    exact_programs = 0 if exact is None else on_radial.programs(pairs)
    launch = Launch(
        *(kernels.locate, (pair_programs + cell_programs + exact_programs,)),
        num_warps=on_radial.RADIAL.warps,
        pairs=pairs,
        cells=cells,
        buckets=buckets,
        pair_programs=pair_programs,
        cell_programs=cell_programs,
        group=group,
        TABLE_BLOCKS=BLOCKS,
        PAIRS=PAIRS.pairs,
        CELLS=PAIRS.cells,
        COLUMN=PAIRS.heads,
        build=on_radial.absent_build() if exact is None else exact.build(),
    )
    return launch, group


def build(terms: LogitTerms, like: Tensor, heads: int, pairs: int, dtype: torch.dtype) -> Tensor:
    """Φ2d + Φ3d ``[H, pairs]``, on the device of `like`."""
    bias = like.new_empty((heads, pairs), dtype=dtype)
    for group in rounds_of(heads, pairs, terms.exact is not None):
        launch = _building(group.start, group.stop, pairs, terms.buckets, terms.cells)
        tables = terms.hops, terms.hop_bias, terms.spot, terms.coefficients
        launch(*tables, terms.phi(group), terms.fits, bias)
    return bias


@planned
def _building(first_head: int, end: int, pairs: int, buckets: int, cells: int) -> Launch:
    return Launch(
        *(kernels.build, (cdiv(pairs, PAIRS.pairs), end - first_head)),
        num_warps=PAIRS.warps,
        first_head=first_head,
        pairs=pairs,
        buckets=buckets,
        cells=cells,
        PAIRS=PAIRS.pairs,
    )


# --- gradients of both tables -------------------------------------------------------------------


class SumOrders(NamedTuple):
    """What the gradients of the tables are summed by; None leaves one out."""

    hop_order: Tensor | None = None  # [pairs]
    hop_keys: Tensor | None = None
    hop_offsets: Tensor | None = None  # [257]
    cell_order: Tensor | None = None  # [pairs]


class TableGradients(NamedTuple):
    """What `sum_up` writes; None where a gradient is not asked for."""

    hop_bias: Tensor | None = None  # [H, S]
    rows: Tensor | None = None  # [C + 1, 2, H]
    layers: Tensor | None = None


def segments(terms: LogitTerms, like: Tensor) -> Tensor:
    """Set memory aside for where the pairs of each cell begin and end: it must be 0 to begin with.

    Of each cell two int64, as the int32 that `sum_up` takes.
    """
    return like.new_empty(4 * terms.cells, dtype=torch.int32)


def sum_up(
    ds: Tensor, heads: slice, orders: SumOrders, terms: LogitTerms, lengths: Tensor | None,
    segments: Tensor, add: bool, gradients: TableGradients,
) -> None:  # fmt: skip
    """Write the gradients of some heads into ``hop_bias [H, S]`` and ``rows [C + 1, 2, H]``.

    Into `layers`, the parameters of the radial function, goes what the exact Φ3d of these heads
    sends back (0 where the table fits), on top of what is there if `add`. ``ds [pairs, heads]`` are
    dL/dlogits, and the `segments` must be 0.
    """
    sizes = Sums(
        *(ds.shape[0], heads.start, heads.stop, terms.buckets, terms.cells),
        *(gradients.hop_bias is not None, gradients.rows is not None),
    )
    launch, rows = _adding_up(sizes)
    hop_sums, cell_sums, group = ABSENT_HOPS, ABSENT_CELLS, ds.shape[1]
    if gradients.hop_bias is not None:
        parts = gradients.hop_bias.new_empty((terms.buckets + rows, group))
        order = orders.hop_order, orders.hop_keys, orders.hop_offsets
        hop_sums = HopSums(*order, parts, gradients.hop_bias)
    if gradients.rows is not None:
        parts = gradients.rows.new_empty((terms.cells + 1 + rows, 4, group))
        places = segments.view(torch.int64)
        sorted_pairs = orders.cell_order, terms.spot, terms.fits
        cell_sums = CellSums(*sorted_pairs, parts, places, lengths, gradients.rows)
    if launch is not None:
        launch(ds, hop_sums, cell_sums)
    function, layer_sums, exact = _exact_sums(ds, heads.start, terms, add, gradients)
    _finishing(sizes, exact)(hop_sums, cell_sums, layer_sums, function)


def _exact_sums(
    ds: Tensor, first_head: int, terms: LogitTerms, add: bool, gradients: TableGradients
) -> tuple[Function, LayerSums, Exact | None]:
    """What the exact Φ3d sends back to the parameters, as `finish` takes it."""
    if gradients.layers is None or terms.exact is None:
        heads = 0 if gradients.rows is None else gradients.rows.shape[2]
        return on_radial.absent(heads), ABSENT_LAYERS, None
    assert terms.u is not None  # what comes with the function
    assert terms.fits is not None
    parts, turns = on_radial.add_exact(ds, terms.u, terms.fits, terms.exact, first_head)
    layer_sums = LayerSums(terms.fits, parts, gradients.layers)
    exact = Exact(turns, gradients.layers.shape[0], add)
    return terms.exact.kernel_arguments, layer_sums, exact


class Sums(NamedTuple):
    """What the launches of `sum_up` depend on, but for their tensors."""

    pairs: int
    first_head: int
    end: int  # behind the last head
    buckets: int
    cells: int
    of_hops: bool
    of_cells: bool

    @property
    def group(self) -> int:
        """How many heads there are."""
        return self.end - self.first_head


class Exact(NamedTuple):
    """Likewise, where the exact Φ3d sends something back to the parameters."""

    shared: on_radial.Turns
    length: int  # of the parameters
    add: bool


@planned
def _adding_up(sizes: Sums) -> tuple[Launch | None, int]:
    """Beside the launch, if anything is to be added up, how many rows of pairs there are."""
    build = sum_build(sizes.group)
    rows = cdiv(sizes.pairs, build.STEPS)
    programs = cdiv(rows, build.ROWS) * cdiv(sizes.group, build.COLUMN)
    every = programs * (sizes.of_hops + sizes.of_cells)
    if not every:
        return None, rows
    launch = Launch(
        *(table_gradients.add_up, (every,)),
        num_warps=PAIRS.warps,
        group=sizes.group,
        pairs=sizes.pairs,
        buckets=sizes.buckets,
        cells=sizes.cells,
        hop_programs=programs if sizes.of_hops else 0,
        build=build,
    )
    return launch, rows


@planned
def _finishing(sizes: Sums, exact: Exact | None) -> Launch:
    """Add up what `add_up` and `add_exact` left."""
    build = finish_build(sizes.group, exact is not None and exact.add)
    columns = cdiv(sizes.group, build.COLUMN)
    hop_programs = cdiv(sizes.buckets, build.HOP_ENTRIES) * columns * sizes.of_hops
    cell_programs = cdiv(sizes.cells + 1, build.ENTRIES) * columns * sizes.of_cells
    layer_programs = 0 if exact is None else cdiv(exact.length, build.LAYER_ENTRIES)
    (turns, slices, _), size = ((0, 0, 0), 0) if exact is None else exact.shared
    return Launch(
        *(table_gradients.finish, (hop_programs + cell_programs + layer_programs,)),
        num_warps=PAIRS.warps,
        group=sizes.group,
        pairs=sizes.pairs,
        buckets=sizes.buckets,
        cells=sizes.cells,
        first_head=sizes.first_head,
        hop_programs=hop_programs,
        cell_programs=cell_programs,
        turns=turns,
        slices=slices,
        size=size,
        length=0 if exact is None else exact.length,
        build=build,
    )


def sum_build(group: int) -> SumBuild:
    """What is compiled into `add_up` for so many heads at a time."""
    column = _column(group)
    return SumBuild(PAIRS.sums // column, PAIRS.steps, column, math.gcd(4, group))


def finish_build(group: int, add: bool) -> FinishBuild:
    """What is compiled into `finish`."""
    radial = on_radial.RADIAL
    return FinishBuild(
        *(PAIRS.hop_entries, PAIRS.hop_runs, PAIRS.entries, PAIRS.runs, PAIRS.steps),
        *(_column(group), math.gcd(4, group), radial.places, radial.entries, add),
    )


def _column(group: int) -> int:
    return min(PAIRS.columns, 1 << (group - 1).bit_length())


def slopes(ds: Tensor, terms: LogitTerms, coefficients: Tensor, du: Tensor | None) -> Tensor:
    """du ``[pairs]``: what dL/dlogits of these heads send back to u, on top of `du`."""
    pairs, group = ds.shape
    out = coefficients.new_empty(pairs) if du is None else du  # ds may be float16
    launch = _slopes(pairs, group, terms.cells, du is not None)
    launch(ds, terms.spot, coefficients, terms.fits, out)
    return out


@planned
def _slopes(pairs: int, group: int, cells: int, add: bool) -> Launch:
    return Launch(
        *(kernels.slope, (cdiv(pairs, 128),)),
        num_warps=PAIRS.warps,
        pairs=pairs,
        group=group,
        cells=cells,
        ADD=add,
        PAIRS=128,
        COLUMN=PAIRS.heads,
    )


# --- u ------------------------------------------------------------------------------------------


def stretch(molecules: Molecules, distances: Tensor, affine: Affine) -> Tensor:
    """u = γ·r + β ``[pairs]``."""
    u = torch.empty_like(distances)
    _stretching(molecules.extent)(distances, affine, u, molecules.places())
    return u


@planned
def _stretching(extent: Extent) -> Launch:
    return _of_atoms(kernels.stretch, extent)


def _of_atoms(kernel: JITFunction, extent: Extent) -> Launch:
    """A program for each block of atoms."""
    return Launch(
        *(kernel, (extent.tiles(PAIRS.atoms, extent.packed),)),
        num_warps=PAIRS.atoms_warps,
        longest=extent.longest,
        blocks=extent.blocks(PAIRS.atoms),
        PACKED=extent.packed,
        BLOCK=PAIRS.atoms,
    )


def pull(
    molecules: Molecules, du: Tensor, coordinates: Tensor, distances: Tensor, affine: Affine
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the coordinates ``[atoms, 3]`` and of γ, β ``[types, 2]``."""
    dx = du.new_empty((molecules.atoms, 3))
    sums = None
    if affine.affine is not None:
        sums = (torch.empty_like(du), *du.new_empty((2, molecules.atoms, 2)).unbind(0))
    tensors = coordinates, distances, affine, du, dx, *(sums or (None, None, None))
    _pulling(molecules.extent)(*tensors, molecules.places())
    if affine.affine is None or sums is None:
        return dx, None
    du_r, by_query, by_key = sums
    # The gradient of an embedding is summed in a fixed order, without atomics.
    add = torch.ops.aten.embedding_dense_backward
    count = len(affine.affine)
    if affine.pair_types is not None:
        both = torch.stack([du_r, du], 1)
        return dx, add(both, affine.pair_types.flatten().long(), count, -1, False)
    assert affine.atom_types is not None  # the one or the other chooses a row
    query, key = affine.atom_types.reshape(-1, 2).long().unbind(1)
    return dx, add(by_query, query, count, -1, False) + add(by_key, key, count, -1, False)


@planned
def _pulling(extent: Extent) -> Launch:
    return _of_atoms(kernels.pull, extent)
