"""What is known about the pairs of atoms of a batch."""

from collamo_kernels.relations.record import (
    TILE,
    PackedLayout,
    Relations,
    SortedPairs,
    check_coordinates,
    check_valid,
)

__all__ = ["TILE", "PackedLayout", "Relations", "SortedPairs", "check_coordinates", "check_valid"]
