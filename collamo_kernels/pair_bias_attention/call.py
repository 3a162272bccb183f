"""One checked call of `pair_bias_attention`: what every backend takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from collamo_kernels.relations import Relations


@dataclass(frozen=True)
class PairBiasCall:
    """The arguments of `collamo_kernels.pair_bias_attention`, which explains each; checked."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor
    relations: Relations
    scale: float
    dropout_p: float
    with_logits: bool
    in_place: bool
