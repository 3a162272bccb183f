"""What is known about the pairs of atoms of a batch."""

from collamo_kernels.relations import tree as tree  # registers Relations with PyTorch
from collamo_kernels.relations.checks import check_coordinates, check_valid
from collamo_kernels.relations.layouts import TILE, PackedLayout
from collamo_kernels.relations.record import Relations
from collamo_kernels.relations.sorted_pairs import SortedPairs

__all__ = ["TILE", "PackedLayout", "Relations", "SortedPairs", "check_coordinates", "check_valid"]
