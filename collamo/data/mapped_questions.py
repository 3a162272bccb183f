"""The questions of a split, from mapped files: what `collamo.data.mapped` keeps of
``tasks-….parquet``.

A split asks in some hundred wordings for some hundred targets; what a question is, without its
answer, is its kind, and stands in memory once. Numbers, lengths and answers stand in files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collamo.data.mapped_batches import ROWS, Files, MappedBatches, batch_writer
from collamo.data.mapped_file import MappedArray, array_writer
from collamo.data.tasks import TASKS, TaskExample
from collamo.errors import CollamoError

_SCHEMA = pa.schema([("answers", pa.list_(pa.string())), ("values", pa.list_(pa.float64()))])
_ARRAYS = {
    "molecules": "<i8",  # the row of each molecule that has questions
    "first": "<i8",  # its first question; one more says how many there are
    "atoms": "<i4",
    "tasks": "<u1",  # bit i: it has questions of TASKS[i]
    "kinds": "<u4",  # of each question
    "characters": "<u4",  # of its answer
}


class Kind(NamedTuple):
    """What questions have in common whose answers differ."""

    task: str
    target: str
    question: str
    unit: str | None


class Asked(NamedTuple):
    """The Q questions about one molecule, without their text."""

    row: int
    kinds: np.ndarray
    """[Q] uint32."""
    answer_lengths: np.ndarray
    """[Q] uint32, characters."""


class MappedQuestions(Sequence[TaskExample]):
    """The Q questions of a split, molecule by molecule in row order; M molecules have any.

    Nothing of it grows with the data but what is read is read anew: a molecule's questions cost
    some reads of mapped files.

    Attributes
    ----------
    kinds
        Number → what is asked.
    molecules, atoms
        [M] rows, and their molecules' numbers of atoms.
    """

    def __init__(self, files: Files, split: str, kinds: Iterable[Sequence[str | None]]):
        self.kinds = [Kind(*kind) for kind in kinds]  # type: ignore[arg-type]
        self._answers = MappedBatches(files, f"tasks-{split}", _Answers)
        arrays = {name: MappedArray(files[f"tasks-{split}-{name}.npy"]) for name in _ARRAYS}
        self.molecules, self.atoms = arrays["molecules"], arrays["atoms"]
        self._first, self._tasks = arrays["first"], arrays["tasks"]
        self._kinds, self._characters = arrays["kinds"], arrays["characters"]
        self._asked = np.array([len(kind.question) for kind in self.kinds], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, index: int) -> TaskExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskExample]: ...
    def __getitem__(self, index: int | slice) -> TaskExample | list[TaskExample]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        place = int(np.searchsorted(self._first[:], number, side="right")) - 1
        return self.examples(place, [number - self.of(place)[0]])[0]

    def __iter__(self) -> Iterator[TaskExample]:
        for place in range(len(self.molecules)):
            first, end = self.of(place)
            yield from self.examples(place, range(end - first))

    def of(self, place: int) -> tuple[int, int]:
        """Return the first question of the molecule at `place`, and the first of the next."""
        first, end = self._first[place : place + 2].tolist()
        return first, end

    def at(self, place: int) -> Asked:
        """Return what is asked about the molecule at `place`."""
        first, end = self.of(place)
        (row,) = self.molecules[place : place + 1].tolist()
        return Asked(row, self._kinds[first:end], self._characters[first:end])

    def size(self, place: int, chosen: np.ndarray) -> int:
        """Return 4 × atoms + characters of `chosen` questions, and their answers, of a molecule."""
        molecule = self.at(place)
        asked = self._asked[molecule.kinds[chosen]].sum()
        answered = molecule.answer_lengths[chosen].sum()
        return int(4 * self.atoms[place : place + 1][0] + asked + answered)

    def task_numbers(self) -> np.ndarray:
        """Return of each question [Q] uint8 the number of its task, by alphabet."""
        names = sorted({kind.task for kind in self.kinds})
        numbers = np.array([names.index(kind.task) for kind in self.kinds], dtype=np.uint8)
        return numbers[self._kinds[:]]

    def asking(self, names: Collection[str]) -> np.ndarray | None:
        """Return the places of the molecules with questions of tasks in `names`; None: of all."""
        bits = sum(1 << TASKS.index(name) for name in names)
        places = np.flatnonzero(self._tasks[:] & bits)
        return None if len(places) == len(self.molecules) else places

    def examples(self, place: int, chosen: Iterable[int]) -> list[TaskExample]:
        """Return questions of the molecule at `place`, by their numbers among its own."""
        batch, i = divmod(place, ROWS)
        answers, molecule = self._answers[batch], self.at(place)
        examples = []
        for number in chosen:
            kind = self.kinds[molecule.kinds[number]]
            answer, value = answers.get(i, number)
            examples.append(
                TaskExample(
                    *(molecule.row, kind.task, kind.target, kind.question),
                    *(answer, value, kind.unit),
                )
            )
        return examples


class _Answers:
    """A record batch: answers and values of molecules' questions."""

    def __init__(self, batch: pa.RecordBatch):
        self.answers, self.values = (batch.column(name).values for name in _SCHEMA.names)
        self.offsets = batch.column("answers").offsets.to_numpy()

    def get(self, i: int, j: int) -> tuple[str, float | None]:
        """Return answer and value of question j of molecule i."""
        place = int(self.offsets[i]) + j
        return self.answers[place].as_py(), self.values[place].as_py()


