"""What an examined split leaves for programs: the report as JSON values, and the parquet files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collamo.evaluation.examine.examination import Examination
from collamo.evaluation.examine.reliance import MODEL
from collamo.evaluation.examine.scores import (
    KINDS,
    SPLIT_COLUMNS,
    count_entities,
    split_scores,
    target_scores,
)
from collamo.evaluation.examine.split_questions import choose_questions
from collamo.evaluation.examine.verdicts import BASELINES
from collamo.evaluation.report.page import Report
from collamo.evaluation.score.predictions import PredictionRow
from collamo.evaluation.score.rows_file import TEXTS, RowsFile
from collamo.evaluation.score.shortfalls import Shortfalls, count_shortfalls, explained
from collamo.evaluation.statistics import Sums

#: Kind of task → what its scores by target are called.
TARGETED = {"motifs": "per_motif", "property": "per_property"}


def make_report(examination: Examination, manifest: Mapping[str, object]) -> Report:
    """Return the report as plain JSON values."""
    captions = _captions_with_entities(examination)
    return {
        "scores": {task: _task_report(task, examination) for task in examination.scores},
        "counts": {task: examination.scores[task][MODEL].counts for task in examination.scores},
        **({"entity_counts": count_entities(captions)} if captions else {}),
        "shortfalls": {task: _shortfalls(task, examination) for task in examination.scores},
        "manifest": dict(manifest),
        "verdicts": [{**asdict(v), "beats_both": v.beats_both} for v in examination.verdicts],
        "variants": {
            task: {name: asdict(scores) for name, scores in variants.items()}
            for task, variants in examination.scores.items()
        },
        "baselines": {
            task: {name: _by_target(task, examination, name) for name in BASELINES}
            for task in examination.scores
            if KINDS[task] in TARGETED
        },
        "examples": _samples(examination),
    }


def _captions_with_entities(examination: Examination) -> list[PredictionRow]:
    """Return the model's captions if their entities were looked for, else nothing."""
    return [row for row in examination.rows[MODEL] if row.entity_status is not None]


def _shortfalls(task: str, examination: Examination) -> Shortfalls:
    """Return the scores by whose definition right answers of the model get less than 1."""
    rows = zip(examination.examples, examination.rows[MODEL], strict=True)
    return explained(count_shortfalls(row for example, row in rows if example.task == task))


def _task_report(task: str, examination: Examination) -> dict[str, Any]:
    """Return the model's scores of one task, and of each of its targets where it has several."""
    rows = zip(examination.examples, examination.rows[MODEL], strict=True)
    whole = Sums()
    for _, row in ((e, r) for e, r in rows if e.task == task):
        whole.add(row.values)
    scores: dict[str, Any] = split_scores(task, whole)
    targets = _by_target(task, examination, MODEL)
    if KINDS[task] in TARGETED:
        scores[TARGETED[KINDS[task]]] = targets
    return scores


def _by_target(task: str, examination: Examination, name: str) -> dict[str, dict[str, float]]:
    """Return target → scores of one variant's answers."""
    sums: defaultdict[str, Sums] = defaultdict(Sums)
    units = {}
    for example, row in zip(examination.examples, examination.rows[name], strict=True):
        if example.task == task:
            sums[example.target].add(row.values)
            units[example.target] = example.unit
    return {target: target_scores(task, units[target], sums[target]) for target in sorted(sums)}


def _samples(examination: Examination, seed: int = 0, per_task: int = 3) -> list[dict[str, Any]]:
    """Return a few questions of each task with all answers, drawn with `seed`: not the best."""
    places = {id(example): index for index, example in enumerate(examination.examples)}
    chosen = [places[id(e)] for e in choose_questions(examination.examples, per_task, seed)]
    return [
        _question(examination, index)
        | {name: rows[index].prediction for name, rows in examination.rows.items()}
        for index in chosen
    ]


def _question(examination: Examination, index: int) -> dict[str, Any]:
    example = examination.examples[index]
    return {
        "molecule": example.molecule,
        "smiles": examination.smiles[example.molecule],
        "task": example.task,
        "question": example.question,
        "reference": example.answer,
    }


def write_rows(examination: Examination, out: Path) -> None:
    """Write rows.parquet (the model's answers) and variants.parquet (all others).

    With ``entity_status`` where entities were looked for; it is null where no caption was asked.
    """
    texts = (*TEXTS, "entity_status") if _captions_with_entities(examination) else TEXTS
    asked = {"task": "string", "molecule": "int64", "smiles": "string", "question": "string"}
    questions = [_question(examination, index) for index in range(len(examination.examples))]
    with RowsFile(out / "rows.parquet", SPLIT_COLUMNS, texts, asked) as file:
        file.write(examination.rows[MODEL], questions)
    asked = {"variant": "string", **asked}
    with RowsFile(out / "variants.parquet", SPLIT_COLUMNS, texts, asked) as file:
        for name, rows in examination.rows.items():
            if name != MODEL:
                file.write(rows, [{"variant": name, **question} for question in questions])
