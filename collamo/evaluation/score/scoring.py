"""`collamo score`: a predictions file in, its report out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from collamo.evaluation.entities.hallucination import STATUSES
from collamo.evaluation.report.manifest import versions
from collamo.evaluation.report.page import Report
from collamo.evaluation.score.predictions import (
    MOLECULE_COLUMNS,
    READ_STATUSES,
    PredictionColumns,
    batches,
    read_predictions,
)
from collamo.evaluation.score.predictions_report import WorstRows, write_predictions_report
from collamo.evaluation.score.rows_file import TEXTS, RowsFile
from collamo.evaluation.score.scorer import ScoreOptions, Scorer
from collamo.evaluation.score.shortfalls import count_shortfalls, explained
from collamo.evaluation.score.tasks import COLUMNS, SCORE_STATUSES, task_scores
from collamo.evaluation.statistics import Sums
from collamo.files import file_sha256


def score_predictions(
    path: Path,
    options: ScoreOptions,
    out: Path,
    progress: Callable[[int], None] | None = None,
    columns: PredictionColumns | None = None,
) -> Report:
    """Score a predictions file; write report.{json,md,html} and rows.parquet into `out`.

    `columns` names those that are not recognised.

    Returns the report: ``scores`` (fractions of 1; distances and errors in their units),
    ``counts`` (``rows`` and what became of them: all other counts add up to it), ``manifest``
    (hashes, tokeniser, versions, and ``absent``: each score that is missing, with its reason) and,
    where entities are looked for, ``entity_counts`` (the same rows by what became of their CHARM).
    ``shortfalls`` has each score by whose published definition right answers get less than 1, and
    how many do.

    Empty, invalid, unparsed and ambiguous *predictions*, and those in a unit that does not convert,
    stay in the scores as wrong answers; rows without a usable reference, ``malformed`` and
    ``not_utf8`` rows cannot be scored and are only counted.
    """
    scorer = Scorer(options)
    counts = Counter(dict.fromkeys(("scored", *READ_STATUSES, *SCORE_STATUSES[options.task]), 0))
    sums, worst, short = Sums(), WorstRows(options.task), Counter[str]()
    groups: defaultdict[str, Sums] = defaultdict(Sums)
    out.mkdir(parents=True, exist_ok=True)
    entity_counts = Counter(dict.fromkeys(STATUSES, 0))
    texts = TEXTS if options.entities is None else (*TEXTS, "entity_status")
    with RowsFile(out / "rows.parquet", COLUMNS[options.task], texts) as rows_file:
        for batch in batches(read_predictions(path, options.task, columns)):
            scorer.score(batch)
            for row in batch:
                counts[row.status] += 1
                if row.entity_status is not None:
                    entity_counts[row.entity_status] += 1
                sums.add(row.values)
                if row.group:
                    groups[row.group].add(row.values)
                worst.see(row)
            short += count_shortfalls(batch)
            rows_file.write(batch)
            if progress is not None:
                progress(len(batch))
    scores = _scores(options, sums, groups, scorer.absent)
    if options.entities is not None and "charm_molecule" not in scores:
        scorer.absent["charm_molecule"] = (
            f"needs --entities offline and one of the columns {', '.join(MOLECULE_COLUMNS)}"
        )
    report = {
        "scores": scores,
        "counts": {"rows": counts.total(), **counts},
        "shortfalls": explained(short),
        "manifest": _manifest(path, scorer),
    }
    if options.entities is not None:
        report["entity_counts"] = {"rows": entity_counts.total(), **entity_counts}
    write_predictions_report(report, worst, out)
    return report


def _scores(
    options: ScoreOptions, sums: Sums, groups: Mapping[str, Sums], absent: dict[str, str]
) -> dict[str, Any]:
    scores: dict[str, Any] = task_scores(options.task, sums, options.unit)
    if options.task == "property" and len(groups) > 1:
        # A mean over eV and g/mol means nothing.
        for name in [name for name in scores if name.startswith("mae")]:
            del scores[name]
        absent["mae"] = "several properties in the file: see per_property"
    if groups:
        name = "per_motif" if options.task == "motifs" else "per_property"
        scores[name] = {
            group: task_scores(options.task, groups[group], options.unit)
            for group in sorted(groups)
        }
    return scores


def _manifest(path: Path, scorer: Scorer) -> dict[str, Any]:
    return {
        **scorer.about,
        "predictions": path.name,
        "predictions_sha256": file_sha256(path),
        "checkpoint_sha256": None,  # a predictions file does not say which model wrote it
        "absent": scorer.absent,
        "versions": versions(),
    }
