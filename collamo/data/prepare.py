"""`prepare`: from a source of molecules to a folder of shards, splits and questions.

Several machines can share the work on the shards (`collamo.data.cluster`); splits, questions and
the manifest need them all, and are written by the machine that was asked.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collamo.chem.conformer_workers import usable_processors
from collamo.chem.features import unknown_to_unimol
from collamo.chem.motifs import MOTIFS
from collamo.data.card import write_card
from collamo.data.cluster import delete_left, write_on_cluster
from collamo.data.column_guesses import check_guesses
from collamo.data.columns import MeasuredColumn
from collamo.data.facts import Facts, why_unknown
from collamo.data.manifest import MANIFEST, Manifest, file_entry
from collamo.data.measured_values import UnreadValue, has_decimal_comma, read_measured
from collamo.data.missing_values import is_missing
from collamo.data.options import PrepareOptions, check_positive
from collamo.data.parents import PARENT_COLUMNS, Parents
from collamo.data.prepared import PreparedData
from collamo.data.sharding import Sharding, sidecar_of
from collamo.data.shards import FACT_COLUMNS, SPLITS, TASK_SCHEMA, by_name, table_writer, tasks_path
from collamo.data.splits import (
    joined_by_parent,
    overlaps,
    split_at_random,
    split_by_scaffold,
    split_by_sizes,
    split_named,
)
from collamo.data.tasks import TaskExample, task_rng, write_tasks
from collamo.errors import TooManyRejectedError, UsageError
from collamo.files import naming, write_text
from collamo.progress import progress_bar
from collamo.storage import Folder, local_file


def prepare(
    source: str | Path,
    out: str | Path,
    options: PrepareOptions | None = None,
    *,
    workers: int | None = None,
    max_reject_rate: float = 0.05,
    progress: bool = True,
    ray: str | None = None,
) -> Manifest:
    """Turn a source of molecules into shards, splits and questions in the folder `out`.

    The same source and options give the same bytes, whatever the number of workers and however
    often the run was killed and started again: shards that are there and verify are kept. Nor does
    it depend on what else the machine does: the time limit is processor time. (A molecule near it
    may keep its conformer on a fast machine and lose it on a slow one.)

    Parameters
    ----------
    source
        ``"nci"`` (the 4,999 molecules inside the RDKit wheel), ``"qm9"`` (the wheel qm9pack) or a
        CSV, TSV, JSONL, SMI, SDF or XYZ file, also ``.gz``; see `open_source`. Also a URL that
        fsspec opens, as text.
    out
        The folder, a path or such a URL; layout in `collamo.data.prepared`.
    options
        What shapes the result; None: the defaults of `PrepareOptions`.
    workers
        Worker processes; None takes one per processor this process may use. With `ray` the most
        shards in work at a time; None: all that the cluster has processors for.
    max_reject_rate
        Rejected share of rows above which the run fails, after everything is written.
    progress
        Say on stderr how many rows a second were prepared, and show a bar when it is a terminal.
    ray
        Address of the Ray cluster whose machines make the shards: ``"auto"``, ``"head:6379"``,
        ``"ray://head:10001"``; ``"local"`` starts Ray on this machine. None: no Ray.

    Raises
    ------
    UsageError
        A bad option or source, or a folder that holds something else.
    TooManyRejectedError
        More than `max_reject_rate` of the rows were rejected.
    MissingDependencyError
        `ray` without Ray, or a URL without the package that opens it.
    CollamoError
        The cluster or a store gave up; started again, `prepare` goes on where it was.

    Examples
    --------
    >>> manifest = prepare("nci", "data/nci", PrepareOptions(limit=100))  # doctest: +SKIP
    >>> manifest.rows  # doctest: +SKIP
    {'in': 100, 'ok': 100, 'rejected': 0}
    """
    check_positive({"workers": workers})
    if not 0 <= max_reject_rate <= 1:
        raise UsageError(f"max_reject_rate is {max_reject_rate}; it must be between 0 and 1")
    begin = time.monotonic()
    folder = Folder.at(out)
    with folder.workplace() as place, local_file(source) as file:
        sharding = Sharding(file, options or PrepareOptions(), folder, place)
        sharding.start()
        missing = sharding.missing()
        rows = sharding.rows_of(missing)
        with progress_bar("preparing molecules", rows, show=progress) as advance:
            if ray is None:
                sharding.write(missing, workers or usable_processors(), advance)
            else:
                write_on_cluster(sharding, missing, ray, workers, advance)
        delete_left(folder)
        here = workers if workers is not None and ray is None else usable_processors()
        parents = Parents.of_shards(sharding.paths(), sharding.options, here, progress=progress)
        manifest = _finish(sharding, parents)
    if folder.path is not None:
        _ = PreparedData.open(folder.path).mapped  # what training reads
    _check_rejected(manifest, max_reject_rate, folder)
    if progress and rows:
        print(_pace(rows, sharding.total, time.monotonic() - begin), file=sys.stderr)
    return manifest


def _pace(rows: int, total: int, seconds: float) -> str:
    """Return how fast the rows were prepared, everything counted, and how many were there before.

    >>> _pace(500, 2_000, 4.0)
    '500 rows in 4.0 s: 125.0 rows/s; 1,500 were there'
    """
    there = f"; {total - rows:,} were there" if rows < total else ""
    return f"{rows:,} rows in {seconds:,.1f} s: {rows / seconds:,.1f} rows/s{there}"


def _check_rejected(manifest: Manifest, max_reject_rate: float, folder: Folder) -> None:
    rejected, total = manifest.rows["rejected"], manifest.rows["in"]
    if rejected > max_reject_rate * total:
        reasons = ", ".join(f"{count} {code}" for code, count in manifest.rejected.items())
        raise TooManyRejectedError(
            f"{rejected} of {total} rows were rejected ({reasons}), more than "
            f"{max_reject_rate:.0%}; see {folder}/rejected.jsonl, or raise max_reject_rate "
            "(--max-reject-rate)"
        )


def _finish(sharding: Sharding, found: Parents) -> Manifest:
    """Write splits, questions, rejected rows and, last, the manifest."""
    out, source, sidecars = sharding.out, sharding.source, sharding.sidecars()
    rejected = [row for sidecar in sidecars for row in sidecar["rejected"]]
    lines = [json.dumps(row, ensure_ascii=True) for row in rejected]
    write_text(out / "rejected.jsonl", "".join(f"{line}\n" for line in lines))
    splits, parents, overlap = _write_splits(sharding, found)
    guesses = check_guesses(source.guessed, _columns(sharding)) if source.guessed else None
    measured = _with_decimal_commas(
        {**source.measured, **(guesses.measured if guesses else {})}, sharding
    )
    summary = _write_tasks(sharding, splits, measured)
    rows: dict[Path, int] = {}
    for path, sidecar in zip(sharding.paths(), sidecars, strict=True):
        rows |= {path: sidecar["rows"], sidecar_of(path): 0}
    stored = set(rows)
    rows |= {out / "splits.parquet": len(splits), out / "rejected.jsonl": len(rejected)}
    rows |= {tasks_path(out, split): summary.tasks[split].total() for split in SPLITS}
    counts = {"in": sharding.total, "ok": len(splits), "rejected": len(rejected)}
    rows[write_card(out, source.name, sharding.sha256, counts)] = 0
    manifest = Manifest(
        source=source.name,
        source_sha256=sharding.sha256,
        options=sharding.options,
        rows=counts,
        rejected=dict(sorted(Counter(str(row["reason"]) for row in rejected).items())),
        conformers=dict(sorted(summary.conformers.items())),
        splits={name: list(splits.values()).count(name) for name in SPLITS},
        tasks={name: dict(sorted(summary.tasks[name].items())) for name in SPLITS},
        selfies_vocabulary=sorted(summary.tokens),
        unknown_elements=dict(sorted(summary.unknown.items())),
        parents=parents,
        overlaps=overlap,
        measured=measured,
        guesses=list(guesses.sentences) if guesses else [],
        values={name: dict(sorted(counts.items())) for name, counts in summary.values.items()},
        unknown_facts={
            name: dict(sorted(counts.items()))
            for name, counts in sorted(summary.unknown_facts.items())
        },
        absent_conformers=dict(summary.absent.most_common()),
        embedded_anew=dict(summary.embedded_anew.most_common()),
        motifs=list(MOTIFS),
        versions=sharding.versions,
        files={path.name: file_entry(path, count) for path, count in rows.items()},
    )
    manifest.write(out / MANIFEST)
    for path in (*(path for path in rows if path not in stored), out / MANIFEST):
        sharding.folder.store(path)
    return manifest


def _write_splits(
    sharding: Sharding, found: Parents
) -> tuple[dict[int, str], dict[str, int], dict[str, dict[str, int]]]:
    """Write row → split and parent down; return splits, the manifest's `parents`, `overlaps`."""
    names = ["row", "canonical_smiles", "scaffold", *PARENT_COLUMNS]
    names += ["columns"] if sharding.options.split_column else []
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for path in sharding.paths():
        shard = pq.read_table(path, columns=names).to_pydict()
        forms = zip(*(shard.pop(name) for name in PARENT_COLUMNS), strict=True)
        parents = [found.of(*form) for form in forms]
        shard["parent"] = [parent.smiles for parent in parents]
        shard["bounded"] = [parent.bounded for parent in parents]
        if "columns" in shard:
            named = (split_named(by_name(row).get("split")) for row in shard.pop("columns"))
            shard["split"] = [split or "train" for split in named]  # rows without were rejected
        for name, values in shard.items():
            columns[name] += values
    columns["split"] = columns["split"] or _splits(sharding, columns)
    schema = pa.schema([("row", pa.int64()), ("split", pa.string()), ("parent", pa.string())])
    with table_writer(sharding.out / "splits.parquet", schema) as writer:
        writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))
    splits, molecules = columns["split"], columns["canonical_smiles"]
    counts = {
        "molecules": len(set(molecules)),
        "parents": len(set(columns["parent"])),
        "joined": joined_by_parent(molecules, columns["parent"]),
        "bounded": len(set(compress(molecules, columns["bounded"]))),
    }
    by_row = dict(zip(columns["row"], splits, strict=True))
    return by_row, counts, overlaps(splits, molecules, columns["parent"])


