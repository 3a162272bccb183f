"""The molecules of a call: how many, how large, and where their atoms and pairs begin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from collamo_kernels.coattention.triton.kernels import Places
from collamo_kernels.relations import TILE
from collamo_kernels.triton_launch import cdiv


@dataclass(frozen=True)
class Molecules:
    """Where the molecules of a call are: what every kernel takes."""

    count: int
    longest: int  # atoms of the largest molecule
    atoms: int
    pairs: int
    cu_seqlens: Tensor | None  # packed
    pair_start: Tensor | None  # packed
    tiles: Tensor | None  # packed

    @property
    def packed(self) -> bool:
        """Whether atoms of all molecules follow each other."""
        return self.cu_seqlens is not None

    def blocks(self, size: int) -> int:
        """Blocks of `size` atoms of a padded molecule."""
        return cdiv(self.longest, size)

    def tile_count(self, size: int, listed: bool) -> int:
        """Tiles of `size` atoms of all molecules, at most; or, `listed`, those in `tiles`."""
        if listed and self.tiles is not None:
            return len(self.tiles) * (TILE // size)
        return self.count * self.blocks(size)

    def places(self, valid: Tensor | None = None) -> Places:
        """Return the tensors that `place_of`, `tile_of` and `alive` take."""
        return Places(self.cu_seqlens, self.pair_start, self.tiles, valid)
