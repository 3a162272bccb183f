"""Checks that public functions share."""

from __future__ import annotations

from torch import Tensor


def check_tensors(**arguments: object) -> None:
    """Raise a ValueError that names the first argument that is neither a tensor nor None."""
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(f"{name} is a {kind}; make it a tensor: torch.as_tensor({name})")


def hint_at_batch(ptr: Tensor) -> str:
    """Return what a wrong `ptr` looks like, to be added to what is wrong with it; "" mostly.

    PyG's ``batch.batch`` numbers each atom's molecule: it rises from 0 by 0 or 1, once an atom.
    """
    if not len(ptr) or not bool((ptr.diff() <= 1).all()) or len(ptr) <= int(ptr[-1]) + 1:
        return ""
    return "; ptr looks like batch.batch, the molecule of each atom: give batch.ptr"
