"""Which of two captions is better, asked in both orders.

A judge that prefers a place to a caption contradicts itself; how often is a score of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from collamo.evaluation.judge.model import ModelJudge
from collamo.evaluation.judge.rows import JudgedRow
from collamo.evaluation.judge.rubric import Rubric, read_better
from collamo.evaluation.statistics import Sums

PAIR_SCORES = ("a_preferred", "a_wins", "b_wins", "ties", "swayed")
POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}  # of the caption that stands first


class Preference:
    """Two predictions for one reference, in both orders."""

    texts = ("status", "prediction", "other", "reference", "answer", "swapped_answer")
    # Of answers that decide: how many there are, and how many name the first.
    columns = (*PAIR_SCORES, "decided", "first_named")

    def __init__(self, rubric: Rubric):
        self.rubric = rubric

    def judge(self, judge: ModelJudge, rows: Sequence[JudgedRow]) -> None:
        """Fill in status, answers and outcome of rows that can be judged."""
        asked = [row for row in rows if not row.status]
        for row in rows:
            if row.status == "empty_prediction":
                first_says, second_says = (bool(t.strip()) for t in (row.prediction, row.other))
                row.values = _outcome((1 + first_says - second_says) / 2)
        questions = [
            self.rubric.messages(
                "compare",
                molecule=row.molecule_shown,
                reference=row.reference,
                first=first,
                second=second,
            )
            for row in asked
            for first, second in ((row.prediction, row.other), (row.other, row.prediction))
        ]
        answers = iter(judge.ask(questions, read_better))
        for row, one, swapped in zip(asked, answers, answers, strict=False):
            row.answer, row.swapped_answer = one.text, swapped.text
            if one.value is not None and swapped.value is not None:
                row.status, row.values = "scored", self._values(one.value, swapped.value)
            else:
                row.status = "failed" if "failed" in (one.status, swapped.status) else "unparsed"

    @staticmethod
    def _values(one: str, swapped: str) -> dict[str, float]:
        decided = [better for better in (one, swapped) if better != "tie"]
        return _outcome((POINTS[one] + 1 - POINTS[swapped]) / 2) | {
            "swayed": float(one == swapped != "tie"),
            "decided": float(len(decided)),
            "first_named": float(decided.count("first")),
        }

    def scores(self, sums: Sums) -> dict[str, float]:
        """Return the shares of rows, and of decided answers those that name the first."""
        scores = sums.means(PAIR_SCORES)
        if sums.totals.get("decided"):
            scores["first_preferred"] = sums.totals["first_named"] / sums.totals["decided"]
        return scores


def _outcome(points: float) -> dict[str, float]:
    return {
        "a_preferred": points,
        "a_wins": float(points > 0.5),
        "b_wins": float(points < 0.5),
        "ties": float(points == 0.5),
    }
