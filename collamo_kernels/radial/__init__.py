"""Learned functions of the distance between two atoms, one value per head."""

from collamo_kernels.radial.gaussian import GaussianRadial
from collamo_kernels.radial.table import RadialTable
from collamo_kernels.radial.tabulation import (
    BLOCKS,
    FIXED_KNOTS,
    GAUSSIAN_SHARE,
    MLP_SLACK,
    TABLE_TOLERANCE,
)

__all__ = [
    "BLOCKS",
    "FIXED_KNOTS",
    "GAUSSIAN_SHARE",
    "MLP_SLACK",
    "TABLE_TOLERANCE",
    "GaussianRadial",
    "RadialTable",
]
