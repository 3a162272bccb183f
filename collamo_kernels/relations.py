"""Relations: what the attention knows about pairs of atoms, checked and prepared once per batch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from collamo_kernels.shortest_paths import shortest_paths

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
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
    num_atoms: int | None = field(init=False, default=None, repr=False)  # T, packed only
    num_pairs: int | None = field(init=False, default=None, repr=False)  # P, packed only

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
        if coordinates is not None:
            check_coordinates(coordinates, dims=2)
            if len(coordinates) != int(ptr[-1]):
                raise ValueError(
                    f"coordinates has {len(coordinates)} rows, but ptr says {int(ptr[-1])} atoms; "
                    "give one row per atom of the batch"
                )
        cu_seqlens = ptr.to(torch.int32)
        packed = cls(hops if layout == "packed" else None, coordinates, None, has_3d, cu_seqlens)
        return packed if layout == "packed" else replace(packed.padded(), hops=hops)

    @property
    def packed(self) -> bool:
        """Whether the layout is packed: atoms one after the other, with `cu_seqlens`."""
        return self.cu_seqlens is not None

    @property
    def device(self) -> torch.device | None:
        """The device of the tensors, or None where there are none."""
        return next((tensor.device for _, tensor in _tensors(self)), None)

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


# --- checks ------------------------------------------------------------------------------------


def check_coordinates(coordinates: Tensor, dims: int) -> None:
    """Raise a ValueError unless `coordinates` is float32 or float64 ``[…, 3]``."""
    shape = "[B, N, 3]" if dims == 3 else "[T, 3]"
    if coordinates.dim() != dims or coordinates.shape[-1] != 3:
        raise ValueError(f"coordinates has shape {list(coordinates.shape)}; it must be {shape}")
    if coordinates.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"coordinates has dtype {coordinates.dtype}; half precision loses 0.01 Å, "
            "keep it float32: coordinates.float()"
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
    for f in fields(relations):
        value = getattr(relations, f.name)
        if "Tensor" in f.type and value is not None and not isinstance(value, Tensor):
            raise ValueError(f"{f.name} is a {type(value).__name__}; it must be a tensor or None")
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
