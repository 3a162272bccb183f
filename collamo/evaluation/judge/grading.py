"""Captions graded one by one, by the criteria of a rubric."""

from __future__ import annotations

from collections.abc import Sequence

from collamo.evaluation.judge.model import ModelJudge
from collamo.evaluation.judge.rows import JudgedRow
from collamo.evaluation.judge.rubric import Rubric
from collamo.evaluation.statistics import Sums


class Grading:
    """Every prediction by itself, by the criteria of a rubric."""

    texts = ("status", "prediction", "reference", "answer")

    def __init__(self, rubric: Rubric):
        self.rubric, self.columns = rubric, tuple(rubric.criteria)

    def judge(self, judge: ModelJudge, rows: Sequence[JudgedRow]) -> None:
        """Fill in status, answer and grades of rows that can be judged."""
        asked = [row for row in rows if not row.status]
        for row in rows:
            if row.status == "empty_prediction":
                row.values = dict.fromkeys(self.columns, float(self.rubric.lowest))
        questions = [
            self.rubric.messages(
                "score",
                molecule=row.molecule_shown,
                reference=row.reference,
                prediction=row.prediction,
            )
            for row in asked
        ]
        answers = judge.ask(questions, self.rubric.read_scores)
        for row, answer in zip(asked, answers, strict=True):
            row.status, row.answer = answer.status, answer.text
            row.values = {name: float(grade) for name, grade in (answer.value or {}).items()}

    def scores(self, sums: Sums) -> dict[str, float]:
        """Return the mean grade by each criterion."""
        return sums.means(self.columns)
