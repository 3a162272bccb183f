"""What the numbers say: verdicts, report.json, report.md and the table on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from collamo.evaluation.scores import HIGHER_IS_BETTER, Scores, primary_metric
from collamo.evaluation.statistics import LEVEL, RESAMPLES, Estimate
from collamo.evaluation.text import BLEU_TOKENISATION

MODEL = "CoLLaMo"
WRONG_MOLECULE = "wrong molecule"
MOST_COMMON = "most common answer"
TRAIN_MEDIAN = "train median"
# The two opponents of every verdict; the median is a third, stronger one for absolute errors,
# reported beside them.
BASELINES = (MOST_COMMON, WRONG_MOLECULE)
METRIC_NAMES = {
    "exact_match": "exact match ↑",
    "scaled_error": "scaled error ↓",
    "scaled_mae": "scaled MAE of parsed ↓",
    "mae": "MAE ↓",
    "bleu": "BLEU-4 ↑",
}


@dataclass(frozen=True)
class Verdict:
    """Whether the model beats its opponents on one task: interval against interval."""

    task: str
    metric: str
    beaten: dict[str, bool]
    sentence: str

    @property
    def beats_both(self) -> bool:
        """Return whether both baselines are beaten with non-overlapping 95 % intervals."""
        return all(self.beaten[name] for name in BASELINES)


def judge(task: str, numeric: bool, scores: Mapping[str, Scores]) -> Verdict:
    """Return the verdict on `task` from the scores of the model and of its opponents (by variant
    name).

    An opponent is beaten when the model's 95 % interval lies wholly on the better side of the
    opponent's.
    """
    metric = primary_metric(task, numeric)
    mine = _estimate(scores[MODEL], metric)
    relations = {
        name: _relation(mine, _estimate(scores[name], metric), metric)
        for name in (*BASELINES, TRAIN_MEDIAN)
        if name in scores
    }
    beaten = {name: relation == "beats" for name, relation in relations.items()}
    return Verdict(task, metric, beaten, _sentence(task, metric, mine, relations, scores))


def _estimate(scores: Scores, metric: str) -> Estimate:
    return scores.metrics.get(metric, Estimate(None, None, None, 0, 0))


def _relation(mine: Estimate, other: Estimate, metric: str) -> str:
    """Return how the model stands to an opponent: beats, overlaps, loses or unknown."""
    if mine.value is None or other.value is None:
        return "unknown"
    better, worse = mine.above(other), mine.below(other)
    if not HIGHER_IS_BETTER[metric]:
        better, worse = worse, better
    return "beats" if better else "loses" if worse else "overlaps"


_PHRASES = {
    "beats": "beats {}",
    "overlaps": "does NOT clearly beat {} (the intervals overlap)",
    "loses": "is WORSE than {}",
    "unknown": "cannot be compared with {} (nothing to score)",
}


def _sentence(task, metric, mine, relations, scores) -> str:
    parts = [
        _PHRASES[relation].format(f"the {name} baseline, {_estimate(scores[name], metric)}")
        for name, relation in relations.items()
    ]
    both = all(relations[name] == "beats" for name in BASELINES)
    head = "beats both baselines" if both else "does NOT beat both baselines"
    return f"{task}: {head}. {METRIC_NAMES[metric]} {mine}: the model {'; '.join(parts)}."


@dataclass(frozen=True)
class Report:
    """Everything an evaluation found.

    ``by_task[task][variant]`` and ``by_target[task][target][variant]`` are `Scores`; ``about``
    says what was evaluated (checkpoint, data, split, seed, counts).
    """

    about: dict
    verdicts: list[Verdict]
    by_task: dict[str, dict[str, Scores]]
    by_target: dict[str, dict[str, dict[str, Scores]]]
    examples: list[dict]

    def to_json(self) -> dict:
        """Return the report as plain JSON values."""
        return {
            "about": self.about,
            "verdicts": [{**asdict(v), "beats_both": v.beats_both} for v in self.verdicts],
            "by_task": _plain(self.by_task),
            "by_target": _plain(self.by_target),
            "examples": self.examples,
        }

    def save(self, folder: Path) -> None:
        """Write ``report.json`` and ``report.md`` into `folder`, each complete or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False)
        write_whole(folder / "report.json", text + "\n")
        write_whole(folder / "report.md", self.markdown())

    def markdown(self) -> str:
        """Return the report as Markdown: verdicts first, then the tables, then how it was
        measured."""
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        lines = ["# Evaluation", "", about, "", "## Verdicts", ""]
        lines += [f"- {'✓' if v.beats_both else '✗'} {v.sentence}" for v in self.verdicts]
        lines += ["", "## By task", ""]
        for task, variants in self.by_task.items():
            lines += [f"### {task}", "", *markdown_table(*task_table(variants)), ""]
        lines += ["## By target", "", *markdown_table(*target_table(self.by_target)), ""]
        lines += ["## Some answers", "", *markdown_table(*_example_table(self.examples)), ""]
        return "\n".join([*lines, _HOW])

    def show(self, console) -> None:
        """Print the verdicts and the table of each task on a rich console."""
        from rich.table import Table
        from rich.text import Text

        for task, variants in self.by_task.items():
            header, rows = task_table(variants)
            table = Table(title=task, title_justify="left")
            for name in header:
                table.add_column(name)
            for row in rows:
                table.add_row(*map(Text, row))  # a Text is no markup: "[0.1, 0.2]" stays
            console.print(table)
        for verdict in self.verdicts:
            mark = Text("✓ ", "green") if verdict.beats_both else Text("✗ ", "red")
            console.print(mark + Text(verdict.sentence))


