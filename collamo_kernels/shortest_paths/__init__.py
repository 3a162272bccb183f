"""The number of bonds between all atoms of each molecule."""

from collamo_kernels.shortest_paths.api import shortest_paths

__all__ = ["shortest_paths"]
