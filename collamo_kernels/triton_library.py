"""How the Triton backend registers an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

LIBRARY = torch.library.Library("collamo_kernels", "FRAGMENT")  # operators live as long as this


def define(
    name: str, schema: str, run: Callable, fake: Callable, keep: Callable, differentiate: Callable
) -> None:
    """Register an operator for GPUs, and for Triton's interpreter on the CPU.

    `fake` gives empty results; `keep` and `differentiate` are its derivative, as
    `torch.library.register_autograd` takes them.
    """
    LIBRARY.define(f"{name}{schema}")
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    full = f"collamo_kernels::{name}"
    torch.library.register_fake(full, fake, lib=LIBRARY)
    torch.library.register_autograd(full, differentiate, setup_context=keep, lib=LIBRARY)


def tensors(names: Iterable[str], always: Iterable[str] = ()) -> str:
    """Tensors as a schema lists them; those not in `always` may be None."""
    return ", ".join(f"Tensor{'' if x in always else '?'} {x}" for x in names)


def keep_nothing(ctx: object, inputs: tuple, output: object) -> None:
    """Save nothing, for an operator whose derivative is an error."""
