"""Rows, and later parents, made side by side in workers that may hang, crash or use up memory."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from collamo.chem.conformer import OUT_OF_MEMORY
from collamo.chem.conformer_workers import (
    is_processor_limit,
    on_the_clock,
    processor_limit,
    start_worker,
    wall_limit,
    worker_context,
)
from collamo.chem.parent import Parent, canonical_tautomer
from collamo.data.gpu_rows import placed_rows
from collamo.data.options import PrepareOptions
from collamo.data.records import Outcome, process_row
from collamo.data.sources import SourceRow
from collamo.errors import UsageError

# Our choice: 16 molecules per message to a worker keep the overhead below 1 %; a worker hands back
# what it has after a second, so that one slow molecule does not make its neighbours wait.
CHUNK = 16
CHUNK_SECONDS = 1.0

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


def process_rows(
    rows: Iterable[SourceRow], options: PrepareOptions, workers: int
) -> Iterator[tuple[SourceRow, Outcome]]:
    """Yield each row with what became of it, in the order in which workers finish.

    A chunk that dies, hangs or runs out of memory is done again molecule by molecule; a molecule
    that does so alone is done without a conformer; one that does even then is rejected. Where the
    options say so, a GPU places the atoms first.
    """
    if options.conformers and options.embedder == "nvmolkit":
        rows = placed_rows(rows, options)
    return _in_workers(_Job(process_row, _rejected, options), rows, workers)


def find_parents(
    neutral: Iterable[str], options: PrepareOptions, workers: int
) -> Iterator[tuple[str, Parent]]:
    """Yield the SMILES of each neutral form with its parent, in the order in which workers finish.

    One whose search dies, hangs or runs out of memory is its own parent, and bounded.
    """
    return _in_workers(_Job(_find_parent, _own_parent, options), neutral, workers)


@dataclass(frozen=True)
class _Job(Generic[_Item, _Done]):
    """What workers do with items one by one, and what stands for one that they cannot do.

    `one` takes an item, the options and why the item failed before (None: it did not); `given_up`
    an item, a code and a reason.
    """

    one: Callable[[_Item, PrepareOptions, str | None], _Done]
    given_up: Callable[[_Item, str, str], _Done]
    options: PrepareOptions


def _rejected(row: SourceRow, code: str, reason: str) -> Outcome:
    return Outcome(None, code, f"molecule {reason}")


def _find_parent(neutral: str, options: PrepareOptions, failed: str | None) -> Parent:
    return canonical_tautomer(neutral) if failed is None else _own_parent(neutral)


def _own_parent(neutral: str, *why: str) -> Parent:
    return Parent(neutral, bounded=True)


def _in_workers(
    job: _Job[_Item, _Done], items: Iterable[_Item], workers: int
) -> Iterator[tuple[_Item, _Done]]:
    """Yield each item with what the job makes of it, in the order in which workers finish."""
    source = _chunks(items)
    again: deque[_Message[_Item]] = deque()
    running: dict[Future[list[_Done]], _Message[_Item]] = {}
    pool = ProcessPool(
        max_workers=workers,
        context=worker_context(),
        initializer=start_worker,
        initargs=[job.options.memory_limit],
    )
    try:
        while True:
            while len(running) < 3 * workers and (message := _next(again, source)) is not None:
                running[message.schedule(pool, job)] = message
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                finished, unfinished = running.pop(future).result(future, job)
                again.extend(unfinished)
                yield from finished
    finally:
        pool.stop()
        pool.join()


def check_workers_allowed() -> None:
    """Raise UsageError in a daemonic process, which Python lets start no worker."""
    process = multiprocessing.current_process()
    if process.daemon:
        raise UsageError(
            f"prepare was called in {process.name}, a daemonic process (multiprocessing.Pool and "
            "DataLoader have such workers), and those may start no worker processes; call it in "
            "the main process, or from a concurrent.futures.ProcessPoolExecutor"
        )


def _chunks(items: Iterable[_Item]) -> Iterator[_Message[_Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield _Message(chunk)


def _next(
    again: deque[_Message[_Item]], source: Iterator[_Message[_Item]]
) -> _Message[_Item] | None:
    return again.popleft() if again else next(source, None)


@dataclass(frozen=True)
class _Message(Generic[_Item]):
    """Items for one message to a worker; `failed` says why one is not to be tried as before."""

    items: list[_Item]
    failed: str | None = None

    def schedule(self, pool: ProcessPool, job: _Job[_Item, _Done]) -> Future[list[_Done]]:
        limit = job.options.time_limit + (CHUNK_SECONDS if len(self.items) > 1 else 0.0)
        arguments = [job.one, self.items, job.options, self.failed]
        return pool.schedule(_work, args=arguments, timeout=wall_limit(limit))

    def result(
        self, future: Future[list[_Done]], job: _Job[_Item, _Done]
    ) -> tuple[list[tuple[_Item, _Done]], list[_Message[_Item]]]:
        """Return (items with what was made of them, what is still to be done)."""
        seconds = job.options.time_limit
        try:
            done = future.result()
        except TimeoutError:
            return self._again(job, "time_limit", f"was not done {on_the_clock(seconds)}")
        except ProcessExpired as error:
            if is_processor_limit(error.exitcode):
                reason = f"took longer than {seconds:g} s of processor time"
                return self._again(job, "time_limit", reason)
            return self._again(job, "crash", f"RDKit crashed (exit code {error.exitcode})")
        except MemoryError:
            return self._again(job, "memory", OUT_OF_MEMORY)
        finished = list(zip(self.items, done, strict=False))
        rest = self.items[len(done) :]
        return finished, [_Message(rest)] if rest else []

    def _again(
        self, job: _Job[_Item, _Done], code: str, reason: str
    ) -> tuple[list[tuple[_Item, _Done]], list[_Message[_Item]]]:
        if len(self.items) > 1:
            return [], [_Message([item]) for item in self.items]
        if self.failed is None:
            return [], [_Message(self.items, failed=reason)]
        return [(self.items[0], job.given_up(self.items[0], code, reason))], []


def _work(
    one: Callable[[_Item, PrepareOptions, str | None], _Done],
    items: list[_Item],
    options: PrepareOptions,
    failed: str | None,
) -> list[_Done]:
    """In a worker: what becomes of the first items, as many as a second allows, at least one."""
    deadline, done = monotonic() + CHUNK_SECONDS, []
    for item in items:
        with processor_limit(options.time_limit):
            done.append(one(item, options, failed))
        if monotonic() > deadline:
            break
    return done
