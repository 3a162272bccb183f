"""Which questions of a split are asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from collamo.data.prepared import PreparedData
from collamo.data.tasks import TaskExample
from collamo.evaluation.examine.reliance import count_variants


def choose_questions(
    examples: Sequence[TaskExample], limit: int | None, seed: int
) -> list[TaskExample]:
    """Return at most `limit` questions of each task, drawn with `seed`, in their first order."""
    examples = list(examples)
    if limit is None:
        return examples
    by_task: defaultdict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        by_task[example.task].append(index)
    rng = np.random.default_rng(seed)
    kept = [
        index
        for _, indices in sorted(by_task.items())
        for index in rng.permutation(indices)[:limit].tolist()
    ]
    return [examples[index] for index in sorted(kept)]


def count_questions(data: PreparedData, split: str, limit: int | None, reliance: bool) -> int:
    """Return how many answers `evaluate` will ask for, those that need not be asked included."""
    return len(choose_questions(data.tasks(split), limit, 0)) * count_variants(reliance)
