"""The scores of a split's tasks, from the statistics of their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from collamo.evaluation.entities.hallucination import STATUSES
from collamo.evaluation.score.predictions import PredictionRow
from collamo.evaluation.score.quantities import property_scores
from collamo.evaluation.score.tasks import COLUMNS, SCORE_STATUSES, task_scores
from collamo.evaluation.statistics import Estimate, Sums, UnitSums

#: Task of a split → task of a predictions file, whose functions score it.
KINDS = {
    "caption": "captions",
    "iupac_name": "iupac",
    "motif_count": "motifs",
    "property_2d": "property",
    "property_3d": "property",
    "measured": "property",
}
#: Most that one answer's error counts [standard deviations of the target]. Our choice: an answer
#: that repeats a digit without end was off by 25,011, and decided the mean of 1,000. Answers that
#: read no molecule are off by up to 7.4, so that 10 cuts runaways alone; 2 would cut 12 % of the
#: commonest answer's errors. On the demo's 2,000 numbers no verdict differs between 2 and 10.
LARGEST_SCALED_ERROR = 10.0
PROPERTY_SCORES = ("exact", "scaled_error", "scaled_mae", "parsed")
#: Statistics of the rows of a split: those of its tasks' kinds, and what they have in common.
SPLIT_COLUMNS = tuple(
    dict.fromkeys([*PROPERTY_SCORES, *(name for kind in KINDS.values() for name in COLUMNS[kind])])
)
NOT_ASKED = "not_asked"  # the molecule has none of the modalities that may be seen


def primary_metric(task: str, numeric: bool) -> str:
    """Return the score that decides about a task: BLEU-4, exact match, or for numbers the error.

    >>> primary_metric("property_2d", numeric=True)
    'scaled_error'
    """
    if KINDS[task] == "captions":
        return "bleu4"
    return "scaled_error" if numeric and KINDS[task] == "property" else "exact"


def split_scores(task: str, sums: Sums) -> dict[str, float]:
    """Return the scores of a task from the sums of its rows; one without rows is left out.

    Captions, names and motifs as in a predictions file. Properties together, whose units do not add
    up: ``exact``; ``scaled_mae``, the mean of |error| / (standard deviation of the target in the
    train split), `LARGEST_SCALED_ERROR` at most, over what parsed; ``scaled_error``, the same over
    all, an answer without a number counted as the train mean or the most common answer, whichever
    is further off, so that silence never pays; ``parsed``.
    """
    if KINDS[task] != "property":
        return task_scores(KINDS[task], sums)
    return sums.means(PROPERTY_SCORES)


def target_scores(task: str, unit: str | None, sums: Sums) -> dict[str, float]:
    """Return the scores of one target of a task; a property's errors are in its unit (energies in
    Hartree and eV too)."""
    if KINDS[task] != "property":
        return split_scores(task, sums)
    return property_scores(sums, unit) | split_scores(task, sums)


def count_statuses(task: str, rows: Sequence[PredictionRow]) -> dict[str, int]:
    """Return ``rows`` and what became of them; all other counts add up to it."""
    # Of what reading a file may find, a model can only give an empty answer.
    names = ("scored", "empty_prediction", *SCORE_STATUSES[KINDS[task]], NOT_ASKED)
    statuses = Counter(row.status for row in rows)
    return {"rows": len(rows), **dict.fromkeys(names, 0), **statuses}


def count_entities(rows: Sequence[PredictionRow]) -> dict[str, int]:
    """Return ``rows`` and what became of their entities; all other counts add up to it."""
    statuses = Counter(row.entity_status for row in rows)
    return {"rows": len(rows), **{name: statuses[name] for name in STATUSES}}


def unit_sums(
    rows: Sequence[PredictionRow],
    units: Sequence[Hashable],
    order: Sequence[Hashable],
    columns: Sequence[str],
) -> UnitSums:
    """Return the statistics of rows added up by unit, for `statistics.resampled`."""
    values = [[row.values.get(name, np.nan) for name in columns] for row in rows]
    table = np.array(values, dtype=float).reshape(len(rows), len(columns))
    return UnitSums(columns, table, units, order)


@dataclass(frozen=True)
class Scores:
    """What one set of answers to one task is worth.

    ``counts`` as `count_statuses`; ``metrics`` the `split_scores` with their intervals; ``change``
    the primary one minus the model's on the same questions, from paired resamples of molecules
    (None for the model itself, and where nothing can be compared); ``unchanged`` the questions in
    which the model got the same input as with everything, so that its answer stands.
    """

    counts: dict[str, int]
    metrics: dict[str, Estimate] = field(default_factory=dict)
    change: Estimate | None = None
    unchanged: int = 0
