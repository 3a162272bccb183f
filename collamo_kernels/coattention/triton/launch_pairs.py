"""Launch the Triton kernels on pairs: where pairs are in the tables, and the tables' gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from collamo_kernels.coattention.triton import pairs as kernels
from collamo_kernels.coattention.triton import table_gradients
from collamo_kernels.coattention.triton.configuration import PAIRS
from collamo_kernels.coattention.triton.molecules import Molecules
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
from collamo_kernels.radial.triton.launch import RadialFunction
from collamo_kernels.triton_launch import cdiv, launch


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
    cells, heads, pairs = len(table.rows) - 1, table.rows.shape[2], len(u)
    spot = u.new_empty(pairs, dtype=torch.int64)
    coefficients = u.new_empty((heads, cells + 1, 4))
    group = next(rounds_of(heads, pairs, limited=True)).stop
    phi = None if exact is None else u.new_empty((group, pairs))
    pair_programs, cell_programs = cdiv(pairs, PAIRS.pairs), cells // PAIRS.cells + 1
    exact_programs = 0 if exact is None else on_radial.programs(pairs)
    function, build = on_radial.absent(heads)
    if exact is not None:
        function, build = exact.kernel_arguments, exact.build()
    launch(
        *(kernels.locate, (pair_programs + cell_programs + exact_programs,)),
        *(u, hops, table, spot, coefficients),
        *(fits, function, phi, pairs, cells, 0 if hop_bias is None else hop_bias.shape[1]),
        pair_programs=pair_programs,
        cell_programs=cell_programs,
        group=group,
        TABLE_BLOCKS=BLOCKS,
        PAIRS=PAIRS.pairs,
        CELLS=PAIRS.cells,
        COLUMN=PAIRS.heads,
        build=build,
        num_warps=on_radial.RADIAL.warps,
    )
    return Located(spot, coefficients), phi


def build(terms: LogitTerms, like: Tensor, heads: int, pairs: int, dtype: torch.dtype) -> Tensor:
    """Φ2d + Φ3d ``[H, pairs]``, on the device of `like`."""
    bias = like.new_empty((heads, pairs), dtype=dtype)
    for group in rounds_of(heads, pairs, terms.exact is not None):
        launch(
            *(kernels.build, (cdiv(pairs, PAIRS.pairs), group.stop - group.start)),
            *(terms.hops, terms.hop_bias, terms.spot, terms.coefficients),
            *(terms.phi(group), terms.fits, bias, group.start, pairs, terms.buckets, terms.cells),
            PAIRS=PAIRS.pairs,
            num_warps=PAIRS.warps,
        )
    return bias


# --- gradients of both tables -------------------------------------------------------------------


@dataclass(frozen=True)
class SumOrders:
    """What the gradients of the tables are summed by; None leaves one out."""

    hop_order: Tensor | None = None  # [pairs]
    hop_keys: Tensor | None = None
    hop_offsets: Tensor | None = None  # [257]
    cell_order: Tensor | None = None  # [pairs]


@dataclass(frozen=True)
class TableGradients:
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
    pairs, group = ds.shape
    build = sum_build(group)
    rows = cdiv(pairs, build.STEPS)
    programs = cdiv(rows, build.ROWS) * cdiv(group, build.COLUMN)
    hop_sums = HopSums(*(None,) * len(HopSums._fields))
    if gradients.hop_bias is not None:
        parts = gradients.hop_bias.new_empty((terms.buckets + rows, group))
        order = orders.hop_order, orders.hop_keys, orders.hop_offsets
        hop_sums = HopSums(*order, parts, gradients.hop_bias)
    cell_sums = CellSums(*(None,) * len(CellSums._fields))
    if gradients.rows is not None:
        parts = gradients.rows.new_empty((terms.cells + 1 + rows, 4, group))
        places = segments.view(torch.int64)
        sorted_pairs = orders.cell_order, terms.spot, terms.fits
        cell_sums = CellSums(*sorted_pairs, parts, places, lengths, gradients.rows)
    tables = (gradients.hop_bias is not None) + (gradients.rows is not None)
    if tables * programs:
        launch(
            *(table_gradients.add_up, (tables * programs,)),
            *(ds, hop_sums, cell_sums, group, pairs, terms.buckets, terms.cells),
            0 if gradients.hop_bias is None else programs,
            build=build,
            num_warps=PAIRS.warps,
        )
    layer_parts = None
    if gradients.layers is not None and terms.exact is not None:
        assert terms.u is not None  # what comes with the function
        assert terms.fits is not None
        layer_parts = on_radial.add_exact(ds, terms.u, terms.fits, terms.exact, heads.start)
    _finish(hop_sums, cell_sums, layer_parts, heads, pairs, terms, gradients, add)


def _finish(
    hop_sums: HopSums, cell_sums: CellSums, layer_parts: on_radial.Parts | None, heads: slice,
    pairs: int, terms: LogitTerms, gradients: TableGradients, add: bool,
) -> None:  # fmt: skip
    """Add up what `add_up` and `add_exact` left."""
    group = heads.stop - heads.start
    build = finish_build(group, add)
    hop_programs, cell_programs, layer_programs = 0, 0, 0
    columns = cdiv(group, build.COLUMN)
    if gradients.hop_bias is not None:
        hop_programs = cdiv(terms.buckets, build.HOP_ENTRIES) * columns
    function, _ = on_radial.absent(0)
    if gradients.rows is not None:
        function, _ = on_radial.absent(gradients.rows.shape[2])
        cell_programs = cdiv(terms.cells + 1, build.ENTRIES) * columns
    layer_sums, turns, slices, size, length = LayerSums(None, None, None), 0, 0, 0, 0
    if layer_parts is not None and terms.exact is not None and gradients.layers is not None:
        function, length = terms.exact.kernel_arguments, len(gradients.layers)
        layer_sums = LayerSums(terms.fits, layer_parts.rows, gradients.layers)
        (turns, slices, _), size = layer_parts.grid, layer_parts.size
        layer_programs = cdiv(length, build.LAYER_ENTRIES)
    launch(
        *(table_gradients.finish, (hop_programs + cell_programs + layer_programs,)),
        *(hop_sums, cell_sums, layer_sums, function),
        *(group, pairs, terms.buckets, terms.cells, heads.start),
        *(hop_programs, cell_programs, turns, slices, size, length),
        build=build,
        num_warps=PAIRS.warps,
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
    launch(
        *(kernels.slope, (cdiv(pairs, 128),)),
        *(ds, terms.spot, coefficients, terms.fits, out),
        *(pairs, group, terms.cells),
        ADD=du is not None,
        PAIRS=128,
        COLUMN=PAIRS.heads,
        num_warps=PAIRS.warps,
    )
    return out


# --- u ------------------------------------------------------------------------------------------


def stretch(molecules: Molecules, distances: Tensor, affine: Affine) -> Tensor:
    """u = γ·r + β ``[pairs]``."""
    u = torch.empty_like(distances)
    launch(
        *(kernels.stretch, (molecules.tile_count(PAIRS.atoms, molecules.packed),)),
        *(distances, affine, u, molecules.places()),
        *(molecules.longest, molecules.blocks(PAIRS.atoms)),
        PACKED=molecules.packed,
        BLOCK=PAIRS.atoms,
        num_warps=PAIRS.atoms_warps,
    )
    return u


def pull(
    molecules: Molecules, du: Tensor, coordinates: Tensor, distances: Tensor, affine: Affine
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the coordinates ``[atoms, 3]`` and of γ, β ``[types, 2]``."""
    dx = du.new_empty((molecules.atoms, 3))
    sums = None
    if affine.affine is not None:
        sums = (torch.empty_like(du), *du.new_empty((2, molecules.atoms, 2)).unbind(0))
    launch(
        *(kernels.pull, (molecules.tile_count(PAIRS.atoms, molecules.packed),)),
        *(coordinates, distances, affine, du, dx, *(sums or (None, None, None))),
        molecules.places(),
        *(molecules.longest, molecules.blocks(PAIRS.atoms)),
        PACKED=molecules.packed,
        BLOCK=PAIRS.atoms,
        num_warps=PAIRS.atoms_warps,
    )
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
