"""How the Triton backend registers an operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from collamo_kernels.eager import shortened

LIBRARY = torch.library.Library("collamo_kernels", "FRAGMENT")  # operators live as long as this


def define(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    keep: Callable[..., None],
    differentiate: Callable[..., Any],
) -> Callable[..., Any]:
    """Register an operator for GPUs, and for Triton's interpreter on the CPU; return a call of it.

    `fake` gives empty results; `keep` and `differentiate` are its derivative, as
    `torch.library.register_autograd` takes them. The call returned takes the shorter way that
    `eager` has.
    """
    LIBRARY.define(f"{name}{schema}")
    run = on_its_gpu(run)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    full = f"collamo_kernels::{name}"
    torch.library.register_fake(full, fake, lib=LIBRARY)
    torch.library.register_autograd(full, differentiate, setup_context=keep, lib=LIBRARY)
    operator = getattr(torch.ops.collamo_kernels, name).default
    return shortened(operator, run, keep, differentiate)


def on_its_gpu(run: Callable[..., Any]) -> Callable[..., Any]:
    """Make the GPU of its first tensor the current one while `run` launches kernels.

    Triton launches on the current GPU and on its stream, wherever the tensors are: another GPU
    cannot read them, or does so before they are written.
    """

    @functools.wraps(run)
    def guarded(*arguments: Any) -> Any:
        device = next(x.device for x in arguments if isinstance(x, Tensor))
        if device.type != "cuda":
            return run(*arguments)
        with torch.cuda.device(device):
            return run(*arguments)

    return guarded


def tensors(names: Iterable[str], always: Iterable[str] = ()) -> str:
    """Tensors as a schema lists them; those not in `always` may be None."""
    return ", ".join(f"Tensor{'' if x in always else '?'} {x}" for x in names)


def unnamed_tensors(count: int) -> str:
    """So many tensors as a schema lists what an operator returns."""
    return f"({', '.join(['Tensor'] * count)})"


def no_gradient(like: Tensor) -> Tensor:
    """Return what stands for a gradient that nobody asked for: ``[0]``, on the device of `like`."""
    return like.new_empty((0,), dtype=torch.float32)


def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save nothing, for an operator whose derivative is an error."""
