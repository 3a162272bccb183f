"""Gradients of an attention's gradients, from its formula in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def differentiate_twice(
    formula: Callable[[dict[str, Tensor]], Tensor],
    learned: Mapping[str, Tensor],
    grad: Tensor,
    cotangents: Mapping[str, Tensor | None],
) -> dict[str, Tensor]:
    """Gradients of ``Σ cotangent · gradient`` by `grad` and every learned tensor, by name.

    Parameters
    ----------
    formula
        The attention, as a function of the learned tensors.
    learned
        The tensors that can get a gradient, where they are there.
    grad
        dL/dout; its own gradient has the name "grad".
    cotangents
        Of the first gradients; None where nobody used one.
    """
    names = list(learned)
    # hop_bias without hops, say, is there, but the formula does not read it: its gradient is [0].
    used = {
        name: cotangent
        for name, x in learned.items()
        if (cotangent := cotangents[name]) is not None and cotangent.shape == x.shape
    }

    def first(grad: Tensor, *values: Tensor) -> dict[str, Tensor]:
        def out(*values: Tensor) -> Tensor:
            return formula(dict(zip(names, values, strict=True)))

        gradients = torch.func.vjp(out, *values)[1](grad)
        return {name: x for name, x in zip(names, gradients, strict=True) if name in used}

    pull_back = torch.func.vjp(first, grad, *learned.values())[1]
    return {name: x.clone() for name, x in zip(("grad", *names), pull_back(used), strict=True)}