_HOW = f"""## How this was measured

Every value is followed by its {LEVEL:.0%} interval: {RESAMPLES} bootstrap resamples of molecules
(not of rows: questions about one molecule are not independent). An opponent counts as beaten only
when the two intervals do not overlap.

- exact match: the right number, or the same text up to white space; an unparsed answer is wrong.
- scaled error: |error| divided by the train split's standard deviation of the target, so that
  targets with different units can be averaged. An unparsed answer is counted as the train mean or
  as the most common answer, whichever is further off. Always answering the train mean would score
  about 0.8 on normally distributed values.
- scaled MAE of parsed, MAE: over the answers that hold a number; look at the unparsed column
  beside them.
- BLEU: {BLEU_TOKENISATION}.
- {MOST_COMMON}: the most frequent answer of the train split, per target. {TRAIN_MEDIAN}: the best
  constant for absolute errors, a stronger opponent than the issue asks for. {WRONG_MOLECULE}: the
  same model and question, another molecule of the same split. 1d, 2d, 3d only: the same model
  given one modality.
"""


def task_table(variants: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of one task: a row per variant, a column per metric."""
    present = [m for m in METRIC_NAMES if any(m in s.metrics for s in variants.values())]
    header = ["answers by", *(METRIC_NAMES[m] for m in present), "questions", "unparsed", "skipped"]
    rows = [
        [
            name,
            *(str(_estimate(scores, metric)) for metric in present),
            *(str(n) for n in (scores.questions, scores.unparsed, scores.skipped)),
        ]
        for name, scores in variants.items()
    ]
    return header, rows


def target_table(by_target: Mapping) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table over all targets: the model beside the two baselines."""
    names = (MODEL, *BASELINES)
    header = ["task", "target", "questions", "unparsed"]
    header += [f"{metric}, {name}" for metric in ("exact match", "MAE") for name in names]
    rows = []
    for task, targets in by_target.items():
        for target, variants in targets.items():
            mine = variants[MODEL]
            cells = [
                _value(_estimate(variants[name], metric))
                for metric in ("exact_match", "mae")
                for name in names
            ]
            rows.append([task, target, str(mine.questions), str(mine.unparsed), *cells])
    return header, rows


def _value(estimate: Estimate) -> str:
    return "–" if estimate.value is None else f"{estimate.value:.3g}"


def _example_table(examples: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    header = ["molecule", "question", "truth", "answer", "answer to a wrong molecule"]
    keys = ("smiles", "question", "truth", MODEL, WRONG_MOLECULE)
    return header, [[str(example.get(key, "")) for key in keys] for example in examples]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; bars and line breaks in cells are made harmless."""

    def line(cells):
        escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(escaped)} |"

    return [line(header), "|" + " --- |" * len(header), *map(line, rows)]


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return asdict(value)


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` through a neighbour and a rename: a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
