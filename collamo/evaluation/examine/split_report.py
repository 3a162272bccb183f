"""The page of an examined split: verdicts, what the model reads, scores, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collamo.evaluation.examine.reliance import (
    ALONE,
    MODEL,
    SAME_SIZE,
    SCATTERED,
    VOLUME_PER_ATOM,
)
from collamo.evaluation.examine.reliance import WRONG_MOLECULE as WRONG
from collamo.evaluation.examine.scores import LARGEST_SCALED_ERROR
from collamo.evaluation.examine.verdicts import (
    BASELINES,
    MOST_COMMON,
    TAKEN_AWAY,
    TRAIN_MEDIAN,
    dependence,
    signed,
)
from collamo.evaluation.report.charts import GREY, INK, Interval, Panel, intervals
from collamo.evaluation.report.manifest import how_measured, not_scored
from collamo.evaluation.report.page import (
    Page,
    Picture,
    Report,
    Section,
    metric_name,
    write_report,
)
from collamo.evaluation.score.shortfalls import shortfalls_section
from collamo.evaluation.statistics import LEVEL, RESAMPLES, Estimate

if TYPE_CHECKING:
    from rich.console import Console

_WORDS = {"worse": "#c4501b", "no clear change": GREY, "better": "#2a7d3f"}
_MINE = "#0b5cad"
# What a row of the tables by task shows, of those that the task has.
_SHOWN = (
    *("bleu2", "bleu4", "rougeL", "meteor", "exact", "opsin_match"),
    *("scaled_error", "mae", "parsed"),
)
_COUNTING = (
    "Every question is in exactly one count of its task. Empty, unparsed and ambiguous answers, "
    "and numbers in a unit that does not convert, stay in the scores as wrong ones; a question is "
    "not asked where the molecule has nothing that may be seen."
)


def write_split_report(report: Report, sections: Sequence[Section], out: Path) -> None:
    """Write the report of a split into `out`; `sections` (the diagnosis) follow the verdicts."""
    about = report["manifest"]
    title = f"Evaluation on the {about['split']} split"
    asked = f"{about['questions']} questions on {about['molecules']} molecules."
    page = Page(title, f"{asked} {_COUNTING}", [*_verdicts(report), *sections, *_tables(report)])
    write_report(report, page, out)


def show(report: Report, console: Console) -> None:
    """Print the table of each task and the verdicts on a rich console."""
    from rich.table import Table
    from rich.text import Text

    for task in report["variants"]:
        header, rows = _task_table(report, task)
        table = Table(title=task, title_justify="left")
        for name in header:
            table.add_column(name)
        for row in rows:
            table.add_row(*map(Text, row))  # rich would take "[0.1, 0.2]" for markup
        console.print(table)
    for verdict in report["verdicts"]:
        mark = Text("✓ ", "green") if verdict["beats_both"] else Text("✗ ", "red")
        console.print(mark + Text(verdict["sentence"]))
        if verdict["reading"]:
            console.print(Text(f"  {verdict['reading']}"))


def _verdicts(report: Report) -> list[Section]:
    points = [f"{'✓' if v['beats_both'] else '✗'} {v['sentence']}" for v in report["verdicts"]]
    readings = [v["reading"] for v in report["verdicts"] if v["reading"]]
    if not readings:
        return [Section("Verdicts", points=points)]
    chart = _reliance_chart(report)
    taken = _taken_away(report["manifest"]["same_size_pairing"])
    return [
        Section("Verdicts", points=points),
        Section("Does it read the molecule?", points=readings, pictures=[chart]),
        Section("What was taken away", _PAIRED, taken, sub=True),
    ]


_PAIRED = (
    "The same questions were asked again with less of the molecule, or with another one. Changes "
    "are against the model with everything, with the 95 % interval of paired resamples of "
    "molecules; “clearly” means that it excludes zero. Where a molecule lacks the view that is "
    "taken away nothing changes, and the model's answer stands (column “unchanged”)."
)


def _taken_away(pairing: Mapping[str, int]) -> list[str]:
    alone = pairing["nearest_size"]
    return [
        f"{SAME_SIZE}: another molecule with as many atoms, never itself or a duplicate; "
        f"{pairing['same_size']} of {pairing['molecules']} molecules have one, {alone} are alone "
        "in their size and get one of the nearest, at most "
        f"{pairing['largest_difference']} atoms away.",
        "without 1d, without 2d, without 3d: that view is removed.",
        f"{SCATTERED}: every atom at a random place in a ball of {VOLUME_PER_ATOM:g} Å³ per atom: "
        "nothing of the conformer is left, so no rotation of it matters.",
        "Φ2d zeroed, Φ3d zeroed, both: the attention over atoms goes without that bias, and the "
        "molecule is as it was. Only this shows that a bias is used; that it varies does not.",
        "Φ2d zeroed without 3d, Φ3d zeroed without 2d: one bias can stand in for the other, so "
        "each is also zeroed where the other's view is gone. The change is against that view gone.",
        "1d only, 2d only, 3d only: that view alone (the paper's Table 7 has 1D alone).",
        f"{WRONG}: any other molecule of the split.",
    ]


def _reliance_chart(report: Report) -> Picture:
    panels = []
    for verdict in report["verdicts"]:
        task, metric = verdict["task"], verdict["metric"]
        variants = report["variants"][task]
        names = [MODEL, *TAKEN_AWAY, *ALONE, WRONG, MOST_COMMON, TRAIN_MEDIAN]
        lines = [
            _interval(name, variants[name], metric)
            for name in names
            if name in variants and metric in variants[name]["metrics"]
        ]
        if lines:
            panels.append(Panel(f"{task}, {metric_name(metric)}", lines))
    text = (
        "Scores with 95 % intervals; at the right the change against the model with everything. "
        "Orange: clearly worse. Grey: no clear change. Green: clearly better. Black: baselines "
        "that read no molecule."
    )
    return Picture("reliance", intervals(panels), text)


def _interval(name: str, scores: Mapping[str, Any], metric: str) -> Interval:
    estimate = Estimate(**scores["metrics"][metric])
    numbers = (name, estimate.value, estimate.low, estimate.high)
    if name == MODEL:
        return Interval(*numbers, _MINE, f"{estimate.value:.3g}")
    if name in (MOST_COMMON, TRAIN_MEDIAN) or scores["change"] is None:
        return Interval(*numbers, INK, f"{estimate.value:.3g}")
    change = Estimate(**scores["change"])
    return Interval(*numbers, _WORDS[dependence(change, metric)], signed(change))


def _tables(report: Report) -> list[Section]:
    tasks = [
        Section(task, header=header, rows=rows, sub=True)
        for task in report["variants"]
        for header, rows in [_task_table(report, task)]
    ]
    header, rows = _target_table(report)
    return [
        Section("Scores", _HOW),
        *tasks,
        Section("By target", header=header, rows=rows, folded=True),
        Section("Rows", header=_ROWS, rows=_count_rows(report)),
        Section("Some answers", "Drawn at random.", header=_ANSWERS, rows=_answer_rows(report)),
        *shortfalls_section(report["shortfalls"]),
        *not_scored(report["manifest"]),
        how_measured(report["manifest"]),
    ]


_HOW = (
    f"Every value is followed by its {LEVEL:.0%} interval: {RESAMPLES} bootstrap resamples of "
    "molecules, not of questions: those about one molecule are not independent. An opponent counts "
    "as beaten only when the two intervals do not overlap. All scores are fractions of 1, errors "
    "have the unit of their target. exact: the right number, or the same text up to white space. "
    "scaled_error: |error| divided by the train split's standard deviation of the target, so that "
    f"targets with different units can be averaged, and {LARGEST_SCALED_ERROR:.0f} at most, so "
    "that one answer cannot decide the mean; an answer without a number is counted as the "
    "train mean or as the most common answer, whichever is further off. Always answering the train "
    "mean would score about 0.8 on normally distributed values. parsed: share of answers with a "
    "number. change: of the score that decides about the task, against the model with everything "
    "(of “Φ zeroed without” a view, against that view gone). "
    f"{MOST_COMMON}: the most frequent answer of the train split, per target. {TRAIN_MEDIAN}: the "
    f"best constant for absolute errors. {WRONG}: the same model and question, another molecule of "
    "the same split."
)


def _task_table(report: Report, task: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of one task: a row per variant, a column per score."""
    variants = report["variants"][task]
    metrics = [m for m in _SHOWN if any(m in scores["metrics"] for scores in variants.values())]
    header = ["answers by", *map(metric_name, metrics), "change", "asked", "unchanged"]
    rows = []
    for name, scores in variants.items():
        cells = [
            str(Estimate(**scores["metrics"][metric])) if metric in scores["metrics"] else "–"
            for metric in metrics
        ]
        change = "–" if scores["change"] is None else signed(Estimate(**scores["change"]))
        asked = scores["counts"]["rows"] - scores["counts"]["not_asked"]
        rows.append([name, *cells, change, str(asked), str(scores["unchanged"])])
    return header, rows


