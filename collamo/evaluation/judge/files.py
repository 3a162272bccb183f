"""Predictions files before a judge: captions graded by a rubric, or which of two files is better.

A pair of captions is shown in both orders. A judge that prefers a place to a caption contradicts
itself; how often is a score of its own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from collamo.errors import UsageError
from collamo.evaluation.judge.model import JudgeOptions, ModelJudge
from collamo.evaluation.judge.rubric import Rubric, read_better
from collamo.evaluation.report.page import markdown_table
from collamo.evaluation.score.predictions import (
    READING,
    PredictionRow,
    RowsFile,
    batches,
    read_predictions,
    versions,
)
from collamo.evaluation.statistics import Sums
from collamo.files import file_sha256, write_text

STATUSES = ("scored", "unparsed", "failed", *READING)
PAIR_SCORES = ("a_preferred", "a_wins", "b_wins", "ties", "swayed")
POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}  # of the caption that stands first
ROWS_AT_ONCE = 200  # their answers are waited for together


def judge_predictions(
    path: Path,
    options: JudgeOptions,
    out: Path,
    *,
    other: Path | None = None,
    answers: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """Have a predictions file judged, or compared with `other`; write the report into `out`.

    Writes ``report.json``, ``report.md``, ``rows.parquet`` and, unless `answers` names another
    file, ``answers.jsonl``. Returns the report: ``scores`` (means over scored rows), ``intervals``
    (95 %, ±1.96 standard errors), ``counts`` (``rows``, and what became of them), ``usage`` and
    ``manifest``.

    One file: ``scores`` has the mean of each criterion of the rubric. An empty prediction is given
    the lowest grade unasked. Two files of the same references, a and b, each pair in both orders:

    - ``a_preferred``: mean of 1 where a is better, ½ for a tie, 0 where b is, over both orders;
      ``a_wins``, ``b_wins`` and ``ties`` are shares of rows by that mean;
    - ``swayed``: share of rows where both answers name the same place, so that the order decided;
    - ``first_preferred``: of all answers but ties, the share that names the first: ½ without bias.

    An empty prediction loses unasked against one that is not, and two of them are a tie; neither is
    in ``swayed`` or ``first_preferred``. Rows without a usable reference are only counted.
    """
    out.mkdir(parents=True, exist_ok=True)
    task = _Scoring(options.rubric) if other is None else _Comparing(options.rubric)
    rows = _single(path) if other is None else _paired(path, other)
    counts = Counter(dict.fromkeys(STATUSES, 0))
    sums, squares = Sums(), Sums()
    with (
        ModelJudge(options, answers or out / "answers.jsonl") as judge,
        RowsFile(out / "rows.parquet", task.columns, task.texts) as rows_file,
    ):
        for batch in batches(rows, ROWS_AT_ONCE):
            task.judge(judge, [row for row in batch if row.status in (None, "empty_prediction")])
            for row in batch:
                counts[row.status] += 1
                sums.add(row.values)
                squares.add({name: value**2 for name, value in row.values.items()})
            rows_file.write(batch)
            if progress is not None:
                progress(len(batch))
    scores = task.scores(sums)
    report = {
        "scores": scores,
        "intervals": {name: _interval(name, sums, squares) for name in scores},
        "counts": {"rows": counts.total(), **counts},
        "usage": judge.costs(),
        "manifest": _manifest(options, [path] if other is None else [path, other]),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_text(out / "report.json", text + "\n")
    write_text(out / "report.md", _markdown(report))
    return report


@dataclass
class JudgedRow(PredictionRow):
    """A row, the prediction of the other file where two are compared, and what the judge said."""

    other: str = ""
    answer: str = ""
    swapped_answer: str = ""


def _single(path: Path) -> Iterator[JudgedRow]:
    for row in read_predictions(path, "captions"):
        yield JudgedRow(**vars(row))


def _paired(path: Path, other: Path) -> Iterator[JudgedRow]:
    """Yield the rows of two files; a fault of either keeps both from being judged."""
    for a, b in zip_longest(
        read_predictions(path, "captions"), read_predictions(other, "captions")
    ):
        if a is None or b is None:
            longer, number = (path, a.number) if b is None else (other, b.number)
            raise UsageError(f"{path} and {other} differ in length: only {longer} has row {number}")
        row = JudgedRow(**vars(a), other=b.prediction)
        faults = [each.status for each in (a, b) if each.status not in (None, "empty_prediction")]
        if faults:
            row.status = faults[0]
        elif a.reference != b.reference:
            raise UsageError(f"{path} and {other} differ in the reference of row {row.number}")
        else:
            row.status = a.status or b.status
        yield row


class _Scoring:
    """Every prediction by itself, by the criteria of a rubric."""

    texts = ("status", "prediction", "reference", "answer")

    def __init__(self, rubric: Rubric):
        self.rubric, self.columns = rubric, tuple(rubric.criteria)

    def judge(self, judge: ModelJudge, rows: Sequence[JudgedRow]) -> None:
        asked = [row for row in rows if row.status is None]
        for row in rows:
            if row.status == "empty_prediction":
                row.values = dict.fromkeys(self.columns, float(self.rubric.lowest))
        questions = [
            self.rubric.messages(
                "score",
                molecule=_molecule(row),
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
        return means(sums, self.columns)


class _Comparing:
    """Two predictions for one reference, in both orders."""

    texts = ("status", "prediction", "other", "reference", "answer", "swapped_answer")
    # Of answers that are no tie: how many there are, and how many name the first.
    columns = (*PAIR_SCORES, "decided", "first_named")

    def __init__(self, rubric: Rubric):
        self.rubric = rubric

    def judge(self, judge: ModelJudge, rows: Sequence[JudgedRow]) -> None:
        asked = [row for row in rows if row.status is None]
        for row in rows:
            if row.status == "empty_prediction":
                said = [bool(text.strip()) for text in (row.prediction, row.other)]
                row.values = _outcome((1 + said[0] - said[1]) / 2)
        questions = [
            self.rubric.messages(
                "compare",
                molecule=_molecule(row),
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
            states = (one.status, swapped.status)
            row.status = next((s for s in ("failed", "unparsed") if s in states), "scored")
            if row.status == "scored":
                row.values = self._values(one.value, swapped.value)

    @staticmethod
    def _values(one: str, swapped: str) -> dict[str, float]:
        decided = [better for better in (one, swapped) if better != "tie"]
        return _outcome((POINTS[one] + 1 - POINTS[swapped]) / 2) | {
            "swayed": float(one == swapped != "tie"),
            "decided": float(len(decided)),
            "first_named": float(decided.count("first")),
        }

    def scores(self, sums: Sums) -> dict[str, float]:
        scores = means(sums, PAIR_SCORES)
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


def _molecule(row: JudgedRow) -> str:
    return row.molecule or "not given"


def means(sums: Sums, names: Sequence[str]) -> dict[str, float]:
    """Return the mean of each column over the rows that have it; one without rows is left out."""
    return {name: mean for name in names if (mean := sums.mean(name)) is not None}


def _interval(name: str, sums: Sums, squares: Sums) -> list[float] | None:
    """Return mean ± 1.96 standard errors; None for fewer than two rows.

    ``first_preferred`` is a share of answers, two to a row: those are taken as independent.
    """
    if name == "first_preferred":
        count, mean = sums.totals["decided"], sums.totals["first_named"] / sums.totals["decided"]
        variance = mean * (1 - mean)
    else:
        count, mean = sums.counts[name], sums.mean(name)
        variance = max(0.0, squares.totals[name] / count - mean**2)
    if count < 2:
        return None
    error = 1.96 * math.sqrt(variance / (count - 1))
    return [mean - error, mean + error]


def _manifest(options: JudgeOptions, paths: Sequence[Path]) -> dict:
    rubric = options.rubric
    return {
        "predictions": [path.name for path in paths],
        "predictions_sha256": [file_sha256(path) for path in paths],
        "judge": options.url,
        "judge_model": options.model,
        "prompt": rubric.name,
        "prompt_sha256": rubric.sha256,
        "scale": [rubric.lowest, rubric.highest],
        "parameters": dict(rubric.parameters),
        "reasks": options.reasks,
        "prices_per_1k_tokens": options.prices,
        "versions": versions(),
    }


def _markdown(report: dict) -> str:
    def table(title: str, header: list[str], rows: Mapping[str, object]) -> list[str]:
        lines = [[name, str(value)] for name, value in rows.items()]
        return [f"## {title}", "", *markdown_table(header, lines), ""]

    scores = {}
    for name, value in report["scores"].items():
        interval = report["intervals"][name]
        ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        scores[name] = f"{value:.3f}{ends}"
    usage = {
        f"{what}, {when}": count
        for when, tokens in report["usage"].items()
        for what, count in tokens.items()
    }
    manifest = {name: value for name, value in report["manifest"].items() if value is not None}
    return "\n".join(
        [
            "# Captions judged by a language model",
            "",
            *table("Scores", ["score", "mean [95 %]"], scores),
            *table("Rows", ["rows", "count"], report["counts"]),
            *table("Tokens and cost", ["what", "how much"], usage),
            *table("How it was judged", ["what", "which"], manifest),
        ]
    )
