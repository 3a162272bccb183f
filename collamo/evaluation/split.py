"""The examination of one split: questions, every variant's answers, scores, verdicts, files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from collamo.errors import UsageError
from collamo.evaluation.baselines import TrainStatistics, wrong_molecules
from collamo.evaluation.reliance import answer_variants
from collamo.evaluation.report import (
    MODEL,
    MOST_COMMON,
    TRAIN_MEDIAN,
    Report,
    judge,
    write_whole,
)
from collamo.evaluation.scores import Scores, score


def evaluate(
    model,
    processor,
    data,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    alone: bool = True,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    about: Mapping[str, object] | None = None,
    progress: Callable[[str, int], None] | None = None,
    out: Path | None = None,
) -> Report:
    """Ask `model` the questions of a split and return the `Report`; with `out`, write it there too.

    `out` receives ``predictions.jsonl`` (a line per question, with every variant's answer),
    ``report.json`` and ``report.md``. `limit` keeps at most so many questions per task, drawn with
    `seed`; `alone` also asks with 1D, 2D and 3D alone.
    """
    examples = choose_questions(data.tasks(split), limit, seed)
    if not examples:
        raise UsageError(f"the {split} split of the prepared data holds no questions")
    features = {row: data.features(row) for row in dict.fromkeys(e.molecule for e in examples)}
    identity = {row: _canonical(f.smiles) for row, f in features.items()}
    train = TrainStatistics.of(data.tasks("train"))
    answers = answer_variants(
        model,
        processor,
        examples,
        features,
        wrong_molecules(list(features), identity, seed),
        alone=alone,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    answers |= fixed_answers(examples, train)
    smiles = {row: f.smiles for row, f in features.items()}
    report = make_report(examples, answers, train, smiles, {**(about or {}), "split": split}, seed)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) for row in _rows(examples, answers, smiles))
        write_whole(out / "predictions.jsonl", "\n".join(lines) + "\n")
        report.save(out)
    return report


def choose_questions(examples: Sequence, limit: int | None, seed: int) -> list:
    """Return at most `limit` questions of each task, drawn with `seed`, in their first order."""
    examples = list(examples)
    if limit is None:
        return examples
    by_task = defaultdict(list)
    for index, example in enumerate(examples):
        by_task[example.task].append(index)
    rng = np.random.default_rng(seed)
    kept = [
        index
        for _, indices in sorted(by_task.items())
        for index in rng.permutation(indices)[:limit].tolist()
    ]
    return [examples[index] for index in sorted(kept)]


def count_questions(data, split: str, limit: int | None) -> int:
    """Return how many questions `evaluate` will ask each variant."""
    return len(choose_questions(data.tasks(split), limit, seed=0))


def fixed_answers(examples: Sequence, train: TrainStatistics) -> dict[str, list[str | None]]:
    """Return the answers of the opponents that need no model; the median only where one exists."""
    return {
        MOST_COMMON: [train.most_common_answer(e.task, e.target) for e in examples],
        TRAIN_MEDIAN: [
            None if e.value is None else train.median_answer(e.task, e.target) for e in examples
        ],
    }


def make_report(
    examples: Sequence,
    answers: Mapping[str, Sequence[str | None]],
    train: TrainStatistics,
    smiles: Mapping[int, str],
    about: Mapping[str, object],
    seed: int = 0,
) -> Report:
    """Return the report on `answers` (by variant, rows aligned with `examples`)."""
    by_task, by_target, verdicts = {}, {}, []
    tasks = defaultdict(list)
    for index, example in enumerate(examples):
        tasks[example.task].append(index)
    for task, rows in sorted(tasks.items()):
        by_task[task] = _score_rows(rows, examples, answers, train, seed)
        numeric = any(examples[i].value is not None for i in rows)
        verdicts.append(judge(task, numeric, by_task[task]))
        targets = defaultdict(list)
        for index in rows:
            targets[examples[index].target].append(index)
        by_target[task] = {
            target: _score_rows(few, examples, answers, train, seed)
            for target, few in sorted(targets.items())
        }
    about = {**about, "questions": len(examples), "molecules": len({e.molecule for e in examples})}
    return Report(about, verdicts, by_task, by_target, _samples(examples, answers, smiles, seed))


def _score_rows(rows, examples, answers, train, seed) -> dict[str, Scores]:
    """Return the scores of every variant that answered at least one of `rows`."""
    chosen = [examples[i] for i in rows]
    scores = {
        name: score(chosen, [texts[i] for i in rows], train, seed=seed)
        for name, texts in answers.items()
    }
    return {name: s for name, s in scores.items() if s.skipped < s.questions or name == MODEL}


def _samples(examples, answers, smiles, seed: int, per_task: int = 3) -> list[dict]:
    """Return a few rows of each task, drawn with `seed`: not the best ones."""
    rows = list(_rows(examples, answers, smiles))
    chosen = choose_questions(examples, per_task, seed)
    wanted = {id(example) for example in chosen}
    return [row for example, row in zip(examples, rows, strict=True) if id(example) in wanted]


def _rows(examples, answers, smiles):
    """Yield one JSON row per question: what was asked, the truth, and what each variant said."""
    for index, example in enumerate(examples):
        yield {
            "molecule": example.molecule,
            "smiles": smiles[example.molecule],
            "task": example.task,
            "target": example.target,
            "question": example.question,
            "truth": example.answer,
            "value": example.value,
            "unit": example.unit,
            **{name: texts[index] for name, texts in answers.items()},
        }


def _canonical(smiles: str) -> str:
    from collamo.chem.molecule import Molecule

    return Molecule.from_smiles(smiles).canonical_smiles
