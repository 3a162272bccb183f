"""Sums of messages over the neighbours of each node."""

from collamo_kernels.neighbour_sum.api import neighbour_sum

__all__ = ["neighbour_sum"]
