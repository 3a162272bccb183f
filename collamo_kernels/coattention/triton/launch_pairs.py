"""Launch the Triton kernels on pairs: where pairs are in the tables, and the tables' gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from collamo_kernels.coattention.triton import pairs as kernels
from collamo_kernels.coattention.triton import table_gradients
from collamo_kernels.coattention.triton.configuration import PAIRS
from collamo_kernels.coattention.triton.molecules import Molecules
from collamo_kernels.coattention.triton.pairs import Affine, CellTable
from collamo_kernels.coattention.triton.rounds import rounds_of
from collamo_kernels.coattention.triton.terms import LogitTerms
from collamo_kernels.radial import BLOCKS
from collamo_kernels.radial.triton import launch as on_radial
from collamo_kernels.radial.triton.launch import RadialFunction
from collamo_kernels.triton_launch import FUSION, cdiv, launch


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


def counters(terms: LogitTerms, like: Tensor, heads: int) -> Tensor:
    """Set memory aside for what `sum_up` counts of so many heads at a time, on that device.

    Where the pairs of each cell begin and end, `segments`, is in it too: all of it begins as 0.
    """
    return like.new_empty(sum(_slices(terms, heads)), dtype=torch.int32)


def _slices(terms: LogitTerms, group: int) -> tuple[int, int, int, int]:
    """Segments, counters of the hop table, of the radial table and of the radial function."""
    columns = triton.cdiv(group, PAIRS.heads)
    hops = triton.cdiv(terms.buckets, PAIRS.hop_entries) * columns
    if terms.exact is None:
        return 0, hops, 0, 0
    segments = 2 * 2 * terms.cells  # [2, C] of int64
    _, slices, chunks = on_radial.parts(terms.exact, 0, on_radial.RADIAL.chunk).grid
    cells = triton.cdiv(terms.cells + 1, PAIRS.entries) * columns
    return segments, hops, cells, (slices + 1) * chunks


def sum_up(
    ds: Tensor, heads: slice, orders: SumOrders, terms: LogitTerms, lengths: Tensor | None,
    counters: Tensor, add: bool, gradients: TableGradients,
) -> None:  # fmt: skip
    """Write the gradients of some heads into ``hop_bias [H, S]`` and ``rows [C + 1, 2, H]``.

    Into `layers`, the parameters of the radial function, goes what the exact Φ3d of these heads
    sends back (0 where the table fits), on top of what is there if `add`. The `counters` must be 0.
    """
    pairs, group = ds.shape
    chunks, columns = triton.cdiv(pairs, PAIRS.chunk), triton.cdiv(group, PAIRS.heads)
    sizes = _slices(terms, group)  # of fewer heads than the counters are for, in rounds
    segments, hop_counters, cell_counters, layer_counters = counters[: sum(sizes)].split(sizes)
    hop_size, hop_programs, hop_parts = 0, 0, None
    if gradients.hop_bias is not None:
        hop_size, hop_programs = terms.buckets + 1 + chunks, chunks * columns
        hop_parts = gradients.hop_bias.new_empty((2, hop_size, group))
    cell_size, cell_programs, cell_parts = 0, 0, None
    if gradients.rows is not None:
        cell_size, cell_programs = terms.cells + 1 + chunks, chunks * columns
        cell_parts = gradients.rows.new_empty((4, 2, cell_size, group))
    function, build = on_radial.absent(0 if gradients.rows is None else gradients.rows.shape[2])
    sums, grid = None, (0, 0, 0)
    if gradients.layers is not None and terms.exact is not None:
        sums = on_radial.parts(terms.exact, pairs, on_radial.RADIAL.chunk)
        function, build, grid = terms.exact.kernel_arguments, terms.exact.build(), sums.grid
    rows, size = (None, 0) if sums is None else (sums.rows, sums.size)
    table_gradients.add_up[(hop_programs + cell_programs + math.prod(grid),)](
        ds,
        table_gradients.HopSums(
            *(orders.hop_order, orders.hop_keys, orders.hop_offsets),
            *(hop_parts, gradients.hop_bias, hop_counters),
        ),
        table_gradients.CellSums(
            *(orders.cell_order, terms.spot, cell_parts, segments.view(torch.int64)),
            *(lengths, gradients.rows, cell_counters),
        ),
        table_gradients.LayerSums(terms.u, terms.fits, rows, gradients.layers, layer_counters),
        function,
        *(columns, group, pairs, terms.buckets, terms.cells),
        *(hop_programs, cell_programs, hop_size, cell_size, heads.start, grid[0], grid[1], size),
        sum_build=_sum_build(add),
        build=build,
        num_warps=on_radial.RADIAL.warps,
        enable_fp_fusion=FUSION,
    )


def _sum_build(add: bool) -> table_gradients.SumBuild:
    return table_gradients.SumBuild(
        *(PAIRS.chunk, PAIRS.heads, PAIRS.hop_entries, PAIRS.hop_runs),
        *(PAIRS.entries, PAIRS.runs, add),
    )


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
