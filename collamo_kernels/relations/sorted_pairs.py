"""Pairs of atoms in the order in which a table's gradient is summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SortedPairs:
    """Pairs in an order that makes the ones that share a table entry neighbours.

    Parameters
    ----------
    order
        int64 ``[P']``: indices of pairs, into the packed ``[P]`` or the flattened ``[B·N·N]``.
    keys
        ``[P']``: what they are sorted by, in the same order. Equal keys keep the order of pairs.
    starts
        int64 ``[257]`` where the keys are hops: where in the order each number of hops begins.
    """

    order: Tensor
    keys: Tensor
    starts: Tensor | None = None

    def offsets(self, borders: Tensor) -> Tensor:
        """int64 ``[S + 1]``: where in `order` the keys of ``[borders[s], borders[s + 1])`` are.

        ``torch.arange(257)`` gives a segment per number of hops, the knots of a `RadialTable` one
        per cell.
        """
        both = torch.promote_types(self.keys.dtype, borders.dtype)  # a uint8 cannot hold 256
        return torch.searchsorted(self.keys.to(both), borders.to(both))

    def sums(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Add up ``values [P, H]`` over each segment of the order: ``[S, H]``.

        This is a table's gradient without atomics: every sum has a fixed order.
        """
        return torch.segment_reduce(values[self.order], "sum", offsets=offsets)

    def copy_(self, other: SortedPairs) -> None:
        """Copy the tensors of others of the same shapes into these."""
        self.order.copy_(other.order)
        self.keys.copy_(other.keys)
        if self.starts is not None and other.starts is not None:
            self.starts.copy_(other.starts)

    def map(self, function: Callable[[Tensor], Tensor]) -> SortedPairs:
        """Apply a function to every tensor."""
        starts = None if self.starts is None else function(self.starts)
        return SortedPairs(function(self.order), function(self.keys), starts)
