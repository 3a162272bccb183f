"""Distances between all atoms of each molecule."""

from collamo_kernels.pairwise_distances.api import pairwise_distances

__all__ = ["pairwise_distances"]
