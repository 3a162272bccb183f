"""Rounds of heads: those whose float32 per pair fit the memory that is set aside."""

from __future__ import annotations

from collections.abc import Iterator

# So many bytes are set aside at a time for the exact Φ3d, and for the dL/dlogits that the gradients
# of tables need; heads beyond take another round. 256 real molecules (0.23 M pairs) with 32 heads
# are 30 MB.
BUDGET = 2**27


def rounds_of(heads: int, pairs: int, limited: bool) -> Iterator[slice]:
    """Heads at a time: all, or, if `limited`, those whose float32 per pair are in the budget.

    More than eight are a multiple of it, so that those of every pair begin a sector of memory.
    """
    group = max(1, min(heads, BUDGET // max(1, 4 * pairs))) if limited else max(1, heads)
    if 8 < group < heads:
        group -= group % 8
    for first in range(0, heads, group):
        yield slice(first, min(first + group, heads))
