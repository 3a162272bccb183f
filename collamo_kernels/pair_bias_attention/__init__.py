"""Attention that hands its logits on: the next layer's pair bias."""

from collamo_kernels.pair_bias_attention.api import pair_bias_attention

__all__ = ["pair_bias_attention"]
