"""A radial function as the attention asks it: at which distances, and with which types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from collamo_kernels.radial import RadialTable
from collamo_kernels.relations import Relations


class Tabulated(Protocol):
    """A radial function that makes a table of itself, such as `GaussianRadial`."""

    gamma: Tensor
    beta: Tensor

    def __call__(self, *arguments: Any) -> Tensor:
        """Return Φ3d of distances, or of distances and types."""

    def table(
        self,
        low: float,
        high: float,
        dtype: torch.dtype,
        *,
        derivative: bool,
        occurring: Tensor | None,
    ) -> RadialTable | None:
        """Return Φ3d on a grid, or None where none is fine enough."""


def tabulates(radial: Callable[..., Tensor]) -> TypeGuard[Tabulated]:
    """Whether a radial function may make a table of itself."""
    return hasattr(radial, "table")


class RadialTypes(NamedTuple):
    """The types that a radial function asks for, int32; both None where it asks for none."""

    pair_types: Tensor | None = None
    atom_types: Tensor | None = None

    @property
    def rows(self) -> int:
        """How many rows of γ and β are added for a pair: 0 where there are no types."""
        return 2 if self.atom_types is not None else int(self.pair_types is not None)


def types_of(relations: Relations, radial: Callable[..., Tensor]) -> RadialTypes:
    """Return the types of pairs or atoms, where the radial function is called with some."""
    if not is_typed(radial):
        return RadialTypes()
    if relations.pair_types is not None:
        return RadialTypes(pair_types=relations.pair_types.int())
    if relations.atom_types is None:
        raise ValueError(
            f"types is missing, but radial has pair_types={getattr(radial, 'pair_types', None)}; "
            "give Relations its pair_types or atom_types"
        )
    return RadialTypes(atom_types=relations.atom_types.int())


def is_typed(radial: Callable[..., Tensor]) -> bool:
    """Whether a radial function is called with the types of the pairs as well."""
    return getattr(radial, "pair_types", None) is not None


def evaluate(radial: Callable[..., Tensor], distances: Tensor, types: Tensor | None) -> Tensor:
    """Return Φ3d ``[M, H]`` of distances ``[M]``, by the function itself."""
    values = radial(distances) if types is None else radial(distances, types)
    if values.dim() != 2 or values.shape[0] != distances.shape[0]:
        raise ValueError(
            f"radial returned shape {list(values.shape)} for {distances.shape[0]} distances; "
            "it must map [M] to [M, H]"
        )
    return values


def pairs_with_distance(relations: Relations, coordinates: Tensor) -> Tensor:
    """bool ``[B, N, N]``: both atoms are real, of a molecule with a conformer; padded layout."""
    atoms = coordinates.new_ones(coordinates.shape[:2], dtype=torch.bool)
    if relations.valid is not None:
        atoms = atoms & relations.valid
    if relations.has_3d is not None:
        atoms = atoms & relations.has_3d[:, None]
    return atoms[:, :, None] & atoms[:, None, :]


def types_of_pairs(relations: Relations) -> Tensor | None:
    """``[B, N, N]``, or ``[B, N, N, 2]`` of atoms' types, as they came; padded layout."""
    if relations.pair_types is not None:
        return relations.pair_types
    if relations.atom_types is None:
        return None
    query, key = relations.atom_types.unbind(-1)
    return torch.stack(torch.broadcast_tensors(query[:, :, None], key[:, None, :]), -1)
