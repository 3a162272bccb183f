"""Tables of radial functions that were made together, for the layers that will ask for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from collamo_kernels.radial import GaussianRadial

if TYPE_CHECKING:
    from collamo_kernels.radial.triton.op import FixedTable


class MadeTable(NamedTuple):
    """A table, and what it was made of."""

    radial: GaussianRadial
    reach: Tensor  # of the relations: see `Relations.farthest`
    dtype: torch.dtype
    learning: bool  # whether it has a history
    table: FixedTable


_made: ContextVar[tuple[MadeTable, ...]] = ContextVar("tables that were made together", default=())


def find(radial: GaussianRadial, reach: Tensor, dtype: torch.dtype) -> FixedTable | None:
    """Return the table of a radial function for these relations, if it was made before."""
    learning = torch.is_grad_enabled()
    for made in _made.get():
        alike = made.dtype == dtype and made.learning == learning
        if alike and made.radial is radial and made.reach is reach:
            return made.table
    return None


@contextmanager
def made_together(
    radials: Sequence[GaussianRadial], reach: Tensor, dtype: torch.dtype
) -> Iterator[None]:
    """Make the tables of several radial functions in two launches; inside, `find` has them."""
    from collamo_kernels.radial.triton.op import sizes_of, tabulate_together

    alike: dict[tuple[int, int, int], list[GaussianRadial]] = {}
    for radial in radials:
        alike.setdefault(sizes_of(radial), []).append(radial)
    made = _made.get()
    learning = torch.is_grad_enabled()
    for group in alike.values():
        with torch.autocast(reach.device.type, enabled=False):
            tables = tabulate_together(group, reach, dtype)
        pairs = zip(group, tables, strict=True)
        made += tuple(MadeTable(radial, reach, dtype, learning, table) for radial, table in pairs)
    before = _made.set(made)
    try:
        yield
    finally:
        _made.reset(before)
