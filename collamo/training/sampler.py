"""The order of the training items, which a resumed run finds again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Protocol, runtime_checkable

import numpy as np
from torch.utils.data import Sampler

# Batches are formed inside chunks of this many batches, sorted by length: wide enough that padding
# nearly vanishes, narrow enough that the order stays random. transformers uses the same figure.
CHUNK = 50


@runtime_checkable
class HasLength(Protocol):
    """Items that tell how long each is."""

    def length(self, index: int) -> int:
        """Return the size of item `index`."""


class EpochSampler(Sampler[int]):
    """Shuffled items of one pass, numbered ``epoch * len + position``; a function of (seed, epoch).

    With `group_by_length`, batches of similar length where the items tell it: inside chunks of 50
    batches items are sorted by length, then the batches are shuffled.
    """

    def __init__(self, dataset: Sized, *, seed: int, batch_size: int, group_by_length: bool):
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        self.length: Callable[[int], int] | None = None
        if group_by_length and isinstance(dataset, HasLength):
            self.length = dataset.length
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        first = self.epoch * len(self.dataset)  # see QuestionDataset: the epoch is in the number
        order = rng.permutation(len(self.dataset)) + first
        if self.length is None:
            return map(int, order)
        return _grouped(order, self.length, self.batch_size, rng)


def _grouped(
    order: np.ndarray, length: Callable[[int], int], size: int, rng: np.random.Generator
) -> Iterator[int]:
    """Yield `order` batch by batch; a chunk is sorted, in place, when its first batch comes."""
    # Only whole batches change places: a short one in the middle would shift all that follow.
    batches = np.arange(len(order) // size)
    rng.shuffle(batches)
    waiting = np.ones(-(-len(order) // (CHUNK * size)), dtype=bool)
    for batch in (*batches, len(batches)):
        chunk = batch // CHUNK
        if chunk < len(waiting) and waiting[chunk]:
            part = order[chunk * CHUNK * size : (chunk + 1) * CHUNK * size]
            part[:] = part[np.argsort([length(int(index)) for index in part], kind="stable")]
            waiting[chunk] = False
        yield from order[batch * size : (batch + 1) * size].tolist()
