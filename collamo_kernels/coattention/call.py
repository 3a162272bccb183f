"""One checked call of `coattention`: what every backend takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from collamo_kernels.relations import Relations


@dataclass(frozen=True)
class CoattentionCall:
    """The arguments of `collamo_kernels.coattention`, which explains each; checked."""

    q: Tensor
    k: Tensor
    v: Tensor
    relations: Relations
    hop_bias: Tensor | None = None
    radial: Callable[..., Tensor] | None = None
    bias: Tensor | None = None
    sink: Tensor | None = None
    scale: float | None = None
    dropout_p: float = 0.0
