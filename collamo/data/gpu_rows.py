"""Rows whose atoms a GPU has placed before a worker takes them on (``--conformers nvmolkit``)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice

from pebble import ProcessExpired, ProcessPool

from collamo.chem.conformer_workers import wall_limit, worker_context
from collamo.chem.gpu_conformers import place_on_gpu, refusal
from collamo.chem.molecule import Molecule
from collamo.data.molecule_column import MOLECULE_READERS
from collamo.data.options import PrepareOptions
from collamo.data.sources import SourceRow
from collamo.errors import MissingDependencyError

logger = logging.getLogger(__name__)

# Our choice, not measured yet: molecules that go to the GPU together.
TOGETHER = 512
# Our choice: seconds that methane may take, with CUDA's start on a busy machine.
START = 120.0


def placed_rows(rows: Iterable[SourceRow], options: PrepareOptions) -> Iterator[SourceRow]:
    """Yield the rows in their order, those that the GPU has placed with their `start`.

    It works in a process of its own, a batch ahead. A batch that it does not finish, however that
    ends, goes on as it came, and RDKit embeds it.

    Raises
    ------
    MissingDependencyError
        nvMolKit is not installed, or there is no GPU it can use.
    """
    with ProcessPool(max_workers=1, context=worker_context()) as pool:
        try:
            _check(pool)
            source = iter(rows)
            ahead: tuple[Future, list[SourceRow]] | None = None
            while batch := list(islice(source, TOGETHER)):
                limit = wall_limit(options.time_limit)
                begun = pool.schedule(_place, args=[batch, options.seed], timeout=limit), batch
                if ahead is not None:
                    yield from _finished(*ahead)
                ahead = begun
            if ahead is not None:
                yield from _finished(*ahead)
        finally:
            pool.stop()


def _check(pool: ProcessPool) -> None:
    """Raise unless the process of the pool can place molecules."""
    try:
        reason = pool.schedule(refusal, timeout=START).result()
    except (TimeoutError, ProcessExpired) as error:
        reason = f"nvMolKit did not place methane ({type(error).__name__})"
    if reason is not None:
        raise MissingDependencyError(f"--conformers nvmolkit: {reason}; leave the option out")


def _finished(future: Future, batch: list[SourceRow]) -> Iterator[SourceRow]:
    try:
        starts = future.result()
    except Exception as error:  # of CUDA, of RDKit, or the end of the process
        logger.warning(
            "rows %d to %d are embedded by RDKit: nvMolKit failed: %s: %s",
            *(batch[0].number, batch[-1].number, type(error).__name__, error),
        )
        yield from batch
        return
    for row, start in zip(batch, starts, strict=True):
        yield row if start is None else dataclasses.replace(row, start=start)


def _place(rows: Sequence[SourceRow], seed: int) -> list[bytes | None]:
    """In the process of the GPU: the places of the atoms of each row; None where there are none."""
    places = place_on_gpu([_molecule(row) for row in rows], seed)
    return [None if each is None else each.tobytes() for each in places]


def _molecule(row: SourceRow) -> Molecule | None:
    """Return the molecule of a row; a worker will say what is wrong with one that has none."""
    if row.problem is not None:
        return None
    try:
        return MOLECULE_READERS[row.kind](row.text)
    except (ValueError, RuntimeError):  # MoleculeError is a ValueError
        return None
