"""Rows processed side by side, in workers that may hang, crash or run out of memory."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from time import monotonic

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
from collamo.data.gpu_rows import placed_rows
from collamo.data.options import PrepareOptions
from collamo.data.records import Outcome, process_row
from collamo.data.sources import SourceRow
from collamo.errors import UsageError

# Our choice: 16 molecules per message to a worker keep the overhead below 1 %; a worker hands back
# what it has after a second, so that one slow molecule does not make its neighbours wait.
CHUNK = 16
CHUNK_SECONDS = 1.0

_Result = tuple[SourceRow, Outcome]


def process_rows(
    rows: Iterable[SourceRow], options: PrepareOptions, workers: int
) -> Iterator[_Result]:
    """Yield each row with what became of it, in the order in which workers finish.

    A chunk that dies, hangs or runs out of memory is done again molecule by molecule; a molecule
    that does so alone is done without a conformer; one that does even then is rejected. Where the
    options say so, a GPU places the atoms first.
    """
    if options.conformers and options.embedder == "nvmolkit":
        rows = placed_rows(rows, options)
    source = _chunks(rows)
    again: deque[_Message] = deque()
    running: dict[Future[list[Outcome]], _Message] = {}
    pool = ProcessPool(
        max_workers=workers,
        context=worker_context(),
        initializer=start_worker,
        initargs=[options.memory_limit],
    )
    try:
        while True:
            while len(running) < 3 * workers and (message := _next(again, source)) is not None:
                running[message.schedule(pool, options)] = message
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                finished, unfinished = running.pop(future).result(future, options)
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


def _chunks(rows: Iterable[SourceRow]) -> Iterator[_Message]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK)):
        yield _Message(chunk)


def _next(again: deque[_Message], source: Iterator[_Message]) -> _Message | None:
    return again.popleft() if again else next(source, None)


@dataclass(frozen=True)
class _Message:
    """Rows for one message to a worker; `absence` says why a conformer is not to be tried again."""

    rows: list[SourceRow]
    absence: str | None = None

    def schedule(self, pool: ProcessPool, options: PrepareOptions) -> Future[list[Outcome]]:
        limit = wall_limit(options.time_limit + (CHUNK_SECONDS if len(self.rows) > 1 else 0.0))
        return pool.schedule(_work, args=[self.rows, options, self.absence], timeout=limit)

    def result(
        self, future: Future[list[Outcome]], options: PrepareOptions
    ) -> tuple[list[_Result], list[_Message]]:
        """Return (rows with their outcomes, what is still to be done)."""
        try:
            outcomes = future.result()
        except TimeoutError:
            return self._failed("time_limit", f"was not done {on_the_clock(options.time_limit)}")
        except ProcessExpired as error:
            if is_processor_limit(error.exitcode):
                reason = f"took longer than {options.time_limit:g} s of processor time"
                return self._failed("time_limit", reason)
            return self._failed("crash", f"RDKit crashed (exit code {error.exitcode})")
        except MemoryError:
            return self._failed("memory", OUT_OF_MEMORY)
        finished = list(zip(self.rows, outcomes, strict=False))
        rest = self.rows[len(outcomes) :]
        return finished, [_Message(rest)] if rest else []

    def _failed(self, code: str, reason: str) -> tuple[list[_Result], list[_Message]]:
        if len(self.rows) > 1:
            return [], [_Message([row]) for row in self.rows]
        if self.absence is None:
            return [], [_Message(self.rows, absence=reason)]
        return [(self.rows[0], Outcome(None, code, f"molecule {reason}"))], []


def _work(rows: list[SourceRow], options: PrepareOptions, absence: str | None) -> list[Outcome]:
    """In a worker: the outcomes of the first rows, as many as a second allows, at least one."""
    deadline, outcomes = monotonic() + CHUNK_SECONDS, []
    for row in rows:
        with processor_limit(options.time_limit):
            outcomes.append(process_row(row, options, absence))
        if monotonic() > deadline:
            break
    return outcomes
