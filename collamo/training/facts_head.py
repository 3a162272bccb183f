"""An auxiliary task of alignment: read the computed facts of a molecule off its soft tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from collamo.model.modeling import CollamoCausalLMOutputWithPast

# Standardised facts are cut at ±4: the fifth azo group of a dye, 20 σ away, would drown the rest.
LARGEST = 4.0
# The smallest σ to divide by: that of a motif which one molecule in a thousand has is smaller, and
# would let it drown the rest.
LEAST_SPREAD = 0.05


@dataclass
class OutputWithFacts(CollamoCausalLMOutputWithPast):
    """What the model returns, and the loss of its facts."""

    facts_loss: torch.FloatTensor | None = None


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
        ``[n,F]`` float arrays of training molecules, walked through three times; what is not
        finite is unknown.
    """

    def __init__(self, num_tokens: int, width: int, facts: Iterable[np.ndarray]):
        super().__init__()
        # Of a block in its dtype, of several in float64: a float32 no longer counts beyond 2^24.
        count = np.maximum(sum(np.isfinite(block).sum(0) for block in facts), 1)
        sums = sum(np.nansum(_known(block), 0).astype(np.float64) for block in facts)
        mean = sums / count
        squares = sum(np.nansum((_known(block) - mean) ** 2, 0) for block in facts)
        spread = np.sqrt(squares / count)
        self.mean: Tensor
        self.spread: Tensor
        self.linear = nn.Linear(num_tokens * width, len(mean))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer(
            "spread", torch.tensor(spread, dtype=torch.float32).clamp(min=LEAST_SPREAD)
        )

    def count(self, facts: Tensor) -> Tensor:
        """Return how many of the facts are known, an int64 scalar."""
        return facts.isfinite().sum()

    def forward(self, soft_tokens: Tensor, facts: Tensor, total: Tensor | None = None) -> Tensor:
        """[R,M,b,D] soft tokens, [R,M,F] facts → mean squared error of the finite ones, scalar.

        With `total`, a scalar, their squared errors are divided by it, not by their number.
        """
        known = facts.isfinite()  # of the facts: an infinite target would be cut to a known ±4
        target = ((facts - self.mean) / self.spread).clamp(-LARGEST, LARGEST)
        error = self.linear(soft_tokens.flatten(-2).float()) - torch.where(known, target, 0.0)
        total = known.sum() if total is None else total
        return torch.where(known, error, 0.0).square().sum() / total.clamp(min=1)

    def join(self, model: nn.Module) -> None:
        """Become ``model.facts_head``, whose loss `model` then returns as ``facts_loss``.

        `model` takes ``facts`` [R,M,F] and their ``facts_total`` for it. What surrounds the model
        to train it on many GPUs knows the parameters that are used inside its call, and no others.
        """
        model.facts_head = self
        self._given: tuple[Any, ...] | None = None
        self._hooks = (
            model.register_forward_pre_hook(self._take, with_kwargs=True),
            model.register_forward_hook(self._give),
        )

    def leave(self, model: nn.Module) -> None:
        """Undo `join`."""
        for hook in self._hooks:
            hook.remove()
        del model.facts_head

    def _take(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        given = kwargs.pop("facts", None), kwargs.pop("facts_total", None)
        self._given = None if given[0] is None else given
        return args, kwargs

    def _give(self, model: nn.Module, args: tuple[Any, ...], outputs: Any):
        if self._given is None:
            return outputs
        loss = self(outputs.molecule_hidden_states, *self._given)
        return OutputWithFacts(**outputs, facts_loss=loss)


def _known(facts: np.ndarray) -> np.ndarray:
    """Return the facts with NaN for what is not finite: nansum would add an infinity."""
    return np.where(np.isfinite(facts), facts, np.nan)
