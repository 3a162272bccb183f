"""Where atoms and pairs lie: all molecules end to end (packed), or each of N atoms (padded)."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 32  # atoms of an entry of `tiles`


class PackedLayout:
    """Where the atoms and pairs of a packed batch go in the padded one, and back.

    Parameters
    ----------
    cu_seqlens
        int32 ``[B + 1]``.
    max_seqlen
        N, the atoms of the largest molecule.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int):
        start = cu_seqlens[:-1].long()
        sizes = cu_seqlens.diff().long()
        pairs = sizes * sizes
        position = torch.arange(max_seqlen, device=cu_seqlens.device)
        self.valid = position < sizes[:, None]  # [B, N]
        self.pair_valid = self.valid[:, :, None] & self.valid[:, None, :]  # [B, i, j]
        self._atom = start[:, None] + position
        first = (pairs.cumsum(0) - pairs)[:, None, None]
        self._pair = first + position[:, None] * sizes[:, None, None] + position

    def pad(self, values: Tensor, fill: float = 0) -> Tensor:
        """``[T, …] → [B, N, …]``, with `fill` in the padding."""
        return _spread(values, self._atom, self.valid, fill)

    def pad_pairs(self, values: Tensor, fill: float = 0) -> Tensor:
        """``[P, …] → [B, N, N, …]``, with `fill` in the padding."""
        return _spread(values, self._pair, self.pair_valid, fill)

    def pack(self, values: Tensor) -> Tensor:
        """``[B, N, …] → [T, …]``."""
        return values[self.valid]

    def pack_pairs(self, values: Tensor) -> Tensor:
        """``[B, N, N, …] → [P, …]``."""
        return values[self.pair_valid]


def _spread(values: Tensor, index: Tensor, valid: Tensor, fill: float) -> Tensor:
    if values.shape[0] == 0:
        return values.new_full((*index.shape, *values.shape[1:]), fill)
    spread = values[torch.where(valid, index, 0)]
    keep = valid.reshape(*valid.shape, *[1] * (values.dim() - 1))
    return torch.where(keep, spread, torch.full_like(spread, fill))


def molecule_of_packed_atom(cu_seqlens: Tensor, num_atoms: int) -> Tensor:
    """The molecule of every atom, int64 ``[T]``."""
    # No tensor of B numbers is made on the way: an exported graph would not take one molecule.
    atom = torch.arange(num_atoms, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens.long(), atom, right=True) - 1


def atoms_of_packed_pairs(
    cu_seqlens: Tensor, num_atoms: int, num_pairs: int
) -> tuple[Tensor, Tensor]:
    """The query atom and the key atom of every pair, int64 ``[P]`` each.

    Without a division: compiled for a CPU, ``pair % size`` also divides by the zeros beside the
    last sizes, where those do not fill a register, and raises.
    """
    molecule, start = molecule_of_packed_atom(cu_seqlens, num_atoms), cu_seqlens.long()
    first_key = start[molecule]
    keys = start[molecule + 1] - first_key  # how many, of each query atom
    atom = torch.arange(num_atoms, device=start.device)
    query = atom.repeat_interleave(keys, output_size=num_pairs)
    shift = first_key - (keys.cumsum(0) - keys)
    return query, torch.arange(num_pairs, device=start.device) + shift[query]


def atoms_of_padded_pairs(
    molecules: int, atoms: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Likewise int64 ``[B·N·N]``, of molecules that are all padded to so many atoms."""
    atom = torch.arange(molecules * atoms, device=device).view(molecules, atoms)
    return atom.repeat_interleave(atoms, 1).flatten(), atom.repeat(1, atoms).flatten()


def tiles(cu_seqlens: Tensor, num_atoms: int) -> Tensor:
    """int32 ``[T // 32 + B, 2]``: molecule and first atom of each tile of 32 atoms; packed.

    There are as many entries as there can be tiles, so the device is not asked; those to spare
    have the molecule -1.
    """
    before = cu_seqlens.long()
    # Molecule b gets the entries from ⌊before / 32⌋ + b on: enough for all its atoms.
    first = before // TILE + torch.arange(before.shape[0], device=before.device)
    entry = torch.arange(num_atoms // TILE + before.shape[0] - 1, device=before.device)
    molecule = torch.searchsorted(first, entry, right=True) - 1
    atom = (entry - first[molecule]) * TILE
    spare = atom >= before.diff()[molecule]
    return torch.stack([torch.where(spare, -1, molecule), atom], 1).int()
