"""`collamo judge`: predictions files graded by a language model, or two of them compared."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from collamo.evaluation.judge.grading import Grading
from collamo.evaluation.judge.model import JudgeOptions, ModelJudge
from collamo.evaluation.judge.preference import Preference
from collamo.evaluation.judge.rows import rows_of_one, rows_of_two
from collamo.evaluation.report.manifest import versions
from collamo.evaluation.report.page import Report, markdown_table
from collamo.evaluation.score.predictions import READ_STATUSES, batches
from collamo.evaluation.score.rows_file import RowsFile
from collamo.evaluation.statistics import Sums
from collamo.files import file_sha256, write_text

STATUSES = ("scored", "unparsed", "failed", *READ_STATUSES)
ROWS_AT_ONCE = 200  # their answers are waited for together


def judge_predictions(
    path: Path,
    options: JudgeOptions,
    out: Path,
    *,
    other: Path | None = None,
    answers: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
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
    task = Grading(options.rubric) if other is None else Preference(options.rubric)
    rows = rows_of_one(path) if other is None else rows_of_two(path, other)
    counts = Counter(dict.fromkeys(STATUSES, 0))
    sums, squares = Sums(), Sums()
    with (
        ModelJudge(options, answers or out / "answers.jsonl") as judge,
        RowsFile(out / "rows.parquet", task.columns, task.texts) as rows_file,
    ):
        for batch in batches(rows, ROWS_AT_ONCE):
            task.judge(judge, [row for row in batch if row.scorable])
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


def _interval(name: str, sums: Sums, squares: Sums) -> list[float] | None:
    """Return mean ± 1.96 standard errors; None for fewer than two rows.

    ``first_preferred`` is a share of answers, two to a row: those are taken as independent.
    """
    if name == "first_preferred":
        count, mean = sums.totals["decided"], sums.totals["first_named"] / sums.totals["decided"]
        variance = mean * (1 - mean)
    else:
        count, mean = sums.counts[name], sums.totals[name] / sums.counts[name]
        variance = max(0.0, squares.totals[name] / count - mean**2)
    if count < 2:
        return None
    error = 1.96 * math.sqrt(variance / (count - 1))
    return [mean - error, mean + error]


def _manifest(options: JudgeOptions, paths: Sequence[Path]) -> dict[str, Any]:
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


def _markdown(report: Report) -> str:
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
