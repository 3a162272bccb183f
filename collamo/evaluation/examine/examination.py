"""Answers of a model and its opponents, scored task by task, with the verdicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collamo.data.tasks import TaskExample
from collamo.evaluation.examine.reliance import MODEL, Answers
from collamo.evaluation.examine.scores import (
    SPLIT_COLUMNS,
    Scores,
    count_statuses,
    primary_metric,
    split_scores,
    unit_sums,
)
from collamo.evaluation.examine.split_scorer import SplitScorer
from collamo.evaluation.examine.verdicts import Verdict, verdict_on
from collamo.evaluation.score.predictions import PredictionRow
from collamo.evaluation.statistics import UnitSums, differences, estimates, resampled


@dataclass(frozen=True)
class Examination:
    """What was asked and what became of it: the material of the report."""

    examples: Sequence[TaskExample]
    smiles: Mapping[int, str]
    rows: Mapping[str, list[PredictionRow]]
    scores: Mapping[str, Mapping[str, Scores]]
    verdicts: Sequence[Verdict]


def examine(
    examples: Sequence[TaskExample],
    answers: Mapping[str, Answers],
    scorer: SplitScorer,
    smiles: Mapping[int, str],
    seed: int = 0,
) -> Examination:
    """Score `answers` (by variant, rows aligned with `examples`), task by task."""
    rows = {name: scorer.score(answered.texts) for name, answered in answers.items()}
    tasks: defaultdict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        tasks[example.task].append(index)
    scores, verdicts = {}, []
    for task, members in sorted(tasks.items()):
        numeric = any(examples[i].value is not None for i in members)
        metric = primary_metric(task, numeric)
        scores[task] = _score_task(task, metric, members, examples, rows, answers, seed)
        verdicts.append(verdict_on(task, numeric, scores[task]))
    return Examination(examples, smiles, rows, scores, verdicts)


def _score_task(
    task: str,
    metric: str,
    members: Sequence[int],
    examples: Sequence[TaskExample],
    rows: Mapping[str, Sequence[PredictionRow]],
    answers: Mapping[str, Answers],
    seed: int,
) -> dict[str, Scores]:
    """Return the scores of every variant that was asked at least one of the questions."""
    order = list(dict.fromkeys(examples[i].molecule for i in members))

    def sums(name: str, asked: Sequence[int]) -> UnitSums:
        units = [examples[i].molecule for i in asked]
        return unit_sums([rows[name][i] for i in asked], units, order, SPLIT_COLUMNS)

    asked = {
        name: {i: None for i in members if answered.texts[i] is not None}
        for name, answered in answers.items()
    }
    names = [name for name in answers if asked[name] or name == MODEL]
    sets = [sums(name, list(asked[name])) for name in names]
    # What each is held against, in the same questions: what it was not asked tells nothing.
    for name in names:
        against = answers[name].against
        sets.append(sums(against, [i for i in asked[name] if i in asked[against]]))
    drawn = resampled(sets, lambda total: split_scores(task, total), seed=seed)
    scores = {}
    for name, its, rival in zip(names, drawn, drawn[len(names) :], strict=False):
        change = differences(rival, its).get(metric) if name != MODEL else None
        scores[name] = Scores(
            count_statuses(task, [rows[name][i] for i in members]),
            estimates(its),
            change,
            len(answers[name].unchanged.intersection(members)),
        )
    return scores
