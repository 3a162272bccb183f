"""Answers to the questions of a split, scored as a file of predictions is, with scaled errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from collamo.data.numbers import parse_number
from collamo.data.tasks import TaskExample
from collamo.evaluation.entities.extractor import EntityExtractor
from collamo.evaluation.examine.baselines import TrainStatistics
from collamo.evaluation.examine.scores import KINDS, LARGEST_SCALED_ERROR, NOT_ASKED
from collamo.evaluation.score.predictions import PredictionRow
from collamo.evaluation.score.quantities import parse_quantity
from collamo.evaluation.score.scorer import ScoreOptions, Scorer
from collamo.evaluation.score.text import exact_match

#: Without --tokenizer: needs no file, and is the same for every checkpoint.
TOKENIZER = "13a"


class SplitScorer:
    """Scores answers to the questions of a split: rows in = rows out, each in one count.

    Parameters
    ----------
    examples
        The questions (`TaskExample`).
    train
        For the penalty of answers without a number, and the scale of errors.
    tokenizer, wordnet
        Of captions and names, as in `ScoreOptions`.
    entities
        Of captions, for CHARM.
    smiles
        Of each molecule, for what CHARM forgives.

    Attributes
    ----------
    about
        The manifest's entries on tokenisation and entities.
    absent
        Each score that cannot be given, with its reason.
    """

    def __init__(
        self,
        examples: Sequence[TaskExample],
        train: TrainStatistics,
        tokenizer: str = TOKENIZER,
        wordnet: Path | None = None,
        entities: EntityExtractor | None = None,
        smiles: Mapping[int, str] | None = None,
    ):
        self.examples, self._train, self._smiles = examples, train, smiles or {}
        self.about: dict[str, object] = {}
        self.absent: dict[str, str] = {}
        self._tokenizer, self._wordnet, self._entities = tokenizer, wordnet, entities
        groups: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        for index, example in enumerate(examples):
            # A property has a unit of its own.
            own = (example.target, example.value is not None)
            groups[example.task, *(own if KINDS[example.task] == "property" else ())].append(index)
        self._groups = [(self._scorer(examples[rows[0]]), rows) for rows in groups.values()]

    def _scorer(self, example: TaskExample) -> Scorer | None:
        """Return the scorer of a group of questions, None for a property that is text."""
        kind, key = KINDS[example.task], (example.task, example.target)
        if kind != "property":
            scorer = Scorer(self._options(kind))
            self.about |= {name: entry for name, entry in scorer.about.items() if name != "task"}
            self.absent |= scorer.absent
            return scorer
        if example.value is None:
            return None
        if key not in self._train.mean:
            self.absent[f"{example.target}: mae_penalised, scaled"] = (
                "the train split has no such question"
            )
        mean = {example.target: self._train.mean[key]} if key in self._train.mean else {}
        return Scorer(ScoreOptions(kind, unit=example.unit, train_mean=mean))

    def _options(self, kind: str) -> ScoreOptions:
        if kind == "captions":
            return ScoreOptions(kind, self._tokenizer, self._wordnet, entities=self._entities)
        if kind == "iupac":
            return ScoreOptions(kind, self._tokenizer, self._wordnet)
        return ScoreOptions(kind)

    def score(self, answers: Sequence[str | None]) -> list[PredictionRow]:
        """Return a scored row per question; None is an answer that was not asked for.

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
        for scorer, members in self._groups:
            if scorer is not None:
                scorer.score([rows[i] for i in members])
                self.absent |= scorer.absent if scorer.options.task == "iupac" else {}
            for i in members:
                self._complete(rows[i], self.examples[i])
        return rows

    def _complete(self, row: PredictionRow, example: TaskExample) -> None:
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
                row.values["scaled_mae"] = min(error / scale, LARGEST_SCALED_ERROR)
            penalty = _silence(example, self._train) if error is None else error
            row.values["scaled_error"] = min(penalty / scale, LARGEST_SCALED_ERROR)


def _silence(example: TaskExample, train: TrainStatistics) -> float:
    """Return the error an unparsed answer is charged with, in the unit of the target.

    An example with a value has a number in its answer.
    """
    true = parse_quantity(example.answer, example.unit)
    assert true is not None, example
    common = parse_number(train.most_common_answer(example.task, example.target))
    guesses = [train.mean[example.task, example.target], common]
    return max(abs(guess - true) for guess in guesses if guess is not None)
