"""A file of predictions and references to scores: streamed, every row in exactly one count."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from collamo.data.sources import csv_rows
from collamo.errors import UsageError, suggest
from collamo.evaluation.entities.extractor import EntityExtractor
from collamo.evaluation.entities.hallucination import (
    HALLUCINATION_COLUMNS,
    STATUSES,
    hallucination_rows,
    hallucination_scores,
)
from collamo.evaluation.score import molecules, quantities
from collamo.evaluation.score.captions import BLEU_COLUMNS, ROUGE, TextScorer, text_scores
from collamo.evaluation.score.names import NAME_COLUMNS, name_rows, name_scores
from collamo.evaluation.score.tokenisation import load_tokenisation
from collamo.evaluation.statistics import Sums
from collamo.files import file_sha256, naming
from collamo.inference.question_files import check_format

T = TypeVar("T")
TASKS = ("captions", "molecules", "iupac", "motifs", "property")
# The first of each that the file has; the first of all is the published form (MolT5).
PREDICTION_COLUMNS = ("output", "prediction", "answer")
REFERENCE_COLUMNS = ("ground truth", "reference", "truth")
MOLECULE_COLUMNS = ("SMILES", "smiles", "SELFIES", "selfies", "molecule")  # of captions
GROUP_COLUMNS = {"motifs": ("motif", "target"), "property": ("property", "target")}
# What a row can be before any task looks at it, and what the tasks add.
READING = ("malformed", "not_utf8", "empty_reference", "empty_prediction")
JUDGING = {
    "captions": (),
    "molecules": ("invalid_prediction", "invalid_reference"),
    "iupac": ("unparsed_prediction", "unparsed_reference"),
    "motifs": ("unparsed_prediction", "unparsed_reference"),
    "property": ("unparsed_prediction", "unparsed_reference"),
}
# The statistics of a row, in the order of rows.parquet.
TEXT_COLUMNS = (*BLEU_COLUMNS, *ROUGE, "meteor")
COLUMNS = {
    "captions": (*TEXT_COLUMNS, *HALLUCINATION_COLUMNS),
    "molecules": (*BLEU_COLUMNS, *molecules.MOLECULE_COLUMNS),
    "iupac": (*TEXT_COLUMNS, *NAME_COLUMNS),
    "motifs": ("parsed", "exact", "mae"),
    "property": ("parsed", "mae", "mae_penalised"),
}
TEXTS = ("status", "group", "prediction", "reference")  # of a row, in rows.parquet
BATCH = 2000  # rows held in memory, and in one row group of the parquet file
PACKAGES = ("collamo", "nltk", "rouge-score", "rapidfuzz", "rdkit", "tokenizers", "numpy")


@dataclass
class PredictionRow:
    """One row: `status` None while it can be judged, else the one count it belongs to.

    `molecule` is what the caption is about, None where the file does not say; `entity_status` what
    became of its entities, None where none were looked for.
    """

    number: int
    prediction: str = ""
    reference: str = ""
    group: str = ""
    molecule: str | None = None
    entity_status: str | None = None
    status: str | None = None
    values: dict[str, float] = field(default_factory=dict)


def read_predictions(path: Path, task: str) -> Iterator[PredictionRow]:
    """Yield every row of a TSV, CSV or JSONL file, numbered from 1, in constant memory.

    A TSV is read as the published files are: one row a line, quotes are ordinary characters, no tab
    inside a field. CSV quotes as usual; JSONL holds any text. A line that is no row of the table is
    ``malformed``, bytes that are no UTF-8 make a row ``not_utf8``.

    Raises
    ------
    UsageError
        For a missing file, an unknown format, or a file without one of the two columns.
    """
    check_format(path)
    try:
        with path.open(
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="" if path.suffix == ".csv" else "\n",
        ) as stream:
            read = _json_records if path.suffix == ".jsonl" else _table_records
            yield from _rows(path, task, read(stream, path.suffix))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _table_records(stream: Iterable[str], suffix: str) -> Iterator[dict | None]:
    """Yield the header as a record of its own names, then each row; None for a malformed one."""
    csv.field_size_limit(sys.maxsize)
    if suffix == ".tsv":
        rows = (line.rstrip("\n").rstrip("\r").split("\t") for line in stream)
    else:
        rows = csv_rows(stream, ",", Path(stream.name).name)
    header = next(rows, [])
    yield dict.fromkeys(header)
    for row in rows:
        yield dict(zip(header, row, strict=True)) if len(row) == len(header) else None


def _json_records(stream: Iterable[str], _: str) -> Iterator[dict | None]:
    named = False
    for line in stream:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        record = record if isinstance(record, dict) else None
        if record is not None and not named:
            named = True
            yield dict.fromkeys(record)
        yield record


def _rows(path: Path, task: str, records: Iterator[dict | None]) -> Iterator[PredictionRow]:
    columns, early = None, 0
    number = 0
    for record in records:
        if columns is None:
            if record is None:  # malformed lines before the first JSON object
                early += 1
                continue
            columns = _columns(path, task, list(record))
            for number in range(1, early + 1):
                yield PredictionRow(number, status="malformed")
            continue
        number += 1
        yield _row(number, record, *columns)
    if columns is None:
        raise UsageError(f"{path} holds no rows: no header, no JSON object")


def _columns(path: Path, task: str, names: list[str]) -> tuple[str, str, str | None, str | None]:
    found = []
    for what, known in (("prediction", PREDICTION_COLUMNS), ("reference", REFERENCE_COLUMNS)):
        name = next((name for name in known if name in names), None)
        if name is None:
            raise UsageError(
                f"{path} has no column for the {what}: one of {', '.join(known)}; "
                f"it has {', '.join(names) or 'none'}"
            )
        found.append(name)
    group = next((name for name in GROUP_COLUMNS.get(task, ()) if name in names), None)
    smiles = MOLECULE_COLUMNS if task == "captions" else ()
    molecule = next((name for name in smiles if name in names), None)
    return found[0], found[1], group, molecule


def _row(
    number: int,
    record: dict | None,
    prediction: str,
    reference: str,
    group: str | None,
    molecule: str | None,
) -> PredictionRow:
    texts = [_text(record.get(name)) for name in (prediction, reference)] if record else [None]
    label = _text(record.get(group)) if record and group else ""
    if None in texts or label is None:
        return PredictionRow(number, status="malformed")
    row = PredictionRow(number, *texts, label)
    if molecule:
        row.molecule = _text(record.get(molecule)) or ""
    if any("\ud800" <= char <= "\udfff" for text in (*texts, label) for char in text):
        row.status = "not_utf8"
    elif not row.reference.strip():
        row.status = "empty_reference"
    elif not row.prediction.strip():
        row.status = "empty_prediction"
    return row


def _text(value: object) -> str | None:
    """Return a field as text; a JSON number is its digits, null is empty, all else is malformed."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    return value if isinstance(value, str) else None


