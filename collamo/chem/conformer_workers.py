"""Worker processes that embed conformers, killed when they take too long or too much memory.

Too long is processor time: what else the machine does leaves a molecule its conformer.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from pebble import ProcessExpired, ProcessFuture, ProcessPool

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
# Seconds on the clock for every second of processor time. Our choice: it ends what waits forever,
# and leaves a molecule its processor time on a machine that fifteen others share.
WALL_FACTOR = 20.0
#: What the future of a conformer raises where there is none.
NO_CONFORMER = (TimeoutError, ProcessExpired, MemoryError)


def embed_conformer_limited(molecule: Molecule, seed: int = 0, seconds: float = 30.0) -> Conformer:
    """As `embed_conformer`, in a worker process killed after `seconds` of processor time.

    Behind that stands a limit of `WALL_FACTOR` times as long on the clock. A time-out, a crash or
    a lack of memory (`MEMORY_LIMIT`) is an absent conformer with the reason, never an exception.
    """
    return next(embed_conformers([molecule], seed, seconds, workers=1))


def embed_conformers(
    molecules: Sequence[Molecule],
    seed: int = 0,
    seconds: float = 30.0,
    workers: int | None = None,
) -> Iterator[Conformer]:
    """Yield `embed_conformer_limited` of each molecule, in their order, from parallel workers.

    The result does not depend on the number of workers; None takes one per usable processor. A
    daemonic process (a worker of a DataLoader or of multiprocessing.Pool) may have no such workers:
    there molecules are embedded one at a time, each in a forked child, with the same limits.
    Where it cannot fork either (Windows), it embeds them itself, without limits.

    Examples
    --------
    >>> [c.method for c in embed_conformers([Molecule.from_smiles("CCO")])]
    ['etkdgv3+mmff']
    """
    embedding = sum(molecule.mol.GetNumConformers() == 0 for molecule in molecules)
    if not embedding:  # no worker is started for coordinates that are there
        yield from map(given_conformer, molecules)
        return
    if multiprocessing.current_process().daemon:
        embed = _embed_in_child if hasattr(os, "fork") else _embed_here
        yield from (embed(molecule, seed, seconds) for molecule in molecules)
        return
    pool = conformer_pool(min(workers or usable_processors(), embedding))
    try:
        futures = [schedule_conformer(pool, molecule, seed, seconds) for molecule in molecules]
        for future in futures:
            try:
                yield future.result()
            except NO_CONFORMER as error:
                yield conformer_of_error(error, seed, seconds)
    finally:
        pool.stop()
        pool.join()


def conformer_pool(
    workers: int, context: multiprocessing.context.BaseContext | None = None
) -> ProcessPool:
    """Return a pool of worker processes for `schedule_conformer`; whoever made it stops it.

    None takes `worker_context`.
    """
    context = context or worker_context()
    return ProcessPool(max_workers=workers, context=context, initializer=start_worker)


def schedule_conformer(
    pool: ProcessPool, molecule: Molecule, seed: int, seconds: float
) -> ProcessFuture:
    """Embed in a worker of `pool`; the future gives a `Conformer` or raises `NO_CONFORMER`."""
    return pool.schedule(_embed, args=[molecule, seed, seconds], timeout=wall_limit(seconds))


def conformer_of_error(error: BaseException, seed: int, seconds: float) -> Conformer:
    """Return the absence that an error of `schedule_conformer`'s future stands for."""
    if isinstance(error, TimeoutError):
        return absent_conformer(f"no geometry {on_the_clock(seconds)}", seed)
    if isinstance(error, ProcessExpired):
        return _killed(error.exitcode, seed, seconds)
    return absent_conformer(OUT_OF_MEMORY, seed)


def _embed(molecule: Molecule, seed: int, seconds: float) -> Conformer:
    with processor_limit(seconds):
        return embed_conformer(molecule, seed)


def _embed_here(molecule: Molecule, seed: int, seconds: float) -> Conformer:
    return embed_conformer(molecule, seed)


def _killed(code: int | None, seed: int, seconds: float) -> Conformer:
    """Return the absence that the exit code of a dead worker stands for."""
    if is_processor_limit(code):
        return absent_conformer(f"no geometry within {seconds:g} s of processor time", seed)
    if code == -getattr(signal, "SIGALRM", 0):
        return absent_conformer(f"no geometry {on_the_clock(seconds)}", seed)
    return absent_conformer(f"RDKit crashed (exit code {code})", seed)


def _embed_in_child(molecule: Molecule, seed: int, seconds: float) -> Conformer:
    """Embed in a child made by ``fork`` alone: multiprocessing refuses children to a daemon.

    It refuses them because a daemon that is killed leaves its children behind. This one ends by
    itself: its own timers, which the system delivers whatever RDKit does, kill it in time.
    """
    own = given_conformer(molecule)
    if own is not None:
        return own
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        receiver.close()
        _answer(sender, molecule, seed, seconds)
    sender.close()
    try:
        return receiver.recv()
    except EOFError:  # it died without an answer
        pass
    finally:
        receiver.close()
        code = _exit_code(child)
    return _killed(code, seed, seconds)


def _answer(sender: Connection, molecule: Molecule, seed: int, seconds: float) -> NoReturn:
    """In the child: send the conformer and end, without what the parent does at its end."""
    try:
        start_worker()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, wall_limit(seconds))
        sender.send(_embed(molecule, seed, seconds))
    finally:
        os._exit(0)


def _exit_code(child: int) -> int | None:
    """Wait for the child; None where somebody else (a server) has waited for it already."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:
        return None


@contextmanager
def processor_limit(seconds: float) -> Iterator[None]:
    """End this process, a worker, when the block takes more processor time than `seconds`.

    The system counts and kills, whatever RDKit does: a Python handler would wait until its C++
    returns. No effect where there is no such timer (Windows).
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def is_processor_limit(code: int | None) -> bool:
    """Return whether a process with this exit code was ended by `processor_limit`."""
    return hasattr(signal, "SIGPROF") and code == -signal.SIGPROF


def wall_limit(seconds: float) -> float:
    """Return the limit on the clock [s] behind `seconds` of processor time.

    >>> wall_limit(30.0)
    600.0
    """
    return WALL_FACTOR * seconds if hasattr(signal, "setitimer") else seconds


def on_the_clock(seconds: float) -> str:
    """Return the words for what took `wall_limit` and no more than `seconds` of processor time."""
    return f"within {wall_limit(seconds):g} s on the clock"


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

    With a Python handler SIGTERM waits until RDKit returns, and pebble 3 s for its SIGKILL; SIGPROF
    is `processor_limit`'s, whatever the parent did with it. Past
    the limit an allocation fails: a `MemoryError` in this worker, where the system would have
    killed any process. Addresses are counted, and those the worker was forked with come on top,
    because the libraries of a CUDA torch alone take many GiB of them. No effect where the system
    does not say how many those are (not Linux).
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + int(memory_limit * 2**30)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
