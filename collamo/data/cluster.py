"""Shards made by the machines of a Ray cluster.

A task is a shard. The driver reads the source, leaves the rows of a shard in the folder that the
data go to, and a task takes them from there and stores the shard beside them: molecules pass
through that folder alone, never through Ray's object store, and no machine but the driver's needs
the source. In a task the rows go the way of `prepare` on one machine, through a worker process that
may hang or crash; so the bytes are the same. A task that is lost with its machine is done again.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collamo.chem.conformer_workers import usable_processors
from collamo.data.options import PrepareOptions
from collamo.data.sharding import Sharding, library_versions, sidecar_of, write_shard
from collamo.data.shards import shard_name
from collamo.data.sources import SourceRow
from collamo.data.workers import process_rows
from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.extras import missing_extra
from collamo.storage import Folder, StorageError

# Our choice: how often a shard is begun again that was lost with its worker or machine, or could
# not be stored. A cluster of spot machines loses many; a shard that ends its worker ten times would
# end the eleventh.
RETRIES = 10
# Our choice: shards waiting per processor, so that none is idle while the driver reads on, and the
# cluster sees what it may grow for.
WAITING = 2
# Our choice, not measured yet: the part of a GPU that a shard takes whose atoms one places. Its
# worker minimises for most of the time.
GPU_SHARE = 0.125
# Bytes of Ray's object store where it is started here, the least it takes: nothing lies in it.
OBJECT_STORE = 80 << 20


def write_on_cluster(
    sharding: Sharding,
    missing: Collection[int],
    address: str,
    at_once: int | None,
    advance: Callable[[int], None],
) -> None:
    """Write the shards that are missing by tasks of the Ray cluster at `address`.

    `at_once` bounds the shards in work; None: two for every processor of the cluster.

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    UsageError
        There is no cluster, or a machine of it does not see the folder.
    CollamoError
        A shard was lost more than `RETRIES` times, or a machine has other library versions.
    """
    if not missing:
        return
    with _connected(address, at_once) as ray:
        # Not CollamoError, which would be the same on another machine.
        again = [StorageError, OSError]
        share = GPU_SHARE if sharding.options.embedder == "nvmolkit" else 0
        needs = {"num_cpus": 1, "num_gpus": share, "max_retries": RETRIES}
        task = ray.remote(**needs, retry_exceptions=again)(_prepare_shard)
        running: dict[Any, int] = {}
        lost: dict[int, str] = {}

        def finish_one() -> None:
            (done, *_), _ = ray.wait(list(running))
            index = running.pop(done)
            try:
                ray.get(done)
                _bring(sharding, index)
                advance(sharding.size(index))
            except ray.exceptions.RayError as error:
                lost[index] = _reason(error)
            sharding.folder.delete(_rows_name(index))

        for index, rows in sharding.rows(missing):
            while len(running) >= _window(ray, at_once):
                finish_one()
            _store_rows(sharding.folder, index, rows)
            job = _Job(sharding.folder, index, sharding.key, sharding.options, sharding.versions)
            running[task.remote(job)] = index
        while running:
            finish_one()
    if lost:
        first = min(lost)
        raise CollamoError(
            f"{len(lost)} of {len(missing)} shards were lost on the cluster, {shard_name(first)} "
            f"by: {lost[first]}; the others are kept, run the same command again"
        )


@dataclass(frozen=True)
class _Job:
    """What a task is told; the rows are in the folder."""

    folder: Folder
    index: int
    key: str
    options: PrepareOptions
    versions: Mapping[str, str]


def _prepare_shard(job: _Job) -> None:
    """On a machine of the cluster: make a shard of the rows in the folder, and store it there."""
    here = library_versions(job.options)
    if here != job.versions:
        raise CollamoError(
            f"{platform.node()} has {_listed(here)}, the machine that was asked "
            f"{_listed(job.versions)}: the bytes would differ; install the same versions"
        )
    # A folder of its own: a task that Ray thinks lost may run on beside its successor.
    with tempfile.TemporaryDirectory(prefix="collamo-") as place:
        try:
            file = job.folder.fetch(_rows_name(job.index), Path(place))
        except FileNotFoundError:
            raise UsageError(
                f"{platform.node()}, a machine of the cluster, does not see {job.folder}; give "
                "--out a folder that every machine has at this path, or a URL such as s3://…"
            ) from None
        outcomes = list(process_rows(_read_rows(file), job.options, workers=1))
        for path in write_shard(Path(place), job.index, job.key, outcomes):
            job.folder.store(path)


def delete_left(folder: Folder) -> None:
    """Delete what a driver or machine that was killed has left: rows, and files half stored."""
    for name in filter(_LEFT.fullmatch, folder.names()):
        folder.delete(name)


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _bring(sharding: Sharding, index: int) -> None:
    """Fetch a shard that a task has stored, to where the driver works, and check it."""
    shard = sharding.out / shard_name(index)
    if sharding.folder.path is not None:
        # Listing it makes NFS ask the server, where a name was looked up before it was there.
        sharding.folder.names()
    for path in (shard, sidecar_of(shard)):
        try:
            sharding.folder.fetch(path.name, sharding.out)
        except FileNotFoundError:
            break
    if sharding.done(index) is None:
        raise CollamoError(
            f"{sharding.folder}/{shard.name} was stored by a machine of the cluster, and is "
            "missing or damaged here; is it one folder for all machines? Then run it again"
        )


# Names of what is on its way: see `_rows_name`, and `Folder.store` for the others.
_LEFT = re.compile(r"\.rows-\d+\.jsonl\.gz|\..+\.[0-9a-f]{32}\.tmp")

# The rows of a shard lie in the folder while it is made. JSON keeps any text, half a surrogate pair
# (a byte that is no UTF-8) too.


def _rows_name(index: int) -> str:
    return f".rows-{index:05d}.jsonl.gz"


def _store_rows(folder: Folder, index: int, rows: Iterable[SourceRow]) -> None:
    with tempfile.TemporaryDirectory(prefix="collamo-") as place:
        path = Path(place, _rows_name(index))
        with gzip.open(path, "wt", encoding="ascii", compresslevel=1) as file:
            for row in rows:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
        folder.store(path)


def _read_rows(path: Path) -> Iterator[SourceRow]:
    with gzip.open(path, "rt", encoding="ascii") as file:
        for line in file:
            fields = json.loads(line)
            if fields["problem"] is not None:
                fields["problem"] = tuple(fields["problem"])
            yield SourceRow(**fields)


def _window(ray: Any, at_once: int | None) -> int:
    """Return how many shards may be in work; a cluster may grow and shrink."""
    return at_once or max(1, WAITING * int(ray.cluster_resources().get("CPU", 1)))


# Ray tells its makers how it is used, and prints a traceback of every other task that fails for the
# same reason, unless told not to.
_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}


@contextmanager
def _connected(address: str, processors: int | None) -> Iterator[Any]:
    """Yield the module ray, connected; a connection that was there before stays."""
    for name, value in _RAY.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError(missing_extra("ray", error.name or "ray")) from None
    if ray.is_initialized():
        yield ray
        return
    started: dict[str, Any] = {}
    if address == "local":
        processors = processors or usable_processors()
        started = {"num_cpus": processors, "object_store_memory": OBJECT_STORE}
        started["include_dashboard"] = False
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address, **quiet, **started)
    except Exception as error:  # Ray raises bare ones
        line = (str(error).splitlines() or [""])[0]
        if address == "local":
            raise CollamoError(
                f"Ray did not start on this machine: {line} Try again when it is less busy"
            ) from error
        raise UsageError(
            f"--ray {address}: no cluster answers ({line}); start one with `ray start --head`, or "
            "leave the address out to use this machine alone"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reason(error: Exception) -> str:
    """Return why a task failed in a line; raise what was wrong with the task, not its machine."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, CollamoError) and not isinstance(cause, StorageError):
        raise cause from None
    if isinstance(cause, ModuleNotFoundError):
        raise MissingDependencyError(
            f"a machine of the cluster has no package {cause.name!r}; install collamo there, in "
            "the same version"
        ) from None
    lines = str(cause or error).strip().splitlines() or [type(error).__name__]
    return lines[0 if cause else -1][:200]
