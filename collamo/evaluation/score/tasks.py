"""The tasks of predictions files: statuses, statistics of a row, scores from their sums."""

from __future__ import annotations

from collections.abc import Callable

from collamo.evaluation.entities.hallucination import HALLUCINATION_COLUMNS, hallucination_scores
from collamo.evaluation.score.bleu import BLEU_COLUMNS
from collamo.evaluation.score.captions import ROUGE, text_scores
from collamo.evaluation.score.molecules import MOLECULE_COLUMNS, molecule_scores
from collamo.evaluation.score.names import NAME_COLUMNS, name_scores
from collamo.evaluation.score.quantities import motif_scores, property_scores
from collamo.evaluation.statistics import Sums

TASKS = ("captions", "molecules", "iupac", "motifs", "property")
#: What can become of a row that is read well, apart from "scored".
_UNPARSED = ("unparsed_prediction", "unparsed_reference")
_AMBIGUOUS = ("ambiguous_prediction", "ambiguous_reference")  # "0,25"
_OTHER_UNIT = ("other_unit_prediction", "other_unit_reference")  # that does not convert
SCORE_STATUSES: dict[str, tuple[str, ...]] = {
    "captions": (),
    "molecules": ("invalid_prediction", "invalid_reference"),
    "iupac": _UNPARSED,
    "motifs": (*_UNPARSED, *_AMBIGUOUS),
    "property": (*_UNPARSED, *_AMBIGUOUS, *_OTHER_UNIT),
}
TEXT_COLUMNS = (*BLEU_COLUMNS, *ROUGE, "meteor")
#: The statistics of a row, in the order of rows.parquet.
COLUMNS = {
    "captions": (*TEXT_COLUMNS, *HALLUCINATION_COLUMNS),
    "molecules": (*BLEU_COLUMNS, *MOLECULE_COLUMNS),
    "iupac": (*TEXT_COLUMNS, *NAME_COLUMNS),
    "motifs": ("parsed", "exact", "mae"),
    "property": ("parsed", "mae", "mae_penalised"),
}


def task_scores(task: str, sums: Sums, unit: str | None = None) -> dict[str, float]:
    """Return the scores of a task from the sums of its rows; an absent one is left out."""
    if task == "property":
        return property_scores(sums, unit)
    scores: dict[str, Callable[[Sums], dict[str, float]]] = {
        "captions": lambda sums: text_scores(sums) | hallucination_scores(sums),
        "molecules": molecule_scores,
        "iupac": lambda sums: text_scores(sums) | name_scores(sums),
        "motifs": motif_scores,
    }
    return scores[task](sums)
