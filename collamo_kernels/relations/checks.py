"""Checks of the tensors of `Relations`, each a ValueError that names the fix."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from collamo_kernels.checks import check_tensors

INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)
# A letter gets its size where it first appears.
PADDED = {
    "hops": "BNN",
    "coordinates": "BN3",
    "valid": "BN",
    "has_3d": "B",
    "pair_types": "BNN",
    "atom_types": "BN2",
}
PACKED = {
    "hops": "P",
    "coordinates": "T3",
    "valid": "T",
    "has_3d": "B",
    "pair_types": "P",
    "atom_types": "T2",
}


class PackedSizes(NamedTuple):
    """What `cu_seqlens` says, read from the device once."""

    max_seqlen: int
    num_atoms: int
    num_pairs: int


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


def check_types(tensors: dict[str, Tensor | None]) -> None:
    """Raise a ValueError unless all are tensors on one device, of the dtypes `Relations` says."""
    check_tensors(**tensors)
    present = {name: x for name, x in tensors.items() if x is not None}
    device = next((x.device for x in present.values()), None)
    for name, x in present.items():
        if x.device != device:
            raise ValueError(
                f"{name} is on {x.device}, other relations on {device}; "
                "move them together: relations.to(device)"
            )
    hops = tensors["hops"]
    if hops is not None and hops.dtype != torch.uint8:
        raise ValueError(
            f"hops has dtype {hops.dtype}; it must be uint8 with 255 for unreachable, "
            "as shortest_paths returns it"
        )
    for name in ("valid", "has_3d"):
        if name in present and present[name].dtype != torch.bool:
            raise ValueError(
                f"{name} has dtype {present[name].dtype}; it must be bool: {name}.bool()"
            )
    for name in ("pair_types", "atom_types"):
        if name in present and present[name].dtype not in INTEGERS:
            raise ValueError(f"{name} has dtype {present[name].dtype}; it must be an integer type")
    if "pair_types" in present and "atom_types" in present:
        raise ValueError("pair_types and atom_types are both given; give the one your radial uses")


def check_padded(tensors: dict[str, Tensor | None], max_seqlen: int | None) -> None:
    """Raise a ValueError unless all shapes are those of one padded batch."""
    if max_seqlen is not None:
        raise ValueError("max_seqlen belongs to the packed layout; give cu_seqlens or leave it out")
    if tensors["coordinates"] is not None:
        check_coordinates(tensors["coordinates"], dims=3)
    known: dict[str, int] = {}
    for name, letters in PADDED.items():
        _check_shape(name, tensors[name], letters, known, "padded (no cu_seqlens)")


def check_packed(tensors: dict[str, Tensor | None], molecules: int, sizes: PackedSizes) -> None:
    """Raise a ValueError unless all shapes are those of the packed batch."""
    if tensors["coordinates"] is not None:
        check_coordinates(tensors["coordinates"], dims=2)
    known = {"B": molecules, "T": sizes.num_atoms, "P": sizes.num_pairs}
    for name, letters in PACKED.items():
        _check_shape(name, tensors[name], letters, known, "packed (cu_seqlens is given)")


def _check_shape(
    name: str, tensor: Tensor | None, letters: str, known: dict[str, int], layout: str
) -> None:
    """Check one shape written in letters; a letter gets its size where it first appears."""
    if tensor is None:
        return
    shape = list(tensor.shape)
    expected = f"[{', '.join(letters)}]"
    if len(shape) != len(letters):
        raise ValueError(
            f"{name} has shape {shape}; the layout is {layout}, so it must be {expected}"
        )
    for letter, size in zip(letters, shape, strict=True):
        length = int(letter) if letter.isdigit() else known.setdefault(letter, size)
        if size != length:
            where = (
                "" if letter.isdigit() else f" with {letter} = {length} from the other relations"
            )
            raise ValueError(f"{name} has shape {shape}; it must be {expected}{where}")


def check_fits(own: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> None:
    """Raise a ValueError unless the same relations are there, in the same shapes and dtypes."""
    for name, x in own.items():
        y = other[name]
        mine, theirs = _described(x), _described(y)
        if mine != theirs:
            raise ValueError(
                f"other.{name} is {theirs}, but relations.{name} is {mine}; pad both to one shape"
            )


def _described(x: Tensor | None) -> str:
    return "None" if x is None else f"{x.dtype} {list(x.shape)}"


def checked_sizes(cu_seqlens: Tensor, max_seqlen: int | None) -> PackedSizes:
    """Read `cu_seqlens`; anything but a running total of atoms is a ValueError."""
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
    if max_seqlen is not None and max_seqlen < largest:
        raise ValueError(
            f"max_seqlen is {max_seqlen}, but a molecule has {largest} atoms; leave it out"
        )
    longest = largest if max_seqlen is None else max_seqlen
    return PackedSizes(longest, ends[-1], sum(size * size for size in sizes))
