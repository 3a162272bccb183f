"""Whether a layer's weights may be read past its `forward`."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def is_bare(layer: nn.Module, kind: type[Layer]) -> TypeGuard[Layer]:
    """Whether `layer` computes as a `kind` does, with the parameters it shows and nothing else.

    Where it does not, call it. LoRA and quantisers put a layer of their own in its place; others
    replace its `forward` or hook it to bring weights that are elsewhere, as accelerate and FSDP do,
    or give it weights that are more than a tensor.
    """
    own = (
        type(layer).forward is kind.forward
        and "forward" not in layer.__dict__
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
    )
    if own:
        for x in layer._parameters.values():  # a loop: this is asked some sixty times a step
            if type(x) is not nn.Parameter and x is not None and type(x) is not Tensor:
                return False
    return own
