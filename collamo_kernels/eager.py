"""An operator's shorter way, for calls that nobody traces.

An operator costs its arguments twice over: the dispatcher boxes them, and what
`torch.library.register_autograd` makes reads the whole schema anew for each of them, 0.25 ms a call
of 29. An `autograd.Function` has the same gradient for 20 µs. Only the operator is seen by a
compiler, by a mode such as `torch.utils._python_dispatch.TorchDispatchMode`, by `torch.func` and by
subclasses of a tensor; where one of them looks, it is what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Of arguments; a size that is traced, or another kind of tensor, is not among them.
PLAIN = frozenset({Tensor, nn.Parameter, type(None), bool, int, float, list, torch.dtype})


def shortened(
    operator: Callable[..., Any],
    run: Callable[..., Any],
    keep: Callable[..., None],
    differentiate: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a function of the operator's arguments that does what the operator does.

    Parameters
    ----------
    operator
        What is called where somebody looks.
    run
        What it does, without gradients.
    keep, differentiate
        Its derivative, as `torch.library.register_autograd` takes them.
    """

    class Shortened(torch.autograd.Function):
        backward = staticmethod(differentiate)

        # With a `setup_context` of its own `apply` would ask for this function's signature, 20 µs.
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            results = run(*arguments)
            keep(ctx, arguments, results)
            return results

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _watched(arguments):
            return operator(*arguments)
        return Shortened.apply(*arguments) if torch.is_grad_enabled() else run(*arguments)

    return call


def _watched(arguments: tuple[Any, ...]) -> bool:
    """Whether somebody would miss the operator."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or not PLAIN.issuperset(map(type, arguments))
    )
