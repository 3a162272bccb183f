"""Learned functions of the distance between two atoms, one value per head."""

from collamo_kernels.radial.gaussian import (
    BLOCKS,
    FIXED_KNOTS,
    GAUSSIAN_SHARE,
    MLP_SLACK,
    TABLE_TOLERANCE,
    GaussianRadial,
    RadialTable,
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
