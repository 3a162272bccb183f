"""`collamo evaluate`: a model before the questions of a split, from data to report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from collamo.data.manifest import MANIFEST
from collamo.data.prepared import PreparedData
from collamo.data.tasks import TaskExample
from collamo.errors import UsageError
from collamo.evaluation.entities.extractor import EntityExtractor
from collamo.evaluation.examine.baselines import TrainStatistics
from collamo.evaluation.examine.examination import examine
from collamo.evaluation.examine.reliance import Answers, answer_variants, make_variants
from collamo.evaluation.examine.results import make_report, write_rows
from collamo.evaluation.examine.split_questions import choose_questions
from collamo.evaluation.examine.split_report import write_split_report
from collamo.evaluation.examine.split_scorer import TOKENIZER, SplitScorer
from collamo.evaluation.examine.verdicts import MOST_COMMON, TRAIN_MEDIAN
from collamo.evaluation.journal import Journal
from collamo.evaluation.report.manifest import versions
from collamo.evaluation.report.page import Report, Section
from collamo.files import file_sha256

if TYPE_CHECKING:
    from peft import PeftModel

    from collamo.model import CollamoForConditionalGeneration, CollamoProcessor

PACKAGES = ("torch", "transformers")  # beside those of a predictions file


def evaluate(
    model: CollamoForConditionalGeneration | PeftModel,
    processor: CollamoProcessor,
    data: PreparedData,
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
) -> Report:
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
        Also look into the attention (`diagnosis.diagnose`).
    tokenizer, wordnet
        Of captions and names, as in `ScoreOptions`.
    entities
        Finds those of captions, for CHARM; the caller opens and closes it.
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
    # A PeftModel has the attributes of the model in it, which its type does not say.
    model = cast("CollamoForConditionalGeneration", model)
    examples = choose_questions(data.tasks(split), limit, seed)
    if not examples:
        raise UsageError(f"the {split} split of the prepared data holds no questions")
    features = {row: data.features(row) for row in dict.fromkeys(e.molecule for e in examples)}
    identity = {row: _canonical(f.smiles) for row, f in features.items()}
    train = TrainStatistics.count(data.tasks("train"))
    # Before the first question: a file that is not there should not cost an hour.
    smiles = {row: f.smiles for row, f in features.items()}
    scorer = SplitScorer(examples, train, tokenizer, wordnet, entities, smiles)
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
    with Journal(out / "answers.jsonl", key) as journal:
        answers = answer_variants(
            *(model, processor, examples, features, variants, journal),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
        answers |= fixed_answers(examples, train)
        examination = examine(examples, answers, scorer, smiles, seed)
        manifest = {**(about or {}), **key, **_about(examples, scorer, pairing)}
        report = make_report(examination, manifest)
        sections: list[Section] = []
        if diagnose:
            from collamo.evaluation.examine.diagnosis.report import diagnosis

            report["diagnostics"], sections = diagnosis(model, processor, features, seed)
        write_rows(examination, out)
        write_split_report(report, sections, out)
        journal.finish()
    return report


def _about(
    examples: Sequence[TaskExample], scorer: SplitScorer, pairing: Mapping[str, int]
) -> dict[str, Any]:
    """Return the manifest's entries on questions, scores and versions."""
    return {
        "questions": len(examples),
        "molecules": len({e.molecule for e in examples}),
        **scorer.about,
        "units": {e.target: e.unit for e in examples if e.unit},
        **({"same_size_pairing": pairing} if pairing else {}),
        "absent": scorer.absent,
        "versions": versions(PACKAGES),
    }


def fixed_answers(examples: Sequence[TaskExample], train: TrainStatistics) -> dict[str, Answers]:
    """Return the answers of the opponents that need no model; the median only where one exists."""
    median = [None if e.value is None else train.median_answer(e.task, e.target) for e in examples]
    return {
        MOST_COMMON: Answers([train.most_common_answer(e.task, e.target) for e in examples]),
        TRAIN_MEDIAN: Answers(median),
    }


def weights_sha256(model: torch.nn.Module) -> str:
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