def _target_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table over all targets: the model beside the baselines."""
    names = (MODEL, *BASELINES)
    header = ["task", "target", "unit", "parsed ↑"]
    header += [f"{metric}, {name}" for metric in ("exact ↑", "mae ↓") for name in names]
    rows = []
    for task, baselines in report["baselines"].items():
        scores = report["scores"][task]
        mine = scores.get("per_motif") or scores.get("per_property")
        for target, values in mine.items():
            sets = [values, *(baselines[name][target] for name in BASELINES)]
            cells = [_value(each.get(metric)) for metric in ("exact", "mae") for each in sets]
            unit = report["manifest"]["units"].get(target, "")
            rows.append([task, target, unit, _value(values.get("parsed")), *cells])
    return header, rows


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


_ROWS = ("task", "rows", "what became of them")


def _count_rows(report: Report) -> list[list[str]]:
    entities = (
        {"entities of captions": report["entity_counts"]} if "entity_counts" in report else {}
    )
    return [
        [
            task,
            str(counts["rows"]),
            ", ".join(f"{n} {name}" for name, n in counts.items() if n and name != "rows"),
        ]
        for task, counts in (report["counts"] | entities).items()
    ]


_ANSWERS = ("molecule", "question", "truth", "answer", "answer to a wrong molecule")


def _answer_rows(report: Report) -> list[list[str]]:
    keys = ("smiles", "question", "reference", MODEL, WRONG)
    return [[str(example[key]) for key in keys] for example in report["examples"]]
