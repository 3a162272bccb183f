"""Whether a layer's weights may be read past its `forward`."""

from __future__ import annotations

from torch import Tensor, nn


def is_bare(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `layer` computes as a `kind` does, with the parameters it shows and nothing else.

    Where it does not, call it. LoRA and quantisers put a layer of their own in its place; others
    replace its `forward` or hook it to bring weights that are elsewhere, as accelerate and FSDP do,
    or give it weights that are more than a tensor.
    """
    return (
        type(layer).forward is kind.forward
        and "forward" not in layer.__dict__
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and all(type(x) in (nn.Parameter, Tensor, type(None)) for x in layer._parameters.values())
    )