def _splits(sharding: Sharding, columns: Mapping[str, list[Any]]) -> list[str]:
    """Return the split of each molecule, by the rule of the options."""
    options = sharding.options
    if options.split_by == "published":
        return split_by_sizes(len(columns["row"]), sharding.split_sizes(), options.seed)
    if options.split_by == "random":
        return split_at_random(columns["parent"], options.split, options.seed)
    molecules = list(zip(columns["canonical_smiles"], columns["scaffold"], strict=True))
    return split_by_scaffold(molecules, options.split, options.seed, columns["parent"])


def _columns(sharding: Sharding) -> Iterator[dict[str, str]]:
    """Yield the source's columns of every molecule."""
    for path in sharding.paths():
        yield from map(by_name, pq.read_table(path, columns=["columns"])["columns"].to_pylist())


def _with_decimal_commas(
    measured: Mapping[str, MeasuredColumn], sharding: Sharding
) -> dict[str, MeasuredColumn]:
    commas = {
        name
        for columns in (_columns(sharding) if measured else ())
        for name in measured
        if has_decimal_comma(columns.get(name, ""))
    }
    return {
        name: dataclasses.replace(column, decimal_comma=name in commas)
        for name, column in measured.items()
    }


def _write_tasks(
    sharding: Sharding, splits: Mapping[int, str], measured: Mapping[str, MeasuredColumn]
) -> _Summary:
    """Write the questions of every split, and return the counts of everything read on the way."""
    source = sharding.source
    summary = _Summary(
        {"caption": source.caption_column, "iupac_name": source.iupac_column}, measured
    )
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(table_writer(tasks_path(sharding.out, split), TASK_SCHEMA))
            for split in SPLITS
        }
        for path in sharding.paths():
            examples: dict[str, list[TaskExample]] = defaultdict(list)
            for record in pq.read_table(path, columns=_READ_FOR_QUESTIONS).to_pylist():
                split = splits[record["row"]]
                written = _questions(record, sharding.options, measured)
                summary.add(record, split, written)
                examples[split] += written
            for split, written in examples.items():
                with naming(tasks_path(sharding.out, split)):
                    writers[split].write_table(_task_table(written))
    return summary


