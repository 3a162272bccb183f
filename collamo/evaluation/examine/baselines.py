"""What an answer is worth: two opponents that do not read the molecule, and the train split's
scales."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from collamo.data.tasks import TaskExample
from collamo.errors import CollamoError

Key = tuple[str, str]  # (task, target)


@dataclass(frozen=True)
class TrainStatistics:
    """Statistics of the train split by (task, target), which need no molecule.

    ``answers``: the most common answer of each target; ``task_answers``: of each task, for targets
    the train split lacks; ``scale`` and ``mean`` [unit of the target]: standard deviation
    (population) and mean of the values; ``median``: the constant with the smallest mean absolute
    error.
    """

    answers: Mapping[Key, str]
    task_answers: Mapping[str, str]
    scale: Mapping[Key, float]
    mean: Mapping[Key, float]
    median: Mapping[Key, float]

    @classmethod
    def count(cls, tasks: Iterable[TaskExample]) -> TrainStatistics:
        """Count the questions of the train split."""
        answers: defaultdict[Key, Counter[str]] = defaultdict(Counter)
        by_task: defaultdict[str, Counter[str]] = defaultdict(Counter)
        values: defaultdict[Key, array[float]] = defaultdict(lambda: array("d"))
        for example in tasks:
            key = (example.task, example.target)
            answers[key][example.answer] += 1
            by_task[example.task][example.answer] += 1
            if example.value is not None:
                values[key].append(example.value)
        return cls(
            answers={key: _most_common(counts) for key, counts in answers.items()},
            task_answers={task: _most_common(counts) for task, counts in by_task.items()},
            scale={key: float(np.std(v)) for key, v in values.items()},
            mean={key: float(np.mean(v)) for key, v in values.items()},
            median={key: float(np.median(v)) for key, v in values.items()},
        )

    def most_common_answer(self, task: str, target: str) -> str:
        """Return the most common train answer of the target, else of the task, else an empty
        answer."""
        return self.answers.get((task, target), self.task_answers.get(task, ""))

    def median_answer(self, task: str, target: str) -> str:
        """Return the train median of a numeric target as an answer, else the most common answer."""
        median = self.median.get((task, target))
        return self.most_common_answer(task, target) if median is None else repr(median)


def _most_common(counts: Counter[str]) -> str:
    """Return the most frequent answer; of equally frequent ones the first in the alphabet, on
    every machine."""
    return min(counts, key=lambda answer: (-counts[answer], answer))


def wrong_molecules(
    molecules: Sequence[int], identity: Mapping[int, str], seed: int
) -> dict[int, int]:
    """Return for each molecule another one of the same split, drawn with `seed`.

    `identity` gives each row's canonical SMILES: a duplicate of the molecule is not a wrong
    molecule. The distinct structures are shuffled and each takes the next one's place in the
    circle, so no molecule ever gets itself.

    Raises
    ------
    CollamoError
        With fewer than two distinct molecules: there is no wrong one.
    """
    rows_of, structures = _shuffled(molecules, identity, seed)
    following = dict(zip(structures, structures[1:] + structures[:1], strict=True))
    return _partners(rows_of, following)


def same_size_molecules(
    molecules: Sequence[int], identity: Mapping[int, str], sizes: Mapping[int, int], seed: int
) -> dict[int, int]:
    """Return for each molecule another one with as many atoms, drawn with `seed`.

    As `wrong_molecules`, with a circle for each size. A structure that is alone in its size gets
    one of the nearest size, of equally near ones the first as shuffled.
    """
    rows_of, structures = _shuffled(molecules, identity, seed)
    size = {structure: sizes[rows[0]] for structure, rows in rows_of.items()}
    circles: defaultdict[int, list[str]] = defaultdict(list)
    for structure in structures:
        circles[size[structure]].append(structure)
    following: dict[str, str] = {}
    for circle in circles.values():
        following |= dict(zip(circle, circle[1:] + circle[:1], strict=True))
    for structure, other in following.items():
        if other == structure:
            rest = (s for s in structures if s != structure)
            following[structure] = min(rest, key=lambda s: abs(size[s] - size[structure]))
    return _partners(rows_of, following)


def _shuffled(
    molecules: Sequence[int], identity: Mapping[int, str], seed: int
) -> tuple[dict[str, list[int]], list[str]]:
    """Return rows by structure, and the structures shuffled: whatever the order of the rows."""
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row in sorted(set(molecules)):
        rows_of[identity[row]].append(row)
    if len(rows_of) < 2:
        raise CollamoError(
            "the wrong-molecule baseline needs two different molecules, there is "
            f"{len(rows_of)}; evaluate a larger split or raise --limit"
        )
    structures = sorted(rows_of)
    np.random.default_rng(seed).shuffle(structures)
    return rows_of, structures


def _partners(rows_of: Mapping[str, Sequence[int]], following: Mapping[str, str]) -> dict[int, int]:
    return {
        row: rows_of[following[structure]][0] for structure, rows in rows_of.items() for row in rows
    }