@dataclass(frozen=True)
class Options:
    """How one predictions file is scored.

    `unit` of the properties (an energy is reported in Hartree and eV too); `train_mean` of each
    property by name, "" for a file without names. `entities` finds those of captions, for
    CHARM; whoever opened it closes it.
    """

    task: str
    tokenizer: str | None = None
    wordnet: Path | None = None
    unit: str | None = None
    train_mean: Mapping[str, float] = field(default_factory=dict)
    entities: EntityExtractor | None = None


class Judge:
    """Scores rows of one task; `absent` names scores that cannot be given, with the reason."""

    def __init__(self, options: Options):
        if options.task not in TASKS:
            raise UsageError(
                f"--task {options.task!r} is none of {', '.join(TASKS)}"
                f"{suggest(options.task, TASKS)}"
            )
        self.options = options
        self.absent: dict[str, str] = {}
        self.about: dict[str, object] = {"task": options.task}
        self._texts = None
        if options.task in ("captions", "iupac"):
            if options.tokenizer is None:
                raise UsageError(
                    f"--task {options.task} needs --tokenizer: scores of two tokenisations cannot "
                    "be compared, so none is taken for granted; published captions use "
                    "scibert:VOCAB_PATH"
                )
            self._texts = TextScorer(load_tokenisation(options.tokenizer), options.wordnet)
            self.absent |= self._texts.absent
            self.about |= self._texts.about
        if options.task == "property":
            self.about |= {"unit": options.unit, "train_mean": dict(options.train_mean)}
            if not options.train_mean:
                self.absent["mae_penalised"] = "needs the mean of the train split: --train-mean"
        if options.entities is not None:
            if options.task != "captions":
                raise UsageError("--entities are of captions: --task captions")
            self.about |= options.entities.about

    def judge(self, rows: list[PredictionRow]) -> None:
        """Fill in status and statistics of a batch of rows."""
        # An empty prediction is judged too: it is wrong, not absent.
        usable = [row for row in rows if row.status in (None, "empty_prediction")]
        for row, (status, values) in zip(usable, self._judge(usable), strict=True):
            # Values without a reference to compare with are none: then the reference is the fault.
            row.status = row.status if row.status and values else status
            row.values = values
        if self.options.entities is not None:
            for row in rows:
                row.entity_status = "not_judged"
            self._look_for_entities(usable)

    def _look_for_entities(self, rows: list[PredictionRow]) -> None:
        captions = [(row.number, row.prediction, row.reference, row.molecule) for row in rows]
        judged = hallucination_rows(captions, self.options.entities)
        for row, (row.entity_status, values) in zip(rows, judged, strict=True):
            row.values |= values

    def _judge(self, rows: list[PredictionRow]) -> Iterable[tuple[str, dict[str, float]]]:
        options = self.options
        pairs = [(row.prediction, row.reference) for row in rows]
        match options.task:
            case "captions":
                return [("scored", self._texts.row(*pair)) for pair in pairs]
            case "molecules":
                return [molecules.molecule_row(*pair) for pair in pairs]
            case "iupac":
                named, absent = name_rows(pairs)
                self.absent |= absent
                return [
                    (status, self._texts.row(*pair) | values)
                    for pair, (status, values) in zip(pairs, named, strict=True)
                ]
            case "motifs":
                return [quantities.motif_row(*pair) for pair in pairs]
        return [
            quantities.property_row(*pair, options.unit, self._train_mean(row))
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


def task_scores(task: str, sums: Sums, unit: str | None = None) -> dict[str, float]:
    """Return the scores of a task from the sums of its rows; an absent one is left out."""
    if task == "property":
        return quantities.property_scores(sums, unit)
    scores = {
        "captions": lambda sums: text_scores(sums) | hallucination_scores(sums),
        "molecules": molecules.molecule_scores,
        "iupac": lambda sums: text_scores(sums) | name_scores(sums),
        "motifs": quantities.motif_scores,
    }
    return scores[task](sums)


def evaluate_predictions(
    path: Path, options: Options, out: Path, progress: Callable[[int], None] | None = None
) -> dict:
    """Score a predictions file; write report.{json,md,html} and rows.parquet into `out`.

    Returns the report: ``scores`` (fractions of 1; distances and errors in their units),
    ``counts`` (``rows`` and what became of them: all other counts add up to it), ``manifest``
    (hashes, tokeniser, versions, and ``absent``: each score that is missing, with its reason) and,
    where entities are looked for, ``entity_counts`` (the same rows by what became of their CHARM).

    Empty, invalid and unparsed *predictions* stay in the scores as wrong answers; rows without a
    usable reference, ``malformed`` and ``not_utf8`` rows cannot be judged and are only counted.
    """
    from collamo.evaluation.score.predictions_report import Worst, write_predictions_report

    judge = Judge(options)
    counts = Counter(dict.fromkeys(("scored", *READING, *JUDGING[options.task]), 0))
    sums, groups, worst = Sums(), defaultdict(Sums), Worst(options.task)
    out.mkdir(parents=True, exist_ok=True)
    entity_counts = Counter(dict.fromkeys(STATUSES, 0))
    texts = TEXTS if options.entities is None else (*TEXTS, "entity_status")
    with RowsFile(out / "rows.parquet", COLUMNS[options.task], texts) as rows_file:
        for batch in batches(read_predictions(path, options.task)):
            judge.judge(batch)
            for row in batch:
                counts[row.status] += 1
                entity_counts[row.entity_status] += 1
                sums.add(row.values)
                if row.group:
                    groups[row.group].add(row.values)
                worst.see(row)
            rows_file.write(batch)
            if progress is not None:
                progress(len(batch))
    scores = _scores(options, sums, groups, judge.absent)
    if options.entities is not None and "charm_molecule" not in scores:
        judge.absent["charm_molecule"] = (
            f"needs --entities offline and one of the columns {', '.join(MOLECULE_COLUMNS)}"
        )
    report = {
        "scores": scores,
        "counts": {"rows": counts.total(), **counts},
        "manifest": _manifest(path, judge),
    }
    if options.entities is not None:
        report["entity_counts"] = {"rows": entity_counts.total(), **entity_counts}
    write_predictions_report(report, worst, out)
    return report


def _scores(options: Options, sums: Sums, groups: Mapping[str, Sums], absent: dict) -> dict:
    scores: dict = task_scores(options.task, sums, options.unit)
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


def batches(rows: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Yield `rows` in lists of `size`, the last one shorter."""
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class RowsFile:
    """Judged rows as parquet, a row group a batch; null where a statistic does not apply.

    Columns: the row's number, its `texts` (attributes of `PredictionRow`), `further` ones (name →
    arrow type) and its statistics. Written beside its name and renamed when whole.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str],
        texts: Sequence[str] = TEXTS,
        further: Mapping[str, str] | None = None,
    ):
        self._path, self._temporary = path, path.with_name(path.name + ".tmp")
        self._texts = texts
        self._schema = pa.schema(
            [("row", pa.int64())]
            + [(name, pa.string()) for name in texts]
            + [(name, pa.type_for_alias(kind)) for name, kind in (further or {}).items()]
            + [(name, pa.float64()) for name in columns]
        )
        self._writer = pq.ParquetWriter(self._temporary, self._schema)

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            with naming(self._path):
                self._writer.close()
            if kind is None:
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(
        self, rows: Sequence[PredictionRow], further: Sequence[Mapping[str, object]] | None = None
    ) -> None:
        """Append rows, with their further columns."""
        records = [
            {
                **more,
                "row": row.number,
                **{name: _clean(getattr(row, name)) for name in self._texts},
                **row.values,
            }
            for row, more in zip(rows, further or [{}] * len(rows), strict=True)
        ]
        with naming(self._path):
            self._writer.write_table(pa.Table.from_pylist(records, self._schema))


def _clean(text: str | None) -> str | None:
    """Return the text with every byte or surrogate that is no UTF-8 as a question mark."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _manifest(path: Path, judge: Judge) -> dict:
    return {
        **judge.about,
        "predictions": path.name,
        "predictions_sha256": file_sha256(path),
        "checkpoint_sha256": None,  # a predictions file does not say which model wrote it
        "absent": judge.absent,
        "versions": versions(),
    }


def versions(further: Iterable[str] = ()) -> dict[str, str | None]:
    """Return the versions of `PACKAGES` and `further` ones; None for one that is not installed."""
    return {name: _version(name) for name in (*PACKAGES, *further)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
