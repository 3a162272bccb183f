"""Files on disk: written whole or not at all, told apart by their SHA-256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path


def file_sha256(path: str | os.PathLike[str], *, remember: bool = False) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    `remember` trusts an earlier answer while size and modification time stay, for shards that are
    asked about again and again. A check for damage must not: a flipped bit changes neither.
    """
    if not remember:
        return _digest(Path(path))
    status = os.stat(path)
    return _remembered(Path(path).absolute(), status.st_size, status.st_mtime_ns)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=4096)
def _remembered(path: Path, size: int, modified: int) -> str:
    return _digest(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError inside name `path`, which those of pyarrow and of a full disk do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a hidden neighbour to write to, and rename it to `path` at the end of the block.

    A reader never sees half a file, and an error leaves `path` as it was. The neighbour goes then:
    on a full disk it is in the way. `durable` waits until content and name have reached the disk.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "answer.txt"
    >>> with replacing(path) as temporary:
    ...     _ = temporary.write_text("42")
    >>> path.read_text()
    '42'
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            yield temporary
            if durable:
                flush(temporary)
            os.replace(temporary, path)
            if durable:
                flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all; see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def give_mode_of_umask(files: Iterable[Path]) -> None:
    """Let others read `files` as far as the umask says; safetensors makes each of mode 0600.

    The umask cannot be asked for without changing it for every thread; a new file shows it.
    """
    for file in files:
        probe = file.with_name(f".{file.name}.mode")
        probe.unlink(missing_ok=True)
        probe.touch()
        try:
            file.chmod(probe.stat().st_mode)
        finally:
            probe.unlink()


def flush(path: Path) -> None:
    """Force the content of a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
