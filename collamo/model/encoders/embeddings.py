"""A whole embedding table at once, as encoders with few rows read it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from collamo_kernels.bare import is_bare


def all_rows(table: nn.Embedding) -> Tensor:
    """Return the table [rows,C]; looked up where it is not just its weight (see `is_bare`)."""
    weight = table.weight
    if is_bare(table, nn.Embedding):
        return weight
    offloaded = weight.device.type == "meta"  # whoever brings it brings the indices to it
    return table(torch.arange(len(weight), device="cpu" if offloaded else weight.device))
