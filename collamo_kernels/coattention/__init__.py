"""Relation-biased attention: the operation, the module around it, and Φ that layers share."""

from collamo_kernels.coattention.api import coattention
from collamo_kernels.coattention.module import CoAttention
from collamo_kernels.coattention.shared import share_bias, tabulated_together

__all__ = ["CoAttention", "coattention", "share_bias", "tabulated_together"]
