"""The molecules of a call: how many, how large, and where their atoms and pairs begin."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from collamo_kernels.coattention.triton.kernels import Places
from collamo_kernels.relations import TILE
from collamo_kernels.triton_launch import cdiv


class Extent(NamedTuple):
    """The numbers of molecules, which decide how many programs there are."""

    number: int  # of molecules
    longest: int  # atoms of the largest molecule
    atoms: int
    pairs: int
    listed: int | None  # entries of `Relations.tiles`; None where molecules are padded

    @property
    def packed(self) -> bool:
        """Whether atoms of all molecules follow each other."""
        return self.listed is not None

    def blocks(self, size: int) -> int:
        """Blocks of `size` atoms of a padded molecule."""
        return cdiv(self.longest, size)

    def tiles(self, size: int, listed: bool) -> int:
        """Tiles of `size` atoms of all molecules, at most; or, `listed`, those that are."""
        if listed and self.listed is not None:
            return self.listed * (TILE // size)
        return self.number * self.blocks(size)


class Molecules(NamedTuple):
    """Where the molecules of a call are: what every kernel takes."""

    number: int  # of molecules
    longest: int  # atoms of the largest molecule
    atoms: int
    pairs: int
    cu_seqlens: Tensor | None  # packed
    pair_start: Tensor | None  # packed
    tiles: Tensor | None  # packed

    @property
    def extent(self) -> Extent:
        """Return their numbers."""
        listed = None if self.tiles is None else self.tiles.shape[0]
        return Extent(self.number, self.longest, self.atoms, self.pairs, listed)

    def places(self, valid: Tensor | None = None) -> Places:
        """Return the tensors that `place_of`, `tile_of` and `alive` take."""
        return Places(self.cu_seqlens, self.pair_start, self.tiles, valid)
