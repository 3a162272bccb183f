"""Layers and adapters for people who have a model already.

`collamo_kernels.nn.pyg` is imported by itself, because it needs PyTorch Geometric.
"""

from collamo_kernels.nn.graphormer import hop_table_of_graphormer, relations_of_graphormer
from collamo_kernels.nn.transformer import TransformerEncoderLayer
from collamo_kernels.nn.virtual_node import with_virtual_node

__all__ = [
    "TransformerEncoderLayer",
    "hop_table_of_graphormer",
    "relations_of_graphormer",
    "with_virtual_node",
]
