"""Rows of a predictions file to their statistics, by the rules of one task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collamo.data.columns import MEASURED_COLUMNS
from collamo.data.facts import PROPERTIES_2D
from collamo.data.units import unit_of
from collamo.errors import UsageError, suggest
from collamo.evaluation.entities.extractor import EntityExtractor
from collamo.evaluation.entities.hallucination import hallucination_rows
from collamo.evaluation.score.captions import TextScorer
from collamo.evaluation.score.molecules import molecule_row
from collamo.evaluation.score.names import name_rows
from collamo.evaluation.score.predictions import PredictionRow
from collamo.evaluation.score.quantities import motif_row, property_row
from collamo.evaluation.score.tasks import TASKS
from collamo.evaluation.score.tokenisation import load_tokenisation

# Properties whose answer is a count: "no hydrogen bond donors".
COUNTED_PROPERTIES = frozenset(entry.target for entry in PROPERTIES_2D if entry.counted)


@dataclass(frozen=True)
class ScoreOptions:
    """How one predictions file is scored.

    `unit` of the properties, into which answers in other units are converted (an energy is reported
    in Hartree and eV too); None: the unit that a reference is written in. `train_mean` of each
    property by name, "" for a file without names. `entities` finds those of captions, for
    CHARM; the caller opens and closes it.
    """

    task: str
    tokenizer: str | None = None
    wordnet: Path | None = None
    unit: str | None = None
    train_mean: Mapping[str, float] = field(default_factory=dict)
    entities: EntityExtractor | None = None


class Scorer:
    """Scores rows of one task; `absent` names the scores that are missing, with the reason."""

    def __init__(self, options: ScoreOptions):
        if options.task not in TASKS:
            raise UsageError(
                f"--task {options.task!r} is none of {', '.join(TASKS)}"
                f"{suggest(options.task, TASKS)}"
            )
        self.options = options
        self.absent: dict[str, str] = {}
        self.about: dict[str, object] = {"task": options.task}
        self._texts: TextScorer | None = None
        if options.task in ("captions", "iupac"):
            self._texts = self._text_scorer()
        if options.task == "property":
            self.about |= {"unit": options.unit, "train_mean": dict(options.train_mean)}
            if options.unit and unit_of(options.unit) is None:
                self.absent["conversion of units"] = (
                    f"{options.unit!r} is no unit that is known: numbers stand as they are written"
                )
            if not options.train_mean:
                self.absent["mae_penalised"] = "needs the mean of the train split: --train-mean"
        if options.entities is not None:
            if options.task != "captions":
                raise UsageError("--entities are of captions: --task captions")
            self.about |= options.entities.about

    def _text_scorer(self) -> TextScorer:
        options = self.options
        if options.tokenizer is None:
            raise UsageError(
                f"--task {options.task} needs --tokenizer: scores of two tokenisations cannot "
                "be compared, so none is taken for granted; published captions use "
                "scibert:VOCAB_PATH"
            )
        texts = TextScorer(load_tokenisation(options.tokenizer), options.wordnet)
        self.absent |= texts.absent
        self.about |= texts.about
        return texts

    def score(self, rows: Sequence[PredictionRow]) -> None:
        """Fill in status and statistics of a batch of rows."""
        usable = [row for row in rows if row.scorable]
        for row, (status, values) in zip(usable, self._statistics(usable), strict=True):
            # No statistics: the reference is at fault, even where the prediction is empty.
            row.status = row.status if row.status and values else status
            row.values = values
        if self.options.entities is not None:
            for row in rows:
                row.entity_status = "not_scored"
            _look_for_entities(usable, self.options.entities)

    def _statistics(self, rows: Sequence[PredictionRow]) -> Iterable[tuple[str, dict[str, float]]]:
        options = self.options
        pairs = [(row.prediction, row.reference) for row in rows]
        if self._texts is not None:
            texts = [self._texts.row(*pair) for pair in pairs]
            if options.task == "captions":
                return [("scored", values) for values in texts]
            named, absent = name_rows(pairs)
            self.absent |= absent
            return [
                (status, values | further)
                for values, (status, further) in zip(texts, named, strict=True)
            ]
        if options.task == "molecules":
            return [molecule_row(*pair) for pair in pairs]
        if options.task == "motifs":
            return [motif_row(*pair) for pair in pairs]
        return [
            property_row(
                *pair,
                options.unit,
                self._train_mean(row),
                counted=row.group in COUNTED_PROPERTIES,
                known_unit=_known_unit(row.group),
            )
            for row, pair in zip(rows, pairs, strict=True)
        ]

    def _train_mean(self, row: PredictionRow) -> float | None:
        means = self.options.train_mean
        if means and row.group not in means:
            name = row.group or "a file without property names"
            raise UsageError(
                f"row {row.number}: --train-mean has no value for {name}{suggest(name, means)}"
            )
        return means.get(row.group)


def _known_unit(name: str) -> str | None:
    """Return the unit in which a property of this name is published (QM9's ``mu``), else None."""
    column = MEASURED_COLUMNS.get(name)
    return column.unit if column else None


def _look_for_entities(rows: Sequence[PredictionRow], entities: EntityExtractor) -> None:
    captions = [(row.number, row.prediction, row.reference, row.molecule) for row in rows]
    statistics = hallucination_rows(captions, entities)
    for row, (status, values) in zip(rows, statistics, strict=True):
        row.entity_status = status
        row.values |= values
