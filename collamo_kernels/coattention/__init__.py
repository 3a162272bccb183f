"""Relation-biased attention: the operation and the module around it."""

from collamo_kernels.coattention.api import coattention
from collamo_kernels.coattention.module import CoAttention

__all__ = ["CoAttention", "coattention"]
