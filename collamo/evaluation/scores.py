"""From questions and answers to scores: exact match, absolute errors, BLEU, each with its
interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from collamo.evaluation.baselines import TrainStatistics
from collamo.evaluation.statistics import Estimate, bootstrap, ratio
from collamo.evaluation.text import (
    bleu_from_statistics,
    bleu_statistics,
    exact_match,
    parse_number,
)

CAPTION_TASKS = ("caption",)
# The one number a task is judged by, and whether more of it is better.
HIGHER_IS_BETTER = {
    "exact_match": True,
    "bleu": True,
    "mae": False,
    "scaled_mae": False,
    "scaled_error": False,
}


@dataclass(frozen=True)
class Scores:
    """What one set of answers is worth.

    ``questions = scored + unparsed + skipped``: `unparsed` answers hold no number (or no text at
    all), `skipped` questions were not asked (the molecule lacks the only modality allowed).
    ``metrics``:

    - ``exact_match``: share of right answers of all that were asked; unparsed ones are wrong;
    - ``mae`` [unit of the target]: over the parsed answers, only where all rows share one target;
    - ``scaled_mae``: mean of |error| / (train standard deviation of the target), over the parsed
      answers;
    - ``scaled_error``: the same over all numeric questions, an unparsed answer counted as the
      train mean or the most common answer, whichever is further off: silence never pays;
    - ``bleu``: corpus BLEU-4, 0–100, captions only.
    """

    questions: int
    scored: int
    unparsed: int
    skipped: int
    metrics: dict[str, Estimate] = field(default_factory=dict)


def primary_metric(task: str, numeric: bool) -> str:
    """Return the metric a task is judged by: BLEU for captions, exact match for counts and texts,
    else error.

    >>> primary_metric("property_2d", numeric=True)
    'scaled_error'
    """
    if task in CAPTION_TASKS:
        return "bleu"
    return "scaled_error" if numeric and task != "motif_count" else "exact_match"


def score(
    examples: Sequence, answers: Sequence[str | None], train: TrainStatistics, *, seed: int = 0
) -> Scores:
    """Score `answers` (None: not asked) to `examples` (`TaskExample`s), rows aligned.

    Raises
    ------
    ValueError
        When the two differ in length: no row is ever dropped silently.
    """
    if len(examples) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(examples)} questions")
    rows = [_row(e, a, train) for e, a in zip(examples, answers, strict=True) if a is not None]
    unparsed = sum(row.unparsed for row in rows)
    one_target = len({(row.example.task, row.example.target) for row in rows}) == 1
    metrics = {"exact_match": _mean([(row, float(row.right)) for row in rows], seed)}
    numeric = [row for row in rows if row.error is not None or row.scaled_penalised is not None]
    if numeric:
        parsed = [row for row in numeric if row.error is not None]
        if one_target:
            metrics["mae"] = _mean([(row, row.error) for row in parsed], seed)
        scaled = [(row, row.scaled) for row in parsed if row.scaled is not None]
        penalised = [(r, r.scaled_penalised) for r in numeric if r.scaled_penalised is not None]
        metrics["scaled_mae"] = _mean(scaled, seed)
        metrics["scaled_error"] = _mean(penalised, seed)
    captions = [row for row in rows if row.example.task in CAPTION_TASKS]
    if captions:
        metrics["bleu"] = bootstrap(
            [bleu_statistics(row.answer, row.example.answer) for row in captions],
            [row.example.molecule for row in captions],
            bleu_from_statistics,
            seed=seed,
        )
    return Scores(
        questions=len(examples),
        scored=len(rows) - unparsed,
        unparsed=unparsed,
        skipped=len(examples) - len(rows),
        metrics=metrics,
    )


@dataclass(frozen=True)
class _Row:
    """One judged answer; errors are None where they have no meaning."""

    example: object
    answer: str
    right: bool
    unparsed: bool
    error: float | None = None
    scaled: float | None = None
    scaled_penalised: float | None = None


def _row(example, answer: str, train: TrainStatistics) -> _Row:
    numeric = example.value is not None
    right = exact_match(answer, example.answer, numeric)
    if not numeric:
        return _Row(example, answer, right, unparsed=not answer.strip())
    key = (example.task, example.target)
    number = parse_number(answer)
    error = None if number is None else abs(number - example.value)
    # A target without spread in the train split has no scale: its error cannot be averaged with
    # others.
    scale = train.scale.get(key) or None
    if scale is None:
        return _Row(example, answer, right, number is None, error)
    penalised = _silence(example, train) if error is None else error
    scaled = None if error is None else error / scale
    return _Row(example, answer, right, number is None, error, scaled, penalised / scale)


def _silence(example, train: TrainStatistics) -> float:
    """Return the error an unparsed answer is charged with, in the unit of the target."""
    common = parse_number(train.most_common_answer(example.task, example.target))
    guesses = [train.mean[example.task, example.target], common]
    return max(abs(guess - example.value) for guess in guesses if guess is not None)


def _mean(values: Sequence[tuple[_Row, float]], seed: int) -> Estimate:
    return bootstrap(
        [(value, 1.0) for _, value in values],
        [row.example.molecule for row, _ in values],
        ratio,
        seed=seed,
    )