def write_questions(
    folder: Path,
    split: str,
    tables: Iterable[pa.Table],
    atoms: Callable[[np.ndarray], np.ndarray],
    advance: Callable[[int], None] = lambda molecules: None,
) -> list[Kind]:
    """Write the questions in `tables` (`TASK_SCHEMA`); return their kinds by number.

    `atoms` gives how many the molecules of rows [n] have.

    Raises
    ------
    CollamoError
        Where the questions of a molecule do not stand together, in the order of rows.
    """
    name = f"tasks-{split}"
    kinds: dict[tuple, int] = {}
    total, newest = 0, 0
    with ExitStack() as stack:
        answers = stack.enter_context(batch_writer(folder, name, _SCHEMA))
        arrays = {
            key: stack.enter_context(array_writer(folder / f"{name}-{key}.npy", dtype))
            for key, dtype in _ARRAYS.items()
        }
        arrays["first"].append(np.zeros(1))
        for table in _whole_molecules(tables):
            rows, counts = np.unique(table["molecule"].to_numpy(), return_counts=True)
            if (np.diff(table["molecule"].to_numpy()) < 0).any() or rows[0] <= newest:
                raise CollamoError(
                    f"the questions of the {split} split do not stand in the order of their "
                    "molecules; run `collamo prepare` again"
                )
            newest, last = int(rows[-1]), counts.cumsum()
            numbers = _numbered(table, kinds)
            offsets = pa.array(np.concatenate([[0], last]), pa.int32())
            columns = [
                pa.ListArray.from_arrays(offsets, table[column].combine_chunks())
                for column in ("answer", "value")
            ]
            answers.append(pa.table(columns, schema=_SCHEMA))
            task_bits = np.array([1 << TASKS.index(task) for task, *_ in kinds], dtype=np.uint8)
            arrays["molecules"].append(rows)
            arrays["first"].append(last + total)
            arrays["atoms"].append(atoms(rows))
            arrays["tasks"].append(np.bitwise_or.reduceat(task_bits[numbers], last - counts))
            arrays["kinds"].append(numbers)
            arrays["characters"].append(pc.utf8_length(table["answer"]).to_numpy())
            total += len(table)
            advance(len(rows))
    return [Kind(*kind) for kind in kinds]


def _whole_molecules(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in other tables, so that no molecule's stand in two of them."""
    waiting: pa.Table | None = None
    for table in tables:
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        molecules = waiting["molecule"].to_numpy()
        whole = int(np.searchsorted(molecules, molecules[-1])) if len(molecules) else 0
        if whole:
            yield waiting.slice(0, whole)
            waiting = waiting.slice(whole)
    if waiting is not None and len(waiting):
        yield waiting


def _numbered(table: pa.Table, kinds: dict[tuple, int]) -> np.ndarray:
    """Return the number of each question's kind; new ones are added to `kinds`."""
    key, columns = np.zeros(len(table), dtype=np.int64), []
    for name in Kind._fields:
        encoded = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
        columns.append((encoded.indices.to_numpy(), encoded.dictionary.to_pylist()))
        key = key * len(columns[-1][1]) + columns[-1][0]
    _, places, inverse = np.unique(key, return_index=True, return_inverse=True)
    found = [tuple(words[int(codes[i])] for codes, words in columns) for i in places.tolist()]
    return np.array([kinds.setdefault(kind, len(kinds)) for kind in found])[inverse]
