"""Distances expanded in normal densities."""

from collamo_kernels.gaussian_basis.api import gaussian_basis

__all__ = ["gaussian_basis"]
