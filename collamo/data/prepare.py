"""`prepare`: from a source of molecules to a folder of shards, in parallel, resumable.

A shard of `shard_size` records is the unit of work: it is written whole, with the sha256 that a
resumed run checks. Workers are processes that may be killed; a molecule that hangs or crashes one
costs its own conformer or, at worst, its own row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pebble import ProcessExpired, ProcessPool

from collamo.chem.conformer import (
    FORCE_FIELD_STEPS,
    MEMORY_LIMIT,
    OUT_OF_MEMORY,
    Conformer,
    absent_conformer,
    embed_conformer,
    given_conformer,
    start_worker,
    usable_processors,
    worker_context,
)
from collamo.chem.features import featurize, unknown_to_unimol
from collamo.chem.molecule import Molecule
from collamo.chem.motifs import MOTIFS
from collamo.data.shards import (
    FORMAT_VERSION,
    MANIFEST,
    MOLECULE_SCHEMA,
    SPLITS,
    TASK_SCHEMA,
    Manifest,
    file_entry,
    shard_name,
    table_writer,
    write_table,
)
from collamo.data.sources import Source, SourceRow, count_rows, open_source
from collamo.data.splits import scaffold_of, split_by_scaffold
from collamo.data.tasks import Facts, TaskExample, measure, task_rng, write_tasks
from collamo.errors import MoleculeError, TooManyRejectedError, UsageError
from collamo.files import file_sha256, naming, write_text

# Our choice: 16 molecules per message to a worker keep the overhead below 1 %; a worker hands back
# what it has after a second, so that one slow molecule does not make its neighbours wait.
CHUNK = 16
CHUNK_SECONDS = 1.0

_READERS: dict[str, Callable[[str], Molecule]] = {
    "smiles": Molecule.from_smiles,
    "selfies": Molecule.from_selfies,
    "molblock": Molecule.from_molblock,
}


@dataclass(frozen=True)
class Options:
    """What shapes the result; stored in the manifest and compared when a run is resumed.

    Each field is the argument of `prepare` of that name.
    """

    conformers: bool = True
    force_field_steps: int = FORCE_FIELD_STEPS
    seed: int = 0
    time_limit: float = 30.0
    memory_limit: float = MEMORY_LIMIT
    limit: int | None = None
    shard_size: int = 1000
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    smiles_column: str | None = None
    caption_column: str | None = None
    iupac_column: str | None = None
    measured_columns: tuple[str, ...] = ()

    def __post_init__(self):
        """Let equal options be written alike, 30 s as 30.0, for they are compared as JSON."""
        for name, value in (
            ("time_limit", float(self.time_limit)),
            ("memory_limit", float(self.memory_limit)),
            ("split", tuple(float(share) for share in self.split)),
            ("measured_columns", tuple(self.measured_columns)),
        ):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Outcome:
    """What became of one record: a shard record, or the reason why not."""

    record: dict[str, object] | None
    code: str | None = None
    message: str | None = None


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    conformers: bool = True,
    force_field_steps: int = FORCE_FIELD_STEPS,
    seed: int = 0,
    workers: int | None = None,
    time_limit: float = 30.0,
    memory_limit: float = MEMORY_LIMIT,
    max_reject_rate: float = 0.05,
    limit: int | None = None,
    shard_size: int = 1000,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    smiles_column: str | None = None,
    caption_column: str | None = None,
    iupac_column: str | None = None,
    measured_columns: tuple[str, ...] = (),
    progress: bool = True,
) -> Manifest:
    """Turn a source of molecules into shards, splits and questions in the folder `out`.

    The same source and options give the same bytes, whatever the number of workers and however
    often the run was killed and started again: shards that are there and verify are kept. (A
    molecule near `time_limit` may keep its conformer on a fast machine and lose it on a slow one.)

    Parameters
    ----------
    source
        ``"nci"`` (the 4,999 molecules inside the RDKit wheel) or a CSV, TSV, JSONL, SMI or SDF
        file, also ``.gz``; see `open_source`.
    out
        The folder; layout in `collamo.data.shards`.
    conformers
        False: no embedding; given 3D coordinates are kept all the same.
    force_field_steps
        Of MMFF or UFF per conformer. 100 save a fifth of the time and leave a mean error of a
        distance of 0.05 Å instead of 0.014 Å.
    seed
        Of conformers, splits and questions.
    workers
        Worker processes; None takes one per processor this process may use.
    time_limit
        Seconds one molecule may take; its worker is killed then.
    memory_limit
        GiB a worker may allocate; a molecule that needs more loses its conformer or, at worst, its
        row. It has no effect outside Linux.
    max_reject_rate
        Rejected share of rows above which the run fails, after everything is written.
    limit
        Only the first so many records.
    shard_size
        Records per shard.
    split
        Shares of train, validation and test.
    smiles_column, caption_column, iupac_column, measured_columns
        Column names that are not recognised by themselves; ``"logS:log mol/L"`` gives a unit.
    progress
        Show a progress bar on stderr when it is a terminal.

    Raises
    ------
    UsageError
        A bad option or source, or a folder that holds something else.
    TooManyRejectedError
        More than `max_reject_rate` of the rows were rejected.

    Examples
    --------
    >>> manifest = prepare("nci", "data/nci", limit=100)  # doctest: +SKIP
    >>> manifest.rows  # doctest: +SKIP
    {'in': 100, 'ok': 100, 'rejected': 0}
    """
    options = Options(
        conformers=conformers,
        force_field_steps=force_field_steps,
        seed=seed,
        time_limit=time_limit,
        memory_limit=memory_limit,
        limit=limit,
        shard_size=shard_size,
        split=split,
        smiles_column=smiles_column,
        caption_column=caption_column,
        iupac_column=iupac_column,
        measured_columns=measured_columns,
    )
    _check(options, workers, max_reject_rate)
    job = _job(source, out, options)
    job.start()
    with _progress_bar(progress, job.total) as advance:
        job.write_shards(workers or usable_processors(), advance)
    manifest = job.finish()
    _check_rejected(manifest, max_reject_rate, job.out)
    return manifest


def count_shards(source: str | Path, options: Options) -> int:
    """Return how many shards `prepare` makes of `source`."""
    return _job(source, "", options).shards


def prepare_shards(
    source: str | Path,
    out: str | Path,
    shards: Collection[int],
    options: Options,
    *,
    workers: int | None = None,
) -> None:
    """Write the `shards` of this number (from 0) that are not there yet, and nothing else.

    So several machines that share the folder `out` prepare one source together; `prepare` with the
    same options then keeps their shards and writes the rest. The bytes are those of `prepare`
    alone. `examples/prepare_with_ray.py` does it.

    Raises
    ------
    UsageError
        As `prepare`.
    """
    _check(options, workers)
    job = _job(source, out, options)
    job.start()
    job.write_shards(workers or usable_processors(), lambda rows: None, shards)


def _job(source: str | Path, out: str | Path, options: Options) -> _Job:
    opened = open_source(
        source,
        smiles_column=options.smiles_column,
        caption_column=options.caption_column,
        iupac_column=options.iupac_column,
        measured_columns=options.measured_columns,
    )
    return _Job(opened, options, Path(out))


def _check(options: Options, workers: int | None, max_reject_rate: float = 1.0) -> None:
    positive = {
        "time_limit": options.time_limit,
        "memory_limit": options.memory_limit,
        "force_field_steps": options.force_field_steps,
        "shard_size": options.shard_size,
        "limit": options.limit,
        "workers": workers,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise UsageError(f"{name} is {value}; it must be above 0")
    if not 0 <= max_reject_rate <= 1:
        raise UsageError(f"max_reject_rate is {max_reject_rate}; it must be between 0 and 1")
    shares = options.split
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise UsageError(f"split is {shares}; give three shares that add up to 1")


def _check_rejected(manifest: Manifest, max_reject_rate: float, out: Path) -> None:
    rejected, total = manifest.rows["rejected"], manifest.rows["in"]
    if rejected > max_reject_rate * total:
        reasons = ", ".join(f"{count} {code}" for code, count in manifest.rejected.items())
        raise TooManyRejectedError(
            f"{rejected} of {total} rows were rejected ({reasons}), more than "
            f"{max_reject_rate:.0%}; see {out / 'rejected.jsonl'}, or raise max_reject_rate "
            "(--max-reject-rate)"
        )


class _Job:
    """One preparation: which shards are done, doing the rest, and the files over all shards."""

    def __init__(self, source: Source, options: Options, out: Path):
        self.source, self.options, self.out = source, options, out
        self.sha256 = file_sha256(source.path)
        self.total = count_rows(source, options.limit)
        self.shards = -(-self.total // options.shard_size)

    @cached_property
    def key(self) -> str:
        """What a shard was made from; shards with another key are not ours."""
        made_from = [self.sha256, self._options(), _versions(), MOTIFS, FORMAT_VERSION]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()

    def start(self) -> None:
        """Make the folder, or refuse one that holds another preparation."""
        if self.total == 0:
            raise UsageError(f"{self.source.name} holds no records")
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"{self.out} is a file; give a folder")
        self.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.out.glob("molecules-*.json")):
            content = _read_json(path)
            if content is not None and content.get("key") != self.key:
                raise UsageError(
                    f"{self.out} holds a preparation of another source, other options or other "
                    "library versions; choose another folder or delete this one"
                )

    def write_shards(
        self, workers: int, advance: Callable[[int], None], shards: Collection[int] | None = None
    ) -> None:
        """Write every shard, or of `shards` every one, that is not there yet."""
        wanted = [index for index in range(self.shards) if shards is None or index in shards]
        missing = {index for index in wanted if self._done(index) is None}
        kept = [index for index in wanted if index not in missing]
        advance(sum(self._size(index) for index in kept))
        rows = (row for row in self._rows() if self._index(row) in missing)
        waiting: dict[int, list[tuple[SourceRow, Outcome]]] = defaultdict(list)
        for row, outcome in process_rows(rows, self.options, workers):
            index = self._index(row)
            waiting[index].append((row, outcome))
            advance(1)
            if len(waiting[index]) == self._size(index):
                self._write_shard(index, waiting.pop(index))

    def finish(self) -> Manifest:
        """Write splits, questions, rejected rows and, last, the manifest."""
        rejected = [row for i in range(self.shards) for row in self._done(i)["rejected"]]
        lines = [json.dumps(row, ensure_ascii=True) for row in rejected]
        write_text(self.out / "rejected.jsonl", "".join(f"{line}\n" for line in lines))
        summary = _Summary()
        splits = self._write_splits()
        questions = self._write_tasks(splits, summary)
        names = [name for i in range(self.shards) for name in (shard_name(i), _sidecar(i))]
        names += [
            "splits.parquet",
            "rejected.jsonl",
            *(f"tasks-{split}.parquet" for split in SPLITS),
        ]
        rows = {"splits.parquet": len(splits), "rejected.jsonl": len(rejected), **questions}
        rows |= {shard_name(i): self._done(i)["rows"] for i in range(self.shards)}
        manifest = Manifest(
            source=self.source.name,
            source_sha256=self.sha256,
            options=self._options(),
            rows={"in": self.total, "ok": len(splits), "rejected": len(rejected)},
            rejected=dict(sorted(Counter(row["reason"] for row in rejected).items())),
            conformers=dict(sorted(summary.conformers.items())),
            splits={name: list(splits.values()).count(name) for name in SPLITS},
            tasks={name: dict(sorted(summary.tasks[name].items())) for name in SPLITS},
            selfies_vocabulary=sorted(summary.tokens),
            unknown_elements=dict(sorted(summary.unknown.items())),
            measured={k: dataclasses.asdict(v) for k, v in self.source.measured.items()},
            motifs=list(MOTIFS),
            versions=_versions(),
            files={name: file_entry(self.out / name, rows.get(name, 0)) for name in names},
        )
        manifest.write(self.out / MANIFEST)
        return manifest

    def _options(self) -> dict[str, object]:
        options = dataclasses.asdict(self.options)
        return options | {
            "split": list(self.options.split),
            "measured_columns": list(self.options.measured_columns),
        }

    def _rows(self) -> Iterator[SourceRow]:
        return islice(self.source, self.options.limit)

    def _index(self, row: SourceRow) -> int:
        return (row.number - 1) // self.options.shard_size

    def _size(self, index: int) -> int:
        return min(self.options.shard_size, self.total - index * self.options.shard_size)

    def _done(self, index: int) -> dict | None:
        """Return the sidecar of a shard that is there, ours and unaltered."""
        content = _read_json(self.out / _sidecar(index))
        path = self.out / shard_name(index)
        if content is None or content.get("key") != self.key or not path.is_file():
            return None
        return content if file_sha256(path, remember=True) == content["sha256"] else None

    def _write_shard(self, index: int, outcomes: list[tuple[SourceRow, Outcome]]) -> None:
        """Write the shard, then its sidecar: a shard without one is done again."""
        outcomes = sorted(outcomes, key=lambda pair: pair[0].number)
        records = [outcome.record for _, outcome in outcomes if outcome.record is not None]
        rejected = [
            {
                "row": row.number,
                "text": row.text,
                "reason": outcome.code,
                "message": f"row {row.number}: {outcome.message}",
            }
            for row, outcome in outcomes
            if outcome.record is None
        ]
        path = self.out / shard_name(index)
        write_table(path, records, MOLECULE_SCHEMA)
        sidecar = {
            "key": self.key,
            "sha256": file_sha256(path, remember=True),
            "rows": len(records),
            "rejected": rejected,
        }
        write_text(self.out / _sidecar(index), json.dumps(sidecar, ensure_ascii=True) + "\n")

    def _write_splits(self) -> dict[int, str]:
        """Return row → split, and write it down."""
        rows, molecules = [], []
        for index in range(self.shards):
            table = pq.read_table(
                self.out / shard_name(index), columns=["row", "canonical_smiles", "scaffold"]
            )
            rows += table["row"].to_pylist()
            columns = table["canonical_smiles"].to_pylist(), table["scaffold"].to_pylist()
            molecules += zip(*columns, strict=True)
        splits = split_by_scaffold(molecules, self.options.split, self.options.seed)
        records = [{"row": r, "split": s} for r, s in zip(rows, splits, strict=True)]
        schema = pa.schema([("row", pa.int64()), ("split", pa.string())])
        write_table(self.out / "splits.parquet", records, schema)
        return dict(zip(rows, splits, strict=True))

    def _write_tasks(self, splits: dict[int, str], summary: _Summary) -> dict[str, int]:
        """Write the questions of every split; return file → questions."""
        names = {split: f"tasks-{split}.parquet" for split in SPLITS}
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(table_writer(self.out / name, TASK_SCHEMA))
                for split, name in names.items()
            }
            for index in range(self.shards):
                examples = defaultdict(list)
                for record in pq.read_table(self.out / shard_name(index)).to_pylist():
                    split = splits[record["row"]]
                    written = self._questions(record)
                    summary.add(record, split, written)
                    examples[split] += written
                for split, found in examples.items():
                    fields = [dataclasses.asdict(example) for example in found]
                    with naming(self.out / names[split]):
                        writers[split].write_table(pa.Table.from_pylist(fields, schema=TASK_SCHEMA))
        return {name: sum(summary.tasks[split].values()) for split, name in names.items()}

    def _questions(self, record: dict) -> list[TaskExample]:
        facts = Facts(
            formula=record["formula"],
            motifs=dict(zip(MOTIFS, record["motifs"], strict=True)),
            properties=dict(record["properties"]),
            geometry=dict(record["geometry"]),
        )
        rng = task_rng(self.options.seed, record["canonical_smiles"])
        columns = dict(record["columns"])
        return write_tasks(facts, columns, rng, record["row"], self.source.measured)


class _Summary:
    """Counts for the manifest, gathered while questions are written."""

    def __init__(self):
        self.conformers: Counter[str] = Counter()
        self.tasks: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self.tokens: set[str] = set()
        self.unknown: dict[str, dict[str, int]] = {}

    def add(self, record: dict, split: str, examples: list[TaskExample]) -> None:
        self.conformers[record["conformer_method"]] += 1
        self.tasks[split].update(example.task for example in examples)
        if split == "train":
            self.tokens.update(record["selfies"] or ())
        if record["coordinates"] is not None:
            atoms = np.array(record["atom_features"]).reshape(-1, 9)
            for element, count in unknown_to_unimol(atoms).items():
                found = self.unknown.setdefault(element, {"molecules": 0, "atoms": 0})
                found["molecules"] += 1
                found["atoms"] += count


def process_rows(
    rows: Iterable[SourceRow], options: Options, workers: int
) -> Iterator[tuple[SourceRow, Outcome]]:
    """Yield each row with what became of it, in the order in which workers finish.

    A chunk that dies, hangs or runs out of memory is done again molecule by molecule; a molecule
    that does so alone is done without a conformer; one that does even then is rejected.
    """
    source = _chunks(rows)
    again: deque[_Task] = deque()
    running: dict[object, _Task] = {}
    pool = ProcessPool(
        max_workers=workers,
        context=worker_context(),
        initializer=start_worker,
        initargs=[options.memory_limit],
    )
    try:
        while True:
            while len(running) < 3 * workers and (task := _next(again, source)) is not None:
                running[task.schedule(pool, options)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                finished, unfinished = running.pop(future).result(future, options)
                again.extend(unfinished)
                yield from finished
    finally:
        pool.stop()
        pool.join()


def _chunks(rows: Iterable[SourceRow]) -> Iterator[_Task]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK)):
        yield _Task(chunk)


def _next(again: deque[_Task], source: Iterator[_Task]) -> _Task | None:
    return again.popleft() if again else next(source, None)


@dataclass(frozen=True)
class _Task:
    """Rows for one message to a worker; `absence` says why a conformer is not to be tried again."""

    rows: list[SourceRow]
    absence: str | None = None

    def schedule(self, pool: ProcessPool, options: Options):
        limit = options.time_limit + (CHUNK_SECONDS if len(self.rows) > 1 else 0.0)
        return pool.schedule(_work, args=[self.rows, options, self.absence], timeout=limit)

    def result(
        self, future, options: Options
    ) -> tuple[list[tuple[SourceRow, Outcome]], list[_Task]]:
        """Return (rows with their outcomes, what is still to be done)."""
        try:
            outcomes = future.result()
        except TimeoutError:
            return self._failed("time_limit", f"took longer than {options.time_limit:g} s")
        except ProcessExpired as error:
            return self._failed("crash", f"RDKit crashed (exit code {error.exitcode})")
        except MemoryError:
            return self._failed("memory", OUT_OF_MEMORY)
        done = list(zip(self.rows, outcomes, strict=False))
        rest = self.rows[len(outcomes) :]
        return done, [_Task(rest)] if rest else []

    def _failed(self, code: str, reason: str) -> tuple[list, list[_Task]]:
        if len(self.rows) > 1:
            return [], [_Task([row]) for row in self.rows]
        if self.absence is None:
            return [], [_Task(self.rows, absence=reason)]
        return [(self.rows[0], Outcome(None, code, f"molecule {reason}"))], []


def _work(rows: list[SourceRow], options: Options, absence: str | None) -> list[Outcome]:
    """In a worker: the outcomes of the first rows, as many as a second allows, at least one."""
    deadline, outcomes = monotonic() + CHUNK_SECONDS, []
    for row in rows:
        outcomes.append(process_row(row, options, absence))
        if monotonic() > deadline:
            break
    return outcomes


def process_row(row: SourceRow, options: Options, absence: str | None = None) -> Outcome:
    """Return the shard record of one row, or the reason why there is none. Runs in this process."""
    if row.problem is not None:
        return Outcome(None, *row.problem)
    try:
        molecule = _READERS[row.kind](row.text)
        conformer = _conformer(molecule, options, absence)
        return Outcome(_record(row, molecule, conformer))
    except MoleculeError as error:
        return Outcome(None, getattr(error, "code", "unreadable"), str(error))
    except (RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())[:200]
        return Outcome(None, "rdkit", f"RDKit failed: {type(error).__name__} {message}")


def _conformer(molecule: Molecule, options: Options, absence: str | None) -> Conformer:
    given = given_conformer(molecule)
    if given is not None:
        return given
    if absence is not None:
        return absent_conformer(absence, options.seed)
    if not options.conformers:
        return absent_conformer("not asked for")
    return embed_conformer(molecule, options.seed, options.force_field_steps)


def _record(row: SourceRow, molecule: Molecule, conformer: Conformer) -> dict[str, object]:
    features = featurize(molecule, conformer)
    facts = measure(molecule, conformer)
    coordinates = conformer.coordinates
    return {
        "row": row.number,
        "text": row.text.partition("\n")[0] if row.kind == "molblock" else row.text,
        "smiles": features.smiles,
        "canonical_smiles": molecule.canonical_smiles,
        "scaffold": scaffold_of(molecule.canonical_smiles),
        "selfies": features.selfies,
        "selfies_reason": molecule.selfies_reason,
        "atom_features": features.atom_features.ravel(),
        "edge_index": features.edge_index.ravel(),
        "edge_features": features.edge_features.ravel(),
        "bond_directions": features.bond_directions,
        "coordinates": None if coordinates is None else coordinates.ravel(),
        "conformer_method": conformer.method,
        "conformer_seed": conformer.seed,
        "conformer_converged": conformer.converged,
        "conformer_reason": conformer.reason,
        "formula": facts.formula,
        "motifs": [facts.motifs[name] for name in MOTIFS],
        "properties": list(facts.properties.items()),
        "geometry": list(facts.geometry.items()),
        "columns": list(row.columns.items()),
    }


def _sidecar(index: int) -> str:
    return shard_name(index).replace(".parquet", ".json")


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _versions() -> dict[str, str]:
    names = ("rdkit", "selfies", "numpy", "pyarrow")
    return {name: version(name) for name in names}


class _progress_bar:
    """A rich bar on stderr when it is a terminal; otherwise silent. Yields ``advance(rows)``."""

    def __init__(self, wanted: bool, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True)
        self.bar = Progress(
            "preparing molecules",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not wanted or not console.is_terminal,
        )
        self.task = self.bar.add_task("preparing", total=total)

    def __enter__(self) -> Callable[[int], None]:
        self.bar.start()
        return lambda rows: self.bar.advance(self.task, rows)

    def __exit__(self, *_) -> None:
        self.bar.stop()
