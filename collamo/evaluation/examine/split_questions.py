"""Which questions of a split are asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collamo.data.mapped_questions import MappedQuestions
from collamo.data.prepared import PreparedData
from collamo.data.tasks import TaskExample
from collamo.evaluation.examine.reliance import count_variants


def choose_questions(
    examples: Sequence[TaskExample], limit: int | None, seed: int
) -> list[TaskExample]:
    """Return at most `limit` questions of each task, drawn with `seed`, in their first order."""
    if limit is None:
        return list(examples)
    if isinstance(examples, MappedQuestions):
        tasks = examples.task_numbers()
    else:
        tasks = np.array([example.task for example in examples])
    rng = np.random.default_rng(seed)
    kept = [
        index
        for task in np.unique(tasks).tolist()
        for index in rng.permutation(np.flatnonzero(tasks == task))[:limit].tolist()
    ]
    return [examples[index] for index in sorted(kept)]


def count_questions(data: PreparedData, split: str, limit: int | None, reliance: bool) -> int:
    """Return how many answers `evaluate` will ask for, those that need not be asked included."""
    _, counts = np.unique(data.questions(split).task_numbers(), return_counts=True)
    chosen = counts if limit is None else counts.clip(max=limit)
    return int(chosen.sum()) * count_variants(reliance)
