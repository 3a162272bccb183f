"""What layers ask the relations of a batch for, worked out once per batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.relations import layouts
from collamo_kernels.relations.once import once
from collamo_kernels.relations.op import pairs_by_hops
from collamo_kernels.relations.sorted_pairs import SortedPairs

PARTS = 16384  # of `occurring_distances`: 0.003 Å for 50 Å; the finest cells are 0.002


class PreparedRelations:
    """The properties of `Relations` that are worked out from its tensors; without history.

    Each is kept until a tensor that it was made from changes.
    """

    hops: Tensor | None
    coordinates: Tensor | None
    valid: Tensor | None
    has_3d: Tensor | None
    cu_seqlens: Tensor | None
    num_atoms: int | None  # T, packed only
    num_pairs: int | None  # P, packed only

    @property
    @once("coordinates", "valid", "has_3d", "cu_seqlens")
    def max_distance(self) -> float:
        """Å; no two atoms of a molecule are further apart. 0 where there are no coordinates.

        It is a bound, at most √3 times the largest distance: twice the reach from the middle of a
        molecule's bounding box, which takes T steps instead of Σ N². The range of a radial table.
        """
        if self.coordinates is None:
            return 0.0
        atoms, molecule = self.atoms_with_coordinates(), self._molecule_of_atom()
        x, molecule = self.coordinates.detach().reshape(-1, 3)[atoms], molecule[atoms]
        if not len(x):
            return 0.0
        index, box = molecule[:, None].expand_as(x), x.new_zeros(len(self.sizes()), 3)
        low = box.scatter_reduce(0, index, x, "amin", include_self=False)
        high = box.scatter_reduce(0, index, x, "amax", include_self=False)
        reach = (x - (0.5 * (low + high))[molecule]).norm(dim=1).max()
        return 2 * reach.item() * (1 + 1e-6)  # rounding must not make it too small

    @property
    @once("hops", "valid", "cu_seqlens")
    def pairs_by_hops(self) -> SortedPairs:
        """All pairs sorted by hops, for the gradient of a table; needs `hops`.

        Pairs of padding come last, with the key 256. (Leaving them out would ask the device how
        many there are.)
        """
        real = None
        if self.valid is not None:
            i, j = self.atoms_of_pairs()
            atoms = self.valid.flatten()
            real = atoms[i] & atoms[j]
        return SortedPairs(*pairs_by_hops(_needed("hops", self.hops).flatten(), real))

    @property
    @once("hops", "valid", "cu_seqlens")
    def hop_offsets(self) -> Tensor:
        """int64 ``[257]``: where in `pairs_by_hops` each number of hops begins."""
        return _needed("hops", self.pairs_by_hops.starts)

    @property
    @once("coordinates", "valid", "has_3d", "cu_seqlens")
    def distances(self) -> Tensor:
        """Å, float32 ``[P]`` or ``[B·N·N]``: of all pairs, ∞ where there is none; no history.

        Rounded once, from float64: off by up to 1.05 of their last place, as float32 throughout
        leaves them, they alone put 3e-6 into the gradient of a Gaussian 0.08 Å wide.
        """
        x = _needed("coordinates", self.coordinates).detach().reshape(-1, 3).double()
        i, j = self.atoms_of_pairs()
        atoms = self.atoms_with_coordinates()
        return torch.where(atoms[i] & atoms[j], (x[i] - x[j]).norm(dim=1).float(), math.inf)

    @property
    @once("coordinates", "valid", "has_3d", "cu_seqlens")
    def occurring_distances(self) -> Tensor:
        """bool ``[PARTS]``: in which equal parts of ``[0, max_distance]`` a distance is.

        On a CPU: where a radial table has to be worked out.
        """
        x = _needed("coordinates", self.coordinates).detach().reshape(-1, 3).float()
        operator = torch.ops.collamo_kernels.occurring_distances
        return operator(x, self.atoms_with_coordinates(), self.sizes(), self.max_distance, PARTS)

    @property
    @once("coordinates", "valid", "has_3d", "cu_seqlens")
    def pairs_by_distance(self) -> SortedPairs:
        """All pairs sorted by `distances`, likewise; needs `coordinates`."""
        keys, order = self.distances.sort(stable=True)
        return SortedPairs(order, keys)

    @property
    @once("coordinates", "valid", "has_3d", "cu_seqlens")
    def farthest(self) -> Tensor:
        """Å, ``[]``: the largest distance, 0 where there is none; `max_distance` on the device."""
        finite = torch.where(self.distances == math.inf, 0.0, self.distances)
        return F.pad(finite, (0, 1)).amax()

    @property
    @once("cu_seqlens")
    def pair_start(self) -> Tensor:
        """int64 ``[B + 1]``: the running total of pairs; packed layout only."""
        return F.pad(self.sizes().square().cumsum(0), (1, 0))

    @property
    @once("cu_seqlens")
    def tiles(self) -> Tensor:
        """int32 ``[T // 32 + B, 2]``: molecule and first atom of each tile of 32 atoms; packed.

        There are as many entries as there can be tiles, so the device is not asked; those to spare
        have the molecule -1.
        """
        return layouts.tiles(_needed("cu_seqlens", self.cu_seqlens), self.num_atoms or 0)

    def atoms_of_pairs(self) -> tuple[Tensor, Tensor]:
        """Return the query atom and the key atom of each pair, int64 ``[P]`` or ``[B·N·N]``."""
        if self.cu_seqlens is not None:
            total = self.num_atoms or 0, self.num_pairs or 0
            return layouts.atoms_of_packed_pairs(self.cu_seqlens, *total)
        like = self._pairs_or_atoms()
        return layouts.atoms_of_padded_pairs(like.shape[0], self._padded_atoms(), like.device)

    def atoms_with_coordinates(self) -> Tensor:
        """Return bool ``[T]`` or ``[B·N]``: a real atom of a molecule with a conformer."""
        molecule = self._molecule_of_atom()
        atoms = torch.ones_like(molecule, dtype=torch.bool)
        if self.valid is not None:
            atoms = self.valid.flatten()
        return atoms if self.has_3d is None else atoms & self.has_3d[molecule]

    def sizes(self) -> Tensor:
        """Return the atoms of each molecule, padding included, int64 ``[B]``."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.diff().long()
        like = self._pairs_or_atoms()
        return torch.full(like.shape[:1], self._padded_atoms(), device=like.device)

    def count_pairs(self) -> int:
        """Return the number of pairs, padding included."""
        if self.num_pairs is not None:
            return self.num_pairs
        return self._pairs_or_atoms().shape[0] * self._padded_atoms() ** 2

    def _padded_atoms(self) -> int:
        return self._pairs_or_atoms().shape[1]

    def _pairs_or_atoms(self) -> Tensor:
        return _needed("hops", self.hops) if self.coordinates is None else self.coordinates

    def _molecule_of_atom(self) -> Tensor:
        if self.cu_seqlens is not None:
            return layouts.molecule_of_packed_atom(self.cu_seqlens, self.num_atoms or 0)
        like = self._pairs_or_atoms()
        index = torch.arange(like.shape[0], device=like.device)
        return index.repeat_interleave(self._padded_atoms())


def _needed(name: str, tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError(f"relations has no {name}, which this is worked out from; give it")
    return tensor
