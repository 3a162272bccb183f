"""Worker processes that embed conformers, killed when they take too long or too much memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from collamo.chem.conformer import (
    OUT_OF_MEMORY,
    Conformer,
    absent_conformer,
    embed_conformer,
    given_conformer,
)
from collamo.chem.molecule import Molecule

# GiB a worker may allocate. Our choice: the longest chain that is read, 512 carbons, takes 0.4;
# what needs ten times that has run away.
MEMORY_LIMIT = 4.0


def embed_conformer_limited(molecule: Molecule, seed: int = 0, seconds: float = 30.0) -> Conformer:
    """As `embed_conformer`, in a worker process that is killed after `seconds`.

    A time-out, a crash or a lack of memory (`MEMORY_LIMIT`) is an absent conformer with the reason,
    never an exception.
    """
    return next(embed_conformers([molecule], seed, seconds, workers=1))


def embed_conformers(
    molecules: Sequence[Molecule],
    seed: int = 0,
    seconds: float = 30.0,
    workers: int | None = None,
) -> Iterator[Conformer]:
    """Yield `embed_conformer_limited` of each molecule, in their order, from parallel workers.

    The result does not depend on the number of workers; None takes one per usable processor.

    Examples
    --------
    >>> [c.method for c in embed_conformers([Molecule.from_smiles("CCO")])]
    ['etkdgv3+mmff']
    """
    from pebble import ProcessExpired, ProcessPool

    embedding = sum(molecule.mol.GetNumConformers() == 0 for molecule in molecules)
    if not embedding:  # no worker is started for coordinates that are there
        yield from map(given_conformer, molecules)
        return
    pool = ProcessPool(
        max_workers=min(workers or usable_processors(), embedding),
        context=worker_context(),
        initializer=start_worker,
    )
    try:
        futures = [
            pool.schedule(embed_conformer, args=[molecule, seed], timeout=seconds)
            for molecule in molecules
        ]
        for future in futures:
            try:
                yield future.result()
            except TimeoutError:
                yield absent_conformer(f"no geometry within {seconds:g} s", seed)
            except ProcessExpired as error:
                yield absent_conformer(f"RDKit crashed (exit code {error.exitcode})", seed)
            except MemoryError:
                yield absent_conformer(OUT_OF_MEMORY, seed)
    finally:
        pool.stop()
        pool.join()


def usable_processors() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@lru_cache(maxsize=1)
def worker_context() -> multiprocessing.context.BaseContext:
    """Return how worker processes start: fork where there is one.

    A forked worker is there in milliseconds and needs no ``if __name__ == "__main__"`` in the
    user's script. It only runs RDKit and numpy, so threads that the parent started do not matter.
    """
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("fork" if "fork" in methods else "spawn")


def start_worker(memory_limit: float = MEMORY_LIMIT) -> None:
    """Make this worker killable and bound its memory [GiB] (pebble's initializer).

    With a Python handler SIGTERM waits until RDKit returns, and pebble 3 s for its SIGKILL. Past
    the limit an allocation fails: a `MemoryError` in this worker, where the system would have
    killed any process. Addresses are counted, and those the worker was forked with come on top,
    because the libraries of a CUDA torch alone take many GiB of them. No effect where the system
    does not say how many those are (not Linux).
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + int(memory_limit * 2**30)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
