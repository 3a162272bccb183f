"""Files and folders at URLs that fsspec opens (``s3://``, ``gs://``, ``hdfs://``, ``hf://`` …).

Everything else in collamo works on local files: here they are fetched, and stored again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.files import replacing

# Our choice: a shard of a thousand molecules is some 2 MB, which the way to and from an object
# store delays by as long as it takes to send; eight at a time hide that.
AT_ONCE = 8
# One letter is a drive of Windows.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//?)")
_LOCAL_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(CollamoError):
    """A store that cannot be reached, refuses, or breaks off; another try may succeed."""


def is_url(location: str | os.PathLike[str]) -> bool:
    """Return whether a location is a URL and no path.

    >>> is_url("s3://bucket/molecules.csv"), is_url("data/molecules.csv"), is_url("C:/data")
    (True, False, False)

    Raises
    ------
    UsageError
        For a URL that was made a `Path`, which leaves one of its slashes.
    """
    match = _URL.match(os.fspath(location))
    if match and match[1] == "/" and isinstance(location, Path):
        raise UsageError(f"{location} was a URL before it was made a Path; give it as text")
    return match is not None and match[1] == "//"


def cache_folder() -> Path:
    """Return where fetched files lie: COLLAMO_CACHE, else ``collamo`` in the user's cache."""
    own = os.environ.get("COLLAMO_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(shared) / "collamo"


@dataclass(frozen=True)
class Folder:
    """A folder at a path or a URL. It can be sent to another machine, which opens it by itself.

    Attributes
    ----------
    location
        An absolute path or a URL, without a slash at the end.

    Examples
    --------
    >>> folder = Folder.at("memory://doctest")
    >>> folder.path is None, folder.names()
    (True, set())
    """

    location: str

    @classmethod
    def at(cls, location: str | os.PathLike[str]) -> Folder:
        """Return the folder at a path or URL, which need not be there yet."""
        if is_url(location):
            return cls(os.fspath(location).rstrip("/"))
        return cls(str(Path(location).absolute()))

    def __str__(self) -> str:
        return self.location

    @property
    def path(self) -> Path | None:
        """The folder as a path; None of a URL."""
        return None if is_url(self.location) else Path(self.location)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return _open(self.location)

    def __getstate__(self) -> dict[str, str]:
        return {"location": self.location}  # a file system has connections

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__dict__.update(state)

    def names(self) -> set[str]:
        """Return the names of the files in it; none where it does not exist."""
        system, root = self._opened
        with reaching(self.location):
            system.invalidate_cache()
            try:
                entries = system.ls(root, detail=True)
            except FileNotFoundError:
                return set()
        return {e["name"].rpartition("/")[2] for e in entries if e["type"] == "file"}

    def read(self, name: str) -> bytes:
        """Return what a file holds; FileNotFoundError where it is not there."""
        system, root = self._opened
        with reaching(f"{self}/{name}"):
            return system.cat_file(f"{root}/{name}")

    def fetch(self, name: str, target: Path) -> Path:
        """Copy a file into the folder `target`, whole or not at all, and return where it is.

        FileNotFoundError where it is not there. In the folder itself there is nothing to copy.
        """
        if target == self.path:
            return target / name
        system, root = self._opened
        with replacing(target / name) as temporary, reaching(f"{self}/{name}"):
            system.get_file(f"{root}/{name}", str(temporary))
        return target / name

    def fetch_all(
        self, names: Collection[str], target: Path, fetched: Callable[[Path], None] | None = None
    ) -> None:
        """Fetch files, some at a time, and call `fetched` with each when it is there."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for path in pool.map(lambda name: self.fetch(name, target), names):
                    if fetched is not None:
                        fetched(path)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def store(self, file: Path) -> None:
        """Copy a local file into the folder, under its own name.

        Two machines may store the same file at once: on a shared disk one of both is there, whole,
        and an object store shows a file when it is complete. What lies in it already stays.
        """
        if file.parent == self.path:
            return
        system, root = self._opened
        with reaching(f"{self}/{file.name}"):
            if not _is_local(system):
                system.put_file(str(file), f"{root}/{file.name}")
                return
            os.makedirs(root, exist_ok=True)
            temporary = Path(root, f".{file.name}.{uuid.uuid4().hex}.tmp")
            try:
                shutil.copyfile(file, temporary)
                os.replace(temporary, Path(root, file.name))
            finally:
                temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Delete a file, where it is there."""
        system, root = self._opened
        with reaching(f"{self}/{name}"), suppress(FileNotFoundError):
            system.rm_file(f"{root}/{name}")

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """Yield the local folder to work in: itself or, of a URL, an empty one in the cache.

        That one is deleted at the end.

        Raises
        ------
        UsageError
            Where somebody else works on the same URL on this machine.
        """
        if self.path is not None:
            yield self.path
            return
        with _scratch(self.location) as folder:
            yield folder


@contextmanager
def local_file(location: str | os.PathLike[str]) -> Iterator[str | Path]:
    """Yield a location that is no URL as it is; what a URL names is fetched for the block.

    Raises
    ------
    UsageError
        There is no such file, or somebody else has fetched it on this machine.
    """
    if not is_url(location):
        yield location if isinstance(location, Path) else os.fspath(location)
        return
    parent, _, name = os.fspath(location).rpartition("/")
    with _scratch(os.fspath(location)) as folder:
        try:
            file = Folder.at(parent).fetch(name, folder)
        except (FileNotFoundError, IsADirectoryError):
            raise UsageError(
                f"source {str(location)!r} is no file that is there; check its name"
            ) from None
        yield file


@contextmanager
def reaching(location: str) -> Iterator[None]:
    """Let what goes wrong with a store inside be one line that names `location`.

    What is not there stays a FileNotFoundError, and a full local disk what it is.
    """
    try:
        yield
    except (FileNotFoundError, CollamoError):
        raise
    except PermissionError as error:
        raise StorageError(
            f"{location}: access denied ({_first_line(error)}); check rights and credentials"
        ) from error
    except Exception as error:  # every store has its own
        if isinstance(error, OSError) and error.errno in _LOCAL_FAULTS:
            raise
        raise StorageError(
            f"{location} cannot be reached: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _open(location: str) -> tuple[Any, str]:
    """Return (file system, path in it) of a location."""
    import fsspec
    from fsspec.registry import known_implementations

    protocol = location.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(location)
    except ImportError as error:
        module = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
        advice = f"pip install {module}" if module not in ("", "fsspec") else _first_line(error)
        raise MissingDependencyError(f"{protocol}:// needs a package: {advice}") from None
    except ValueError as error:
        raise UsageError(
            f"{location}: {_first_line(error)}; use s3://, gs://, hdfs:// or another of fsspec"
        ) from None
    except OSError as error:
        raise MissingDependencyError(
            f"{protocol}:// cannot be used: {_first_line(error)}"
        ) from None
    return system, path.rstrip("/")


def _is_local(system: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(system, LocalFileSystem)


@contextmanager
def _scratch(location: str) -> Iterator[Path]:
    """Yield an empty folder in the cache for `location`, deleted at the end."""
    from filelock import FileLock, Timeout

    # Of a fixed name, so that what a killed run left is found and deleted by the next.
    folder = cache_folder() / "work" / hashlib.sha256(location.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another process of this machine works with {location}; wait for it, or end it"
        ) from None
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
