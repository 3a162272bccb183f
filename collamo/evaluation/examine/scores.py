"""Answers to the questions of a split, scored as a file of predictions is, and scaled errors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from collamo.evaluation.entities.extractor import EntityExtractor
from collamo.evaluation.entities.hallucination import STATUSES
from collamo.evaluation.examine.baselines import TrainStatistics
from collamo.evaluation.score import quantities
from collamo.evaluation.score.predictions import (
    COLUMNS,
    JUDGING,
    READING,
    Judge,
    Options,
    PredictionRow,
    task_scores,
)
from collamo.evaluation.score.text import exact_match, parse_number
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
PROPERTY_SCORES = ("exact", "scaled_error", "scaled_mae", "parsed")
#: Statistics of the rows of a split: those of its tasks' kinds, and what they have in common.
SPLIT_COLUMNS = tuple(
    dict.fromkeys([*PROPERTY_SCORES, *(name for kind in KINDS.values() for name in COLUMNS[kind])])
)
NOT_ASKED = "not_asked"  # the molecule has none of the modalities that may be seen
#: Without --tokenizer: needs no file, and is the same for every checkpoint.
TOKENIZER = "13a"


def primary_metric(task: str, numeric: bool) -> str:
    """Return the score a task is judged by: BLEU-4, else exact match, or for numbers the error.

    >>> primary_metric("property_2d", numeric=True)
    'scaled_error'
    """
    if KINDS[task] == "captions":
        return "bleu4"
    return "scaled_error" if numeric and KINDS[task] == "property" else "exact"


class SplitJudge:
    """Judges answers to the questions of a split: rows in = rows out, each in one count.

    Parameters
    ----------
    examples
        The questions (`TaskExample`).
    train
        For the penalty of answers without a number, and the scale of errors.
    tokenizer, wordnet
        Of captions and names, as in `predictions.Options`.
    entities
        Of captions, for CHARM.
    smiles
        Of each molecule, for what CHARM forgives.

    Attributes
    ----------
    about
        What the manifest says of the texts' tokens.
    absent
        Each score that cannot be given, with its reason.
    """

    def __init__(
        self,
        examples: Sequence,
        train: TrainStatistics,
        tokenizer: str = TOKENIZER,
        wordnet: Path | None = None,
        entities: EntityExtractor | None = None,
        smiles: Mapping[int, str] | None = None,
    ):
        self.examples, self._train, self._smiles = examples, train, smiles or {}
        self.about: dict[str, object] = {}
        self.absent: dict[str, str] = {}
        texts = {
            "captions": {"tokenizer": tokenizer, "wordnet": wordnet, "entities": entities},
            "iupac": {"tokenizer": tokenizer, "wordnet": wordnet},
        }
        groups = defaultdict(list)
        for index, example in enumerate(examples):
            one = (example.target, example.value is not None)  # a property has a unit of its own
            groups[example.task, *(one if KINDS[example.task] == "property" else ())].append(index)
        self._groups = [
            (self._judge_of(examples[rows[0]], texts), rows) for rows in groups.values()
        ]

    def _judge_of(self, example, texts: Mapping[str, Mapping]) -> Judge | None:
        kind, key = KINDS[example.task], (example.task, example.target)
        if kind != "property":
            judge = Judge(Options(kind, **texts.get(kind, {})))
            self.about |= {name: of for name, of in judge.about.items() if name != "task"}
            self.absent |= judge.absent
            return judge
        if example.value is None:
            return None
        if key not in self._train.mean:
            self.absent[f"{example.target}: mae_penalised, scaled"] = (
                "the train split has no such question"
            )
        mean = {example.target: self._train.mean[key]} if key in self._train.mean else {}
        return Judge(Options(kind, unit=example.unit, train_mean=mean))

    def judge(self, answers: Sequence[str | None]) -> list[PredictionRow]:
        """Return a judged row per question; None is an answer that was not asked for.

        Raises
        ------
        ValueError
            When the two differ in number: no row is ever dropped silently.
        """
        if len(answers) != len(self.examples):
            raise ValueError(f"{len(answers)} answers for {len(self.examples)} questions")
        rows = [
            PredictionRow(
                number,
                answer or "",
                example.answer,
                example.target,
                self._smiles.get(example.molecule),
            )
            for number, (example, answer) in enumerate(zip(self.examples, answers, strict=True), 1)
        ]
        for row, answer in zip(rows, answers, strict=True):
            if answer is None:
                row.status = NOT_ASKED
            elif not answer.strip():
                row.status = "empty_prediction"
        for judge, members in self._groups:
            if judge is not None:
                judge.judge([rows[i] for i in members])
                self.absent |= judge.absent if judge.options.task == "iupac" else {}
            for i in members:
                self._complete(rows[i], self.examples[i])
        return rows

    def _complete(self, row: PredictionRow, example) -> None:
        """Add what a split knows more of a property than a file: exact match, scaled errors."""
        if KINDS[example.task] != "property" or row.status == NOT_ASKED:
            return
        if example.value is None:
            row.values = {"exact": float(exact_match(row.prediction, row.reference, numeric=False))}
            row.status = row.status or "scored"
            return
        error = row.values.get("mae")
        row.values["exact"] = float(error == 0)
        # A target without spread in the train split has no scale: its error cannot be averaged
        # with others.
        scale = self._train.scale.get((example.task, example.target))
        if scale:
            if error is not None:
                row.values["scaled_mae"] = error / scale
            penalty = _silence(example, self._train) if error is None else error
            row.values["scaled_error"] = penalty / scale


def _silence(example, train: TrainStatistics) -> float:
    """Return the error an unparsed answer is charged with, in the unit of the target."""
    true = quantities.parse_quantity(example.answer, example.unit)
    common = parse_number(train.most_common_answer(example.task, example.target))
    guesses = [train.mean[example.task, example.target], common]
    return max(abs(guess - true) for guess in guesses if guess is not None)


def split_scores(task: str, sums: Sums) -> dict[str, float]:
    """Return the scores of a task from the sums of its rows; one without rows is left out.

    Captions, names and motifs as in a predictions file. Properties together, whose units do not add
    up: ``exact``; ``scaled_mae``, the mean of |error| / (standard deviation of the target in the
    train split) over what parsed; ``scaled_error``, the same over all, an answer without a number
    counted as the train mean or the most common answer, whichever is further off, so that silence
    never pays; ``parsed``.
    """
    if KINDS[task] != "property":
        return task_scores(KINDS[task], sums)
    return {name: mean for name in PROPERTY_SCORES if (mean := sums.mean(name)) is not None}


def target_scores(task: str, unit: str | None, sums: Sums) -> dict[str, float]:
    """Return the scores of one target of a task; a property's errors are in its unit (energies in
    Hartree and eV too)."""
    if KINDS[task] != "property":
        return split_scores(task, sums)
    return quantities.property_scores(sums, unit) | split_scores(task, sums)


def count_statuses(task: str, rows: Sequence[PredictionRow]) -> dict[str, int]:
    """Return ``rows`` and what became of them; all other counts add up to it."""
    kind = KINDS[task]
    names = ("scored", *(name for name in READING if name == "empty_prediction"), *JUDGING[kind])
    found = Counter(row.status for row in rows)
    counts = {name: found.pop(name, 0) for name in (*names, NOT_ASKED)}
    return {"rows": len(rows), **counts, **found}


def count_entities(rows: Sequence[PredictionRow]) -> dict[str, int]:
    """Return ``rows`` and what became of their entities; all other counts add up to it."""
    found = Counter(row.entity_status for row in rows)
    return {"rows": len(rows), **{name: found[name] for name in STATUSES}}


def unit_sums(
    rows: Sequence[PredictionRow], units: Sequence, order: Sequence, columns: Sequence[str]
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
