"""The examination of one split: questions, every variant's answers, scores, verdicts, files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from collamo.data.shards import MANIFEST
from collamo.errors import UsageError
from collamo.evaluation.entities.extractor import EntityExtractor
from collamo.evaluation.examine.baselines import TrainStatistics
from collamo.evaluation.examine.reliance import (
    MODEL,
    Answers,
    answer_variants,
    count_variants,
    make_variants,
)
from collamo.evaluation.examine.scores import (
    KINDS,
    SPLIT_COLUMNS,
    TOKENIZER,
    Scores,
    SplitJudge,
    count_entities,
    count_statuses,
    primary_metric,
    split_scores,
    target_scores,
    unit_sums,
)
from collamo.evaluation.examine.transcript import Transcript
from collamo.evaluation.examine.verdicts import BASELINES, MOST_COMMON, TRAIN_MEDIAN, Verdict, judge
from collamo.evaluation.score.predictions import TEXTS, PredictionRow, RowsFile, versions
from collamo.evaluation.statistics import Sums, differences, estimates, resampled
from collamo.files import file_sha256

PACKAGES = ("torch", "transformers")  # beside those of a predictions file
#: Kind of task → what its scores by target are called.
TARGETED = {"motifs": "per_motif", "property": "per_property"}


@dataclass(frozen=True)
class Examination:
    """What was asked and what became of it: the material of the report."""

    examples: Sequence
    smiles: Mapping[int, str]
    rows: Mapping[str, list[PredictionRow]]
    scores: Mapping[str, Mapping[str, Scores]]
    verdicts: Sequence[Verdict]


def evaluate(
    model,
    processor,
    data,
    *,
    out: Path,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    reliance: bool = True,
    diagnose: bool = False,
    tokenizer: str = TOKENIZER,
    wordnet: Path | None = None,
    entities: EntityExtractor | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    about: Mapping[str, object] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> dict:
    """Ask `model` the questions of a split, write the report into `out` and return it.

    `out` receives ``report.json``, ``report.md``, ``report.html`` and the pictures;
    ``rows.parquet`` (a row per question, with the model's answer and its statistics) and
    ``variants.parquet`` (the same for all other answers); and ``answers.jsonl``, from which a run
    that was cut off goes on.

    Parameters
    ----------
    limit
        Questions per task at most, drawn with `seed`.
    reliance
        Also ask with modalities removed and alone, with another molecule of the same size, and with
        scattered atoms (`reliance.make_variants`).
    diagnose
        Also look into the attention (`diagnostics.diagnose`).
    tokenizer, wordnet
        Of captions and names, as in `predictions.Options`.
    entities
        Finds those of captions, for CHARM; whoever opened it closes it.
    about
        Further entries of the manifest.

    Returns
    -------
    dict
        ``scores`` by task, ``counts`` by task (``rows`` and what became of them), ``manifest``,
        ``verdicts``, ``variants`` (task → set of answers → counts, metrics with intervals, change),
        ``baselines`` (task → baseline → scores by target), ``examples``, with `entities`
        ``entity_counts`` (of the model's captions) and with `diagnose` ``diagnostics``.

    Raises
    ------
    UsageError
        For a split without questions, or an `out` with unfinished answers of something else.
    """
    from collamo.evaluation.examine.split_report import write_split_report

    examples = choose_questions(data.tasks(split), limit, seed)
    if not examples:
        raise UsageError(f"the {split} split of the prepared data holds no questions")
    features = {row: data.features(row) for row in dict.fromkeys(e.molecule for e in examples)}
    identity = {row: _canonical(f.smiles) for row, f in features.items()}
    train = TrainStatistics.of(data.tasks("train"))
    # Before the first question: a file that is not there should not cost an hour.
    smiles = {row: f.smiles for row, f in features.items()}
    judging = SplitJudge(examples, train, tokenizer, wordnet, entities, smiles)
    variants, pairing = make_variants(features, identity, seed, reliance)
    key = {
        "checkpoint_sha256": weights_sha256(model),
        "data_sha256": file_sha256(data.folder / MANIFEST),  # it has those of all files
        "split": split,
        "limit": limit,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
    }
    out.mkdir(parents=True, exist_ok=True)
    with Transcript(out / "answers.jsonl", key) as transcript:
        answers = answer_variants(
            *(model, processor, examples, features, variants, transcript),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
        answers |= fixed_answers(examples, train)
        found = examine(examples, answers, judging, smiles, seed)
        manifest = {**(about or {}), **key, **_about(examples, judging, pairing)}
        report, sections = make_report(found, manifest), []
        if diagnose:
            from collamo.evaluation.examine.diagnostics_report import diagnosis

            report["diagnostics"], sections = diagnosis(model, processor, features, seed)
        write_rows(found, out)
        write_split_report(report, sections, out)
        transcript.finish()
    return report


def _about(examples: Sequence, judging: SplitJudge, pairing: Mapping[str, int]) -> dict:
    """Return what the manifest says of questions, scores and versions."""
    return {
        "questions": len(examples),
        "molecules": len({e.molecule for e in examples}),
        **judging.about,
        "units": {e.target: e.unit for e in examples if e.unit},
        **({"same_size_pairing": pairing} if pairing else {}),
        "absent": judging.absent,
        "versions": versions(PACKAGES),
    }


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


def count_questions(data, split: str, limit: int | None, reliance: bool) -> int:
    """Return how many answers `evaluate` will ask for, those that need not be asked included."""
    return len(choose_questions(data.tasks(split), limit, 0)) * count_variants(reliance)


def fixed_answers(examples: Sequence, train: TrainStatistics) -> dict[str, Answers]:
    """Return the answers of the opponents that need no model; the median only where one exists."""
    median = [None if e.value is None else train.median_answer(e.task, e.target) for e in examples]
    return {
        MOST_COMMON: Answers([train.most_common_answer(e.task, e.target) for e in examples]),
        TRAIN_MEDIAN: Answers(median),
    }


def examine(
    examples: Sequence,
    answers: Mapping[str, Answers],
    judging: SplitJudge,
    smiles: Mapping[int, str],
    seed: int = 0,
) -> Examination:
    """Judge and score `answers` (by variant, rows aligned with `examples`), task by task."""
    rows = {name: judging.judge(given.texts) for name, given in answers.items()}
    tasks = defaultdict(list)
    for index, example in enumerate(examples):
        tasks[example.task].append(index)
    scores, verdicts = {}, []
    for task, members in sorted(tasks.items()):
        numeric = any(examples[i].value is not None for i in members)
        metric = primary_metric(task, numeric)
        scores[task] = _score_task(task, metric, members, examples, rows, answers, seed)
        verdicts.append(judge(task, numeric, scores[task]))
    return Examination(examples, smiles, rows, scores, verdicts)


def _score_task(task, metric, members, examples, rows, answers, seed) -> dict[str, Scores]:
    """Return the scores of every variant that was asked at least one of the questions."""
    order = list(dict.fromkeys(examples[i].molecule for i in members))

    def sums(name: str, asked: Sequence[int]):
        units = [examples[i].molecule for i in asked]
        return unit_sums([rows[name][i] for i in asked], units, order, SPLIT_COLUMNS)

    asked = {
        name: [i for i in members if given.texts[i] is not None] for name, given in answers.items()
    }
    names = [name for name in answers if asked[name] or name == MODEL]
    # The model's answers to what each variant was asked too: what it was not asked tells nothing.
    sets = [sums(name, asked[name]) for name in names]
    sets += [sums(MODEL, [i for i in asked[name] if i in set(asked[MODEL])]) for name in names]
    drawn = resampled(sets, lambda total: split_scores(task, total), seed=seed)
    found = {}
    for name, its, model in zip(names, drawn, drawn[len(names) :], strict=False):
        change = differences(model, its).get(metric) if name != MODEL else None
        found[name] = Scores(
            count_statuses(task, [rows[name][i] for i in members]),
            estimates(its),
            change,
            len(answers[name].unchanged.intersection(members)),
        )
    return found


def make_report(found: Examination, manifest: Mapping[str, object]) -> dict:
    """Return the report as plain JSON values."""
    captions = _captions_with_entities(found)
    return {
        "scores": {task: _task_report(task, found) for task in found.scores},
        "counts": {task: found.scores[task][MODEL].counts for task in found.scores},
        **({"entity_counts": count_entities(captions)} if captions else {}),
        "manifest": dict(manifest),
        "verdicts": [{**asdict(v), "beats_both": v.beats_both} for v in found.verdicts],
        "variants": {
            task: {name: asdict(scores) for name, scores in variants.items()}
            for task, variants in found.scores.items()
        },
        "baselines": {
            task: {name: _by_target(task, found, name) for name in BASELINES}
            for task in found.scores
            if KINDS[task] in TARGETED
        },
        "examples": _samples(found),
    }


def _captions_with_entities(found: Examination) -> list[PredictionRow]:
    """Return the model's captions if their entities were looked for, else nothing."""
    return [row for row in found.rows[MODEL] if row.entity_status is not None]


def _task_report(task: str, found: Examination) -> dict:
    """Return the model's scores of one task, and of each of its targets where it has several."""
    rows = zip(found.examples, found.rows[MODEL], strict=True)
    whole = Sums()
    for _, row in ((e, r) for e, r in rows if e.task == task):
        whole.add(row.values)
    scores: dict = split_scores(task, whole)
    targets = _by_target(task, found, MODEL)
    if KINDS[task] in TARGETED:
        scores[TARGETED[KINDS[task]]] = targets
    return scores


def _by_target(task: str, found: Examination, name: str) -> dict[str, dict[str, float]]:
    """Return target → scores of one variant's answers."""
    sums, units = defaultdict(Sums), {}
    for example, row in zip(found.examples, found.rows[name], strict=True):
        if example.task == task:
            sums[example.target].add(row.values)
            units[example.target] = example.unit
    return {target: target_scores(task, units[target], sums[target]) for target in sorted(sums)}


def _samples(found: Examination, seed: int = 0, per_task: int = 3) -> list[dict]:
    """Return a few questions of each task with all answers, drawn with `seed`: not the best."""
    places = {id(example): index for index, example in enumerate(found.examples)}
    chosen = [places[id(e)] for e in choose_questions(found.examples, per_task, seed)]
    return [
        _question(found, index)
        | {name: rows[index].prediction for name, rows in found.rows.items()}
        for index in chosen
    ]


def _question(found: Examination, index: int) -> dict:
    example = found.examples[index]
    return {
        "molecule": example.molecule,
        "smiles": found.smiles[example.molecule],
        "task": example.task,
        "question": example.question,
        "reference": example.answer,
    }


def write_rows(found: Examination, out: Path) -> None:
    """Write rows.parquet (the model's answers) and variants.parquet (all others).

    With ``entity_status`` where entities were looked for, null for questions that are no captions.
    """
    texts = (*TEXTS, "entity_status") if _captions_with_entities(found) else TEXTS
    asked = {"task": "string", "molecule": "int64", "smiles": "string", "question": "string"}
    questions = [_question(found, index) for index in range(len(found.examples))]
    with RowsFile(out / "rows.parquet", SPLIT_COLUMNS, texts, asked) as file:
        file.write(found.rows[MODEL], questions)
    asked = {"variant": "string", **asked}
    with RowsFile(out / "variants.parquet", SPLIT_COLUMNS, texts, asked) as file:
        for name, rows in found.rows.items():
            if name != MODEL:
                file.write(rows, [{"variant": name, **question} for question in questions])


def weights_sha256(model) -> str:
    """Return the SHA-256 of the names, shapes and bytes of all weights, however they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().contiguous().reshape(-1).cpu()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _canonical(smiles: str) -> str:
    from collamo.chem.molecule import Molecule

    return Molecule.from_smiles(smiles).canonical_smiles
