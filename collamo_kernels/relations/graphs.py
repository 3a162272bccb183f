"""The graphs of a PyTorch Geometric batch, which is read and never imported."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class PyGData(Protocol):
    """What is read of a ``Data`` or ``Batch``; ``ptr`` and ``batch`` where there are any."""

    @property
    def num_nodes(self) -> int | None:
        """T."""

    @property
    def edge_index(self) -> Tensor | None:
        """int64 ``[2, E]``."""

    @property
    def pos(self) -> Tensor | None:
        """Å, ``[T, 3]``."""


def molecules_of(data: PyGData) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Return edge_index, coordinates, and ptr: of the batch, of its molecules, or of one alone."""
    edge_index, coordinates = getattr(data, "edge_index", None), getattr(data, "pos", None)
    like = coordinates if edge_index is None else edge_index
    if like is None:
        raise ValueError(
            f"the {type(data).__name__} has neither edge_index nor pos; give it one of both, or "
            "call Relations.from_graphs(edge_index, ptr)"
        )
    ptr, molecule = getattr(data, "ptr", None), getattr(data, "batch", None)
    if ptr is not None:
        return edge_index, coordinates, ptr
    if molecule is None:
        return edge_index, coordinates, torch.tensor([0, data.num_nodes or 0], device=like.device)
    if bool((molecule.diff() < 0).any()):
        raise ValueError("batch falls; sort the atoms by their molecules, as PyG does")
    return edge_index, coordinates, F.pad(molecule.bincount().cumsum(0), (1, 0))
