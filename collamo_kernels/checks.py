"""The check that every public function begins with."""

from __future__ import annotations

from torch import Tensor


def check_tensors(**arguments: object) -> None:
    """Raise a ValueError that names the first argument that is neither a tensor nor None."""
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(f"{name} is a {kind}; make it a tensor: torch.as_tensor({name})")
