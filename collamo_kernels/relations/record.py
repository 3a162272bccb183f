"""Relations: what the attention knows about pairs of atoms, checked and prepared once per batch."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from collamo_kernels.checks import check_tensors
from collamo_kernels.shortest_paths import shortest_paths
from collamo_kernels.shortest_paths.op import pairs_by_hops

TILE = 32  # atoms of an entry of `Relations.tiles`
PARTS = 16384  # of `Relations.occurring_distances`: 0.003 Å for 50 Å; the finest cells are 0.002
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def _prepared(*sources: str) -> Callable[[Callable[[Relations], Any]], property]:
    """Make a property that is worked out once, and again only when one of its sources changes.

    What it was made from is kept beside it: a copy that is given other tensors, and a tensor that
    is written to in place, are noticed.
    """

    def decorate(make: Callable[[Relations], Any]) -> property:
        key = f"_{make.__name__}"

        @functools.wraps(make)
        def get(self: Relations) -> Any:
            if torch.compiler.is_compiling():  # a graph keeps nothing; it works out a thing once
                with torch.no_grad():
                    return make(self)
            kept = self.__dict__.get(key)
            if kept is None or not _same(kept[0], _state(self, sources)):
                with torch.no_grad():
                    kept = _state(self, sources), make(self)
                self.__dict__[key] = kept
            return kept[1]

        PREPARED[key] = sources
        return property(get)

    return decorate


PREPARED: dict[str, tuple[str, ...]] = {}  # where a prepared property is kept: what it is made from


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

    def _map(self, function: Callable[[Tensor], Tensor]) -> SortedPairs:
        starts = None if self.starts is None else function(self.starts)
        return SortedPairs(function(self.order), function(self.keys), starts)


@dataclass(frozen=True, eq=False, repr=False)
class Relations:
    """Pairwise relations of a batch of molecules. A relation that is None adds nothing.

    Padded layout (`cu_seqlens` is None): B molecules of N atoms. Packed layout: the T atoms of
    all molecules one after the other, ``P = Σ N_b²`` pairs, molecule after molecule and row-major
    (query atom first).

    Parameters
    ----------
    hops
        uint8 ``[B, N, N]`` or ``[P]``: bonds between two atoms; 0 on the diagonal, longer paths
        saturate at 253, 254 is reserved for a virtual node, 255 is unreachable or padding.
    coordinates
        float32 (or float64) ``[B, N, 3]`` or ``[T, 3]``, Å. Gets gradients if it asks for them.
    valid
        bool ``[B, N]`` or ``[T]``, True = real atom; None means that all are.
    has_3d
        bool ``[B]``: False marks a molecule without a conformer, whose `coordinates` are never
        read as data. None means that every molecule has one (if there are coordinates at all).
    cu_seqlens
        int32 ``[B + 1]``, the running total of atoms; its presence is what makes the layout packed.
    max_seqlen
        Atoms of the largest molecule, packed layout only; worked out from `cu_seqlens` when left
        out.
    pair_types
        integer ``[B, N, N]`` or ``[P]``: one type id per pair, for a radial module with
        ``pair_types``.
    atom_types
        integer ``[B, N, 2]`` or ``[T, 2]``: the ids of an atom as query and as key; the pair (i,
        j) has the ids ``(atom_types[i, 0], atom_types[j, 1])``, whose affine terms are added.
        Never both.

    Raises
    ------
    ValueError
        A wrong shape, dtype or device; the message names the argument and the fix.

    Examples
    --------
    >>> import torch, collamo_kernels as ck
    >>> water = torch.tensor([[0, 1, 0, 2], [1, 0, 2, 0]]), torch.tensor([0, 3])
    >>> relations = ck.Relations.from_graphs(*water)
    >>> relations.hops[0, 1].tolist()
    [1, 0, 2]
    """

    hops: Tensor | None = None
    coordinates: Tensor | None = None
    valid: Tensor | None = None
    has_3d: Tensor | None = None
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None
    pair_types: Tensor | None = None
    atom_types: Tensor | None = None
    num_atoms: int | None = field(init=False, default=None)  # T, packed only
    num_pairs: int | None = field(init=False, default=None)  # P, packed only

    def __post_init__(self) -> None:
        _check_types(self)
        if self.packed:
            # Read from the device once, here: no layer has to wait for it again.
            _set(self, **_checked_sizes(self))
            _check_packed(self)
        else:
            _check_padded(self)

    @classmethod
    def from_graphs(
        cls,
        edge_index: Tensor,
        ptr: Tensor,
        coordinates: Tensor | None = None,
        has_3d: Tensor | None = None,
        layout: str = "padded",
    ) -> Relations:
        """Build the relations of a PyG-style batch of graphs.

        Parameters
        ----------
        edge_index
            ``[2, E]`` int64, both directions of each bond, atoms numbered through the batch.
        ptr
            ``[B + 1]`` int64, the running total of atoms.
        coordinates
            ``[T, 3]`` Å, all atoms of the batch one after the other, or None.
        has_3d
            ``[B]`` bool, or None.
        layout
            ``"padded"`` or ``"packed"``: the layout of the result.
        """
        hops = shortest_paths(edge_index, ptr, layout=layout)
        cu_seqlens = ptr.to(torch.int32)
        packed = cls(hops if layout == "packed" else None, None, None, has_3d, cu_seqlens)
        if coordinates is not None:
            check_tensors(coordinates=coordinates)
            check_coordinates(coordinates, dims=2)
            if len(coordinates) != packed.num_atoms:  # which the device was asked for just once
                raise ValueError(
                    f"coordinates has {len(coordinates)} rows, but ptr says {packed.num_atoms} "
                    "atoms; give one row per atom of the batch"
                )
            _set(packed, coordinates=coordinates)
            _check_types(packed)
        return packed if layout == "packed" else replace(packed.padded(), hops=hops)

    def __repr__(self) -> str:
        """Shapes instead of numbers: a batch has a million of them."""
        parts = [f"{name} {list(tensor.shape)}" for name, tensor in _tensors(self)]
        layout = "packed" if self.packed else "padded"
        return f"Relations({', '.join(parts) or 'none'}; {layout}, {self.device or 'no device'})"

    @property
    def packed(self) -> bool:
        """Whether the layout is packed: atoms one after the other, with `cu_seqlens`."""
        return self.cu_seqlens is not None

    @property
    def device(self) -> torch.device | None:
        """The device of the tensors, or None where there are none."""
        return next((tensor.device for _, tensor in _tensors(self)), None)

    @_prepared("coordinates", "valid", "has_3d", "cu_seqlens")
    def max_distance(self) -> float:
        """Å; no two atoms of a molecule are further apart. 0 where there are no coordinates.

        It is a bound, at most √3 times the largest distance: twice the reach from the middle of a
        molecule's bounding box, which takes T steps instead of Σ N². The range of a radial table.
        """
        if self.coordinates is None:
            return 0.0
        molecule = _molecule_of_atom(self)
        atoms = _with_coordinates(self, molecule)
        x, molecule = self.coordinates.reshape(-1, 3)[atoms], molecule[atoms]
        if not len(x):
            return 0.0
        index, box = molecule[:, None].expand_as(x), x.new_zeros(len(_sizes(self)), 3)
        low = box.scatter_reduce(0, index, x, "amin", include_self=False)
        high = box.scatter_reduce(0, index, x, "amax", include_self=False)
        reach = (x - (0.5 * (low + high))[molecule]).norm(dim=1).max()
        return 2 * reach.item() * (1 + 1e-6)  # rounding must not make it too small

    @_prepared("hops", "valid", "cu_seqlens")
    def pairs_by_hops(self) -> SortedPairs:
        """All pairs sorted by hops, for the gradient of a table; needs `hops`.

        Pairs of padding come last, with the key 256. (Leaving them out would ask the device how
        many there are.)
        """
        real = None
        if self.valid is not None:
            i, j = _atoms_of_pairs(self)
            atoms = self.valid.flatten()
            real = atoms[i] & atoms[j]
        return SortedPairs(*pairs_by_hops(self.hops.flatten(), real))

    @_prepared("hops", "valid", "cu_seqlens")
    def hop_offsets(self) -> Tensor:
        """int64 ``[257]``: where in `pairs_by_hops` each number of hops begins."""
        return self.pairs_by_hops.starts

    @_prepared("coordinates", "valid", "has_3d", "cu_seqlens")
    def distances(self) -> Tensor:
        """Å, float32 ``[P]`` or ``[B·N·N]``: of all pairs, ∞ where there is none; no history."""
        x = self.coordinates.detach().reshape(-1, 3)
        i, j = _atoms_of_pairs(self)
        atoms = _with_coordinates(self, _molecule_of_atom(self))
        return torch.where(atoms[i] & atoms[j], (x[i] - x[j]).norm(dim=1).float(), math.inf)

    @_prepared("coordinates", "valid", "has_3d", "cu_seqlens")
    def occurring_distances(self) -> Tensor:
        """bool ``[PARTS]``: in which equal parts of ``[0, max_distance]`` a distance is.

        On a CPU: where a radial table has to be worked out.
        """
        molecule = _molecule_of_atom(self)
        x, atoms = self.coordinates.detach().reshape(-1, 3), _with_coordinates(self, molecule)
        operator = torch.ops.collamo_kernels.occurring_distances
        return operator(x.float(), atoms, _sizes(self), self.max_distance, PARTS)

    @_prepared("coordinates", "valid", "has_3d", "cu_seqlens")
    def pairs_by_distance(self) -> SortedPairs:
        """All pairs sorted by `distances`, likewise; needs `coordinates`."""
        keys, order = self.distances.sort(stable=True)
        return SortedPairs(order, keys)

    @_prepared("coordinates", "valid", "has_3d", "cu_seqlens")
    def farthest(self) -> Tensor:
        """Å, ``[]``: the largest distance, 0 where there is none; `max_distance` on the device."""
        finite = torch.where(self.distances == math.inf, 0.0, self.distances)
        return F.pad(finite, (0, 1)).amax()

    @_prepared("cu_seqlens")
    def pair_start(self) -> Tensor:
        """int64 ``[B + 1]``: the running total of pairs; packed layout only."""
        return F.pad(_sizes(self).square().cumsum(0), (1, 0))

    @_prepared("cu_seqlens")
    def tiles(self) -> Tensor:
        """int32 ``[T // 32 + B, 2]``: molecule and first atom of each tile of 32 atoms; packed.

        There are as many entries as there can be tiles, so the device is not asked; those to spare
        have the molecule -1.
        """
        before = self.cu_seqlens.long()
        # Molecule b gets the entries from ⌊before / 32⌋ + b on: enough for all its atoms.
        first = before // TILE + torch.arange(len(before), device=before.device)
        entry = torch.arange(self.num_atoms // TILE + len(before) - 1, device=before.device)
        molecule = torch.searchsorted(first, entry, right=True) - 1
        atom = (entry - first[molecule]) * TILE
        spare = atom >= before.diff()[molecule]
        return torch.stack([torch.where(spare, -1, molecule), atom], 1).int()

    def prepare(self) -> Relations:
        """Work out now what layers would otherwise wait for, and return self.

        For a data loader: `to` and `pin_memory` take along what is prepared, so that a GPU is
        never asked for a number. On a GPU itself `max_distance` is left out, which would wait for
        it: only the attention of a CPU reads that.

        Returns
        -------
        Relations
            self.
        """
        if self.packed:
            _ = self.pair_start, self.tiles
        if self.hops is not None:
            _ = self.hop_offsets
        if self.coordinates is not None:
            _ = self.distances, self.farthest, self.pairs_by_distance
            if self.device.type == "cpu":
                _ = self.max_distance
        return self

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Relations:
        """Move every tensor to `device`; dtypes stay."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Relations:
        """Pin every tensor, so that a copy to a GPU can run beside other work."""
        return self._map(lambda tensor: tensor.pin_memory())

    def padded(self) -> Relations:
        """Return the same relations in the padded layout (`self` if they are padded already)."""
        if not self.packed:
            return self
        layout = PackedLayout(self.cu_seqlens, self.max_seqlen)
        return Relations(
            hops=None if self.hops is None else layout.pad_pairs(self.hops, fill=255),
            coordinates=None if self.coordinates is None else layout.pad(self.coordinates),
            valid=layout.valid if self.valid is None else layout.pad(self.valid),
            has_3d=self.has_3d,
            pair_types=None if self.pair_types is None else layout.pad_pairs(self.pair_types),
            atom_types=None if self.atom_types is None else layout.pad(self.atom_types),
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Relations:
        moved = copy.copy(self)  # already checked, so the checks' device reads are not repeated
        _set(moved, **{name: function(tensor) for name, tensor in _tensors(self)})
        for key, sources in PREPARED.items():
            made_from, value = self.__dict__.get(key, (None, None))
            if made_from is not None and _same(made_from, _state(self, sources)):
                if isinstance(value, SortedPairs):
                    value = value._map(function)
                elif isinstance(value, Tensor):
                    value = function(value)
                _set(moved, **{key: (_state(moved, sources), value)})
        return moved


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
    if not len(values):
        return values.new_full((*index.shape, *values.shape[1:]), fill)
    spread = values[torch.where(valid, index, 0)]
    keep = valid.reshape(*valid.shape, *[1] * (values.dim() - 1))
    return torch.where(keep, spread, torch.full_like(spread, fill))


def _set(relations: Relations, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(relations, name, value)


def _tensors(relations: Relations) -> list[tuple[str, Tensor]]:
    pairs = [(f.name, getattr(relations, f.name)) for f in fields(relations)]
    return [(name, value) for name, value in pairs if isinstance(value, Tensor)]


def _state(relations: Relations, sources: tuple[str, ...]) -> list[tuple[Tensor | None, int]]:
    tensors = [getattr(relations, name) for name in sources]
    # A tensor made under inference_mode does not count its changes.
    return [(x, 0 if x is None or x.is_inference() else x._version) for x in tensors]


def _same(before: list[tuple[Tensor | None, int]], now: list[tuple[Tensor | None, int]]) -> bool:
    return all(x is y and old == new for (x, old), (y, new) in zip(before, now, strict=True))


def _sizes(relations: Relations) -> Tensor:
    """Atoms of each molecule, padding included, int64 ``[B]``."""
    if relations.packed:
        return relations.cu_seqlens.diff().long()
    like = relations.hops if relations.coordinates is None else relations.coordinates
    return torch.full(like.shape[:1], _padded_atoms(relations), device=like.device)


def _padded_atoms(relations: Relations) -> int:
    like = relations.hops if relations.coordinates is None else relations.coordinates
    return like.shape[1]


def _with_coordinates(relations: Relations, molecule: Tensor) -> Tensor:
    """bool ``[T]``: a real atom of a molecule with a conformer."""
    atoms = torch.ones_like(molecule, dtype=torch.bool)
    if relations.valid is not None:
        atoms = relations.valid.flatten()
    return atoms if relations.has_3d is None else atoms & relations.has_3d[molecule]


def _molecule_of_atom(relations: Relations) -> Tensor:
    sizes = _sizes(relations)
    index = torch.arange(len(sizes), device=sizes.device)
    if relations.packed:  # telling how many there will be saves asking the device
        return index.repeat_interleave(sizes, output_size=relations.num_atoms)
    return index.repeat_interleave(_padded_atoms(relations))


def _atoms_of_pairs(relations: Relations) -> tuple[Tensor, Tensor]:
    """The query atom and the key atom of every pair, int64 ``[P]`` each."""
    sizes = _sizes(relations)
    if not relations.packed:
        n = _padded_atoms(relations)
        atom = torch.arange(len(sizes) * n, device=sizes.device).view(len(sizes), n)
        return atom.repeat_interleave(n, 1).flatten(), atom.repeat(1, n).flatten()
    squares, pairs = sizes * sizes, relations.num_pairs
    index = torch.arange(len(sizes), device=sizes.device)
    molecule = index.repeat_interleave(squares, output_size=pairs)
    within = torch.arange(pairs, device=sizes.device) - (squares.cumsum(0) - squares)[molecule]
    start, size = (sizes.cumsum(0) - sizes)[molecule], sizes[molecule]
    return start + within // size, start + within % size


# --- checks ------------------------------------------------------------------------------------


def check_coordinates(coordinates: Tensor, dims: int) -> None:
    """Raise a ValueError unless `coordinates` is float32 or float64 ``[…, 3]``."""
    shape = "[B, N, 3]" if dims == 3 else "[T, 3]"
    if coordinates.dim() != dims or coordinates.shape[-1] != 3:
        raise ValueError(f"coordinates has shape {list(coordinates.shape)}; it must be {shape}")
    if coordinates.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"coordinates has dtype {coordinates.dtype}; it must be float32, for half precision "
            "loses 0.01 Å: coordinates.float()"
        )


def check_valid(valid: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise a ValueError unless `valid` is bool of this shape on this device."""
    if valid.dtype != torch.bool:
        raise ValueError(f"valid has dtype {valid.dtype}; it must be bool, True for a real atom")
    if tuple(valid.shape) != shape:
        raise ValueError(f"valid has shape {list(valid.shape)}; it must be {list(shape)}")
    if valid.device != device:
        raise ValueError(
            f"valid is on {valid.device}, other tensors on {device}; move them together"
        )


def _check_types(relations: Relations) -> None:
    given = {f.name: getattr(relations, f.name) for f in fields(relations) if "Tensor" in f.type}
    check_tensors(**given)
    for name, tensor in _tensors(relations):
        if tensor.device != relations.device:
            raise ValueError(
                f"{name} is on {tensor.device}, other relations on {relations.device}; "
                "move them together: relations.to(device)"
            )
    if relations.hops is not None and relations.hops.dtype != torch.uint8:
        raise ValueError(
            f"hops has dtype {relations.hops.dtype}; it must be uint8 with 255 for unreachable, "
            "as shortest_paths returns it"
        )
    for name in ("valid", "has_3d"):
        tensor = getattr(relations, name)
        if tensor is not None and tensor.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be bool: {name}.bool()")
    for name in ("pair_types", "atom_types"):
        tensor = getattr(relations, name)
        if tensor is not None and tensor.dtype not in INTEGERS:
            raise ValueError(f"{name} has dtype {tensor.dtype}; it must be an integer type")
    if relations.pair_types is not None and relations.atom_types is not None:
        raise ValueError("pair_types and atom_types are both given; give the one your radial uses")


def _check_padded(relations: Relations) -> None:
    if relations.max_seqlen is not None:
        raise ValueError("max_seqlen belongs to the packed layout; give cu_seqlens or leave it out")
    if relations.coordinates is not None:
        check_coordinates(relations.coordinates, dims=3)
    known: dict[str, int] = {}
    for name, letters in (
        ("hops", "BNN"),
        ("coordinates", "BN3"),
        ("valid", "BN"),
        ("has_3d", "B"),
        ("pair_types", "BNN"),
        ("atom_types", "BN2"),
    ):
        _check_shape(relations, name, letters, known)


def _check_packed(relations: Relations) -> None:
    if relations.coordinates is not None:
        check_coordinates(relations.coordinates, dims=2)
    molecules = len(relations.cu_seqlens) - 1
    known = {"B": molecules, "T": relations.num_atoms, "P": relations.num_pairs}
    for name, letters in (
        ("hops", "P"),
        ("coordinates", "T3"),
        ("valid", "T"),
        ("has_3d", "B"),
        ("pair_types", "P"),
        ("atom_types", "T2"),
    ):
        _check_shape(relations, name, letters, known)


def _check_shape(relations: Relations, name: str, letters: str, known: dict[str, int]) -> None:
    """Check one shape written in letters; a letter gets its size where it first appears."""
    tensor = getattr(relations, name)
    if tensor is None:
        return
    shape = list(tensor.shape)
    wanted = f"[{', '.join(letters)}]"
    if len(shape) != len(letters):
        packed = "packed (cu_seqlens is given)" if relations.packed else "padded (no cu_seqlens)"
        raise ValueError(
            f"{name} has shape {shape}; the layout is {packed}, so it must be {wanted}"
        )
    for letter, size in zip(letters, shape, strict=True):
        expected = int(letter) if letter.isdigit() else known.setdefault(letter, size)
        if size != expected:
            where = (
                "" if letter.isdigit() else f" with {letter} = {expected} from the other relations"
            )
            raise ValueError(f"{name} has shape {shape}; it must be {wanted}{where}")


def _checked_sizes(relations: Relations) -> dict[str, int]:
    cu_seqlens = relations.cu_seqlens
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or len(cu_seqlens) == 0:
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} {list(cu_seqlens.shape)}; it must be int32 [B + 1], "
            "the running total of atoms"
        )
    ends = cu_seqlens.tolist()
    sizes = [stop - start for start, stop in itertools.pairwise(ends)]
    largest = max(sizes, default=0)
    if ends[0] != 0 or min(sizes, default=0) < 0:
        raise ValueError(
            "cu_seqlens must start at 0 and never fall; it is the total of atoms so far"
        )
    if relations.max_seqlen is not None and relations.max_seqlen < largest:
        raise ValueError(
            f"max_seqlen is {relations.max_seqlen}, but a molecule has {largest} atoms; "
            "leave it out"
        )
    return {
        "max_seqlen": largest if relations.max_seqlen is None else relations.max_seqlen,
        "num_atoms": ends[-1],
        "num_pairs": sum(size * size for size in sizes),
    }
