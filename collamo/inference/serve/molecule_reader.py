"""Molecules of strangers, read in worker processes that may hang or die at their own cost alone."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pebble import ProcessExpired

from collamo.chem.conformer import Conformer, absent_conformer
from collamo.chem.conformer_workers import (
    NO_CONFORMER,
    conformer_of_error,
    conformer_pool,
    is_processor_limit,
    on_the_clock,
    processor_limit,
    schedule_conformer,
    wall_limit,
)
from collamo.chem.features import MoleculeFeatures, featurize
from collamo.chem.molecule import Molecule
from collamo.errors import MoleculeError
from collamo.inference.conversation import MoleculeText

Made = TypeVar("Made")
#: Our choice: molecules that are remembered, 3 kB for a drug, 200 kB for one of 512 atoms.
REMEMBERED = 256


class MoleculeReader:
    """Reads and embeds molecules, each within its time.

    Nothing of RDKit runs in the server's own process: a text that lets it hang or crash costs a
    worker, and the one request. What was read is remembered, conformers that were not found too.

    Parameters
    ----------
    seed
        Of the conformers.
    seconds
        Most processor time to read a molecule, and again to find its conformer.
    workers
        Worker processes.
    """

    def __init__(self, seed: int = 0, seconds: float = 10.0, workers: int = 2):
        self.seed = seed
        self.seconds = seconds
        self._pool = conformer_pool(workers, _context())
        self._remembered: OrderedDict[tuple[MoleculeText, bool], MoleculeFeatures] = OrderedDict()

    async def read(self, molecule: MoleculeText, modalities: Sequence[str]) -> MoleculeFeatures:
        """Return what the encoders read of a molecule; cancelling ends the worker.

        Raises
        ------
        MoleculeError
            For what is no molecule, or takes too long to read.
        """
        key = (molecule, "3d" in modalities)
        if key in self._remembered:
            self._remembered.move_to_end(key)
            return self._remembered[key]
        read, features = await self._parsed(molecule)
        if "3d" in modalities:
            features = replace(features, conformer=await self._conformer(read))
        self._remembered[key] = features
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return features

    def close(self) -> None:
        """End the workers."""
        self._pool.stop()
        self._pool.join()

    async def _parsed(self, molecule: MoleculeText) -> tuple[Molecule, MoleculeFeatures]:
        return await self.in_worker(molecule, _featurized)

    async def in_worker(
        self, molecule: MoleculeText, function: Callable[..., Made], *args: Any
    ) -> Made:
        """Return what ``function(molecule, *args)`` makes of a molecule, read in a worker.

        Raises
        ------
        MoleculeError
            As `read`.
        """
        limit = wall_limit(self.seconds)
        work = [molecule, self.seconds, function, *args]
        future = self._pool.schedule(_of_molecule, args=work, timeout=limit)
        shown = repr(molecule.text[:40])
        try:
            return await asyncio.wrap_future(future)
        except TimeoutError:
            raise MoleculeError(f"{shown} was not read {on_the_clock(self.seconds)}") from None
        except MemoryError:
            raise MoleculeError(f"{shown} takes more memory than there is to read it") from None
        except ProcessExpired as error:
            if is_processor_limit(error.exitcode):
                reason = f"was not read within {self.seconds:g} s of processor time"
            else:
                reason = f"crashes RDKit (exit code {error.exitcode})"
            raise MoleculeError(f"{shown} {reason}") from None

    async def _conformer(self, molecule: Molecule) -> Conformer:
        future = schedule_conformer(self._pool, molecule, self.seed, self.seconds)
        try:
            return await asyncio.wrap_future(future)
        except NO_CONFORMER as error:
            return conformer_of_error(error, self.seed, self.seconds)


def _context() -> multiprocessing.context.BaseContext:
    """Return how workers of a server start: apart from its sockets.

    A forked one would hold every connection that is open, and its client would wait for ever where
    the server has hung up.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([__name__])
    return context


def _of_molecule(
    molecule: MoleculeText, seconds: float, function: Callable[..., Made], *args: Any
) -> Made:
    """In a worker: read the molecule, and make of it what is wanted."""
    with processor_limit(seconds):
        return function(molecule.read(), *args)


def _featurized(read: Molecule) -> tuple[Molecule, MoleculeFeatures]:
    """In a worker: all that RDKit says of a molecule but its conformer."""
    return read, featurize(read, absent_conformer("3D not requested"))
