"""Doing every run that has no row yet, side by side and before a deadline."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from collamo.errors import MissingDependencyError
from evidence.claim import Claim, Run, Workplace
from evidence.claims import CLAIMS
from evidence.ledger import RESULTS, Ledger


def run_missing(
    claims: list[Claim],
    place: Workplace,
    results: Path = RESULTS,
    *,
    minutes: float | None = None,
    jobs: int = 1,
) -> None:
    """Do every run of `claims` without a row, `jobs` side by side, a row as soon as one ends.

    Takes turns between claims, so that a deadline leaves none without rows. No run begins that
    would pass it, judged by the latest of its claim: the first prepares the data as well. A claim
    that lacks a wheel or a file says so, and the others go on.
    """
    start, latest = time.monotonic(), dict.fromkeys((claim.name for claim in claims), 0.0)
    pending = list(_in_turns(claims, place.size, results))
    running: dict[Future[float], tuple[Claim, Run]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while pending or running:
            while pending and len(running) < jobs:
                claim, run = pending.pop(0)
                left = float("inf") if minutes is None else 60 * minutes - time.monotonic() + start
                if latest[claim.name] > left or left <= 0:
                    print(f"{claim.name}: no time left for {_words(run)}", file=sys.stderr)
                    continue
                future = pool.submit(_measured, claim.name, run, place, results)
                running[future] = claim, run
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                claim, run = running.pop(future)
                try:
                    latest[claim.name] = seconds = future.result()
                except MissingDependencyError as error:  # a wheel or a file: the others go on
                    print(f"{claim.name}: {error}", file=sys.stderr)
                    pending = [each for each in pending if each[0] is not claim]
                    continue
                print(f"{claim.name}: {_words(run)}: {seconds:.0f} s", file=sys.stderr)


def _in_turns(claims: list[Claim], size: str, results: Path) -> Iterator[tuple[Claim, Run]]:
    """Yield (claim, run) without a row: the first of each claim, the second of each, …"""
    queues = []
    for claim in claims:
        ledger = Ledger(claim.name, results)
        runs = [{"size": size, **run} for run in claim.runs(size)]
        queues.append([(claim, run) for run in runs if not ledger.has(run)])
    for turn in range(max(map(len, queues), default=0)):
        yield from (queue[turn] for queue in queues if turn < len(queue))


def _measured(name: str, run: Run, place: Workplace, results: Path) -> float:
    """Do a run in this process and append its row; return the seconds it took."""
    started = datetime.datetime.now(datetime.UTC)
    metrics = CLAIMS[name].measure(run, place)
    Ledger(name, results).add(run, metrics, started=started, device=place.device)
    return (datetime.datetime.now(datetime.UTC) - started).total_seconds()


def _words(run: Run) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.items())
