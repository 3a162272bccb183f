"""Prepared data at a URL: fetched once to the local disk, where training maps them into memory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from collamo.data.manifest import MANIFEST, FileEntry
from collamo.errors import CollamoError, UsageError
from collamo.files import file_sha256, replacing
from collamo.progress import progress_bar
from collamo.storage import Folder, cache_folder, is_url

logger = logging.getLogger(__name__)

# What stands beside the manifest and lists files as it does: `collamo.data.encoder_outputs`.
_INDEX = re.compile(r"encoded-\w+\.json")
_INDEXED = re.compile(r"encoded-.*\.npy")


def local_data(folder: str | os.PathLike[str]) -> Path:
    """Return where a prepared folder lies on this machine: a path itself, a URL once it is fetched.

    The cache (`collamo.storage.cache_folder`) has a folder for every manifest, so that data that
    were prepared anew are fetched anew, and the same data at two URLs once. A file takes its name
    there when its SHA-256 is that of the manifest: what was broken off goes on, and of several
    processes one fetches while the others wait.

    Raises
    ------
    UsageError
        The URL holds no prepared data.
    CollamoError
        The store cannot be reached, a file has other bytes than its manifest says, or the disk has
        no room for them.
    """
    if not is_url(folder):
        return Path(folder)
    from filelock import FileLock

    remote = Folder.at(folder)
    try:
        manifest = remote.read(MANIFEST)
    except FileNotFoundError:
        raise UsageError(
            f"{remote} holds no prepared data ({MANIFEST} is missing); run `collamo prepare` and "
            "let it finish"
        ) from None
    local = cache_folder() / "data" / hashlib.sha256(manifest).hexdigest()[:16]
    local.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{local}.lock"):
        _fetch_listed(remote, MANIFEST, manifest, local)
        for name in sorted(filter(_INDEX.fullmatch, remote.names())):
            _fetch_listed(remote, name, remote.read(name), local)
    return local


def _fetch_listed(remote: Folder, index: str, content: bytes, local: Path) -> None:
    """Fetch the files that a JSON file lists, and write it itself when they are there."""
    missing = dict(_missing(_listed(f"{remote}/{index}", content), local))
    _check_room(sum(entry["bytes"] for entry in missing.values()), local, remote)
    arriving = local / ".arriving"
    shutil.rmtree(arriving, ignore_errors=True)
    if missing:
        logger.info("%s: %d files are fetched to %s", remote, len(missing), local)
        arriving.mkdir()
        with progress_bar("fetching files", len(missing)) as advance:

            def accept(path: Path) -> None:
                if file_sha256(path) != missing[path.name]["sha256"]:
                    raise CollamoError(
                        f"{remote}/{path.name} has other bytes than {index} says; if it is being "
                        "prepared wait, else run `collamo prepare` again"
                    )
                os.replace(path, local / path.name)
                advance(1)

            try:
                remote.fetch_all(missing, arriving, accept)
            except FileNotFoundError as error:
                name = Path(str(error.filename or error)).name
                raise CollamoError(
                    f"{remote}/{name} is missing; run `collamo prepare` again to rebuild it"
                ) from None
            finally:
                shutil.rmtree(arriving, ignore_errors=True)
    with replacing(local / index) as temporary:
        temporary.write_bytes(content)


def _listed(name: str, content: bytes) -> Mapping[str, FileEntry]:
    """Return the files that a manifest or index lists; none of them may lie elsewhere."""
    try:
        entries = json.loads(content)["files"]
        for file, entry in entries.items():
            if Path(file).name != file or not isinstance(entry["bytes"], int):
                raise ValueError(f"{file!r} is no file of this folder")
            str(entry["sha256"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CollamoError(f"{name} is damaged ({error}); run `collamo prepare` again") from None
    return entries


def _missing(entries: Mapping[str, FileEntry], local: Path) -> Iterator[tuple[str, FileEntry]]:
    """Yield the files that are not here, or are other ones of that name."""
    for name, entry in entries.items():
        path = local / name
        here = path.is_file() and path.stat().st_size == entry["bytes"]
        if here and _INDEXED.fullmatch(name):
            # Made anew they may have other bytes. What the manifest lists has a folder of its own.
            here = file_sha256(path) == entry["sha256"]
        if not here:
            yield name, entry


def _check_room(needed: int, local: Path, remote: Folder) -> None:
    free = shutil.disk_usage(local).free
    if needed > free:
        raise CollamoError(
            f"{remote} takes {needed / 2**30:.1f} GiB more, and {local} has {free / 2**30:.1f} GiB "
            "of room; make more, or set COLLAMO_CACHE to a folder on another disk"
        )