# The other columns of a shard are large, and cost a third of the time of this step.
_READ_FOR_QUESTIONS = [
    *("row", "canonical_smiles", "selfies", "atom_features", "coordinates"),
    *("conformer_method", "conformer_reason", *FACT_COLUMNS, "columns"),
]


def _task_table(examples: Sequence[TaskExample]) -> pa.Table:
    fields = {name: [getattr(example, name) for example in examples] for name in TASK_SCHEMA.names}
    return pa.table(fields, schema=TASK_SCHEMA)


def _questions(
    record: Mapping[str, Any], options: PrepareOptions, measured: Mapping[str, MeasuredColumn]
) -> list[TaskExample]:
    properties = by_name(record["properties"])
    facts = Facts(
        formula=record["formula"],
        motifs=dict(zip(MOTIFS, record["motifs"], strict=True)),
        properties={name: x for name, x in properties.items() if why_unknown(x) is None},
        geometry=by_name(record["geometry"]),
    )
    columns, shapes = by_name(record["columns"]), options.shape_questions
    rng = task_rng(options.seed, record["canonical_smiles"])
    return write_tasks(facts, columns, rng, record["row"], measured, shapes=shapes)


class _Summary:
    """Counts for the manifest, gathered while questions are written."""

    def __init__(self, texts: Mapping[str, str | None], measured: Mapping[str, MeasuredColumn]):
        self._texts, self._measured = texts, measured
        self.values: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.unknown_facts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.absent: Counter[str] = Counter()
        self.embedded_anew: Counter[str] = Counter()
        self.conformers: Counter[str] = Counter()
        self.tasks: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self.tokens: set[str] = set()
        self.unknown: dict[str, dict[str, int]] = {}

    def add(self, record: Mapping[str, Any], split: str, examples: Sequence[TaskExample]) -> None:
        self.conformers[record["conformer_method"]] += 1
        self.tasks[split].update(example.task for example in examples)
        self._count_values(by_name(record["columns"]))
        for name, value in by_name(record["properties"]).items():
            reason = why_unknown(value)
            if reason is not None:
                self.unknown_facts[name][reason] += 1
        if record["coordinates"] is None:
            self.absent[record["conformer_reason"]] += 1
        elif record["conformer_reason"] is not None:
            self.embedded_anew[record["conformer_reason"]] += 1
        if split == "train":
            self.tokens.update(record["selfies"] or ())
        if record["coordinates"] is not None:
            atoms = np.array(record["atom_features"]).reshape(-1, 9)
            for element, count in unknown_to_unimol(atoms).items():
                counts = self.unknown.setdefault(element, {"molecules": 0, "atoms": 0})
                counts["molecules"] += 1
                counts["atoms"] += count

    def _count_values(self, columns: Mapping[str, str]) -> None:
        for name, column in self._texts.items():
            if column is not None:
                text = columns.get(name, "")
                kind = "missing" if is_missing(text) else "text"
                self.values[column][kind if text.strip() else "blank"] += 1
        for name, measured in self._measured.items():
            try:
                kind = read_measured(columns.get(name, ""), measured.decimal_comma).kind
            except UnreadValue as error:
                kind = error.reason
            self.values[name][kind] += 1
