"""An auxiliary task of alignment: read the computed facts of a molecule off its soft tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

# Standardised facts are cut at ±4: the fifth azo group of a dye, 20 σ away, would drown the rest.
LARGEST = 4.0
# The smallest σ to divide by: that of a motif which one molecule in a thousand has is smaller, and
# would let it drown the rest.
LEAST_SPREAD = 0.05


class FactsHead(nn.Module):
    """Linear map from the b soft tokens of a molecule to its F facts, and its loss.

    ``L = mean over known facts of (W·[s_1; …; s_b] + c - clip((y - μ)/σ, ±4))²`` with μ and σ of
    the training molecules. It is ours, not the paper's: encoders that start from nothing learn in
    400 steps what there is to say about a molecule, where the answers of a language model, a few
    tokens on thousands of questions, had not told them in 1,000.

    Parameters
    ----------
    num_tokens, width
        b soft tokens of the language model's width.
    facts
        ``[F]`` float arrays of the training molecules; one that is not finite is unknown.
    """

    def __init__(self, num_tokens: int, width: int, facts: Iterable[np.ndarray]):
        super().__init__()
        known = np.stack(list(facts))  # [molecules, F]
        known = np.where(np.isfinite(known), known, np.nan)  # nansum would add an infinity
        count = np.maximum(np.isfinite(known).sum(0), 1)
        mean = np.nansum(known, 0) / count
        spread = np.sqrt(np.nansum((known - mean) ** 2, 0) / count)
        self.mean: Tensor
        self.spread: Tensor
        self.linear = nn.Linear(num_tokens * width, known.shape[1])
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer(
            "spread", torch.tensor(spread, dtype=torch.float32).clamp(min=LEAST_SPREAD)
        )

    def forward(self, soft_tokens: Tensor, facts: Tensor) -> Tensor:
        """[R,M,b,D] soft tokens, [R,M,F] facts → mean squared error of the finite ones, scalar."""
        known = facts.isfinite()  # of the facts: an infinite target would be cut to a known ±4
        target = ((facts - self.mean) / self.spread).clamp(-LARGEST, LARGEST)
        error = self.linear(soft_tokens.flatten(-2).float()) - torch.where(known, target, 0.0)
        return torch.where(known, error, 0.0).square().sum() / known.sum().clamp(min=1)
