"""`Relations` as a node of PyTorch's trees: `torch.export` and `torch.func` look inside.

What `Relations.prepare` worked out is left behind: whoever maps over the tensors may change them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from torch.utils import _pytree as pytree

from collamo_kernels.relations.once import PREPARED, Kept
from collamo_kernels.relations.record import Relations
from collamo_kernels.relations.sorted_pairs import SortedPairs

# The numbers are leaves too, so that a graph may take another batch.
LEAVES = *(field.name for field in fields(Relations)), "num_atoms", "num_pairs"


def flatten(relations: Relations) -> tuple[list[Any], None]:
    """Return the fields in their order, then atoms and pairs; there is nothing else to know."""
    return [getattr(relations, name) for name in LEAVES], None


def flatten_with_keys(relations: Relations) -> tuple[list[tuple[Any, Any]], None]:
    """Likewise, each with its name."""
    return [(pytree.GetAttrKey(name), getattr(relations, name)) for name in LEAVES], None


def unflatten(leaves: Iterable[Any], _: None) -> Relations:
    """Put together what `flatten` took apart, unchecked: leaves may be no tensors just now."""
    relations = object.__new__(Relations)
    for name, leaf in zip((*LEAVES, PREPARED), (*leaves, False), strict=True):
        object.__setattr__(relations, name, leaf)
    return relations


pytree.register_pytree_node(
    Relations,
    flatten,
    unflatten,
    flatten_with_keys_fn=flatten_with_keys,
    serialized_type_name="collamo_kernels.Relations",
)
# A saved graph keeps its example inputs, which are read without running code.
torch.serialization.add_safe_globals([Relations, Kept, SortedPairs])
