"""One checked call of `shortest_paths`: what every backend takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ShortestPathsCall:
    """The arguments of `collamo_kernels.shortest_paths`, which explains each; not yet the data.

    `size` is N, the padded number of atoms, or, packed, the number of pairs ``Σ N_b²``; None is as
    many as there are.
    """

    edge_index: Tensor
    ptr: Tensor
    packed: bool
    size: int | None
