"""Files on disk: written whole or not at all, told apart by their SHA-256."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# (device, inode, bytes, time of modification [ns]) → SHA-256. Names of one file share its entry.
_digests: dict[tuple[int, int, int, int], str] = {}


def file_sha256(path: str | os.PathLike[str], *, remember: bool = False) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    `remember` trusts what this process found before, under this name or another of the same file,
    while size and modification time stay: for files that are asked about again and again. A check
    for damage must not: a flipped bit changes neither.
    """
    status = os.stat(path)
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if not (remember and key in _digests):
        with open(path, "rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


# How what people take for a file of another kind begins → what it is, and what to do.
_MISTAKEN = (
    (
        rb"version https://git-lfs\.github\.com/spec",
        ("a Git LFS pointer", "run `git lfs pull` in its repository or download the file"),
    ),
    (
        rb"\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)",
        (
            "an HTML page",
            "the download led to a page, perhaps one to sign in; open the link in a browser",
        ),
    ),
    (rb"\s*<\?xml", ("an XML page", "perhaps a server's refusal; read it, download again")),
)


def mistaken_for(start: bytes) -> tuple[str, str] | None:
    """Return what a file that begins so is, and what to do, where it is what a failed download or
    an unfetched repository leaves.

    >>> mistaken_for(b"<!DOCTYPE html><html>")[0]
    'an HTML page'
    """
    for pattern, kind in _MISTAKEN:
        if re.match(pattern, start, flags=re.IGNORECASE | re.DOTALL):
            return kind
    return None


#: Errors of writing that mean there is no room: disk, quota, largest file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How they are told by writers that raise no OSError: those in Rust (safetensors, tokenizers) give
# the number, torch's has none. It fails so on a full disk, or where files may not be that large.
_IN_RUST = {f"(os error {number})": number for number in FULL}
_IN_TORCH = ("PytorchStreamWriter failed writing", "inline_container.cc", "basic_ios::clear")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError inside name `path`, which those of pyarrow and of a full disk do not.

    A full disk is an OSError with one of the numbers in `FULL` then, whichever writer met it.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        number = why_full(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def why_full(error: BaseException) -> int | None:
    """Return which of `FULL` an error of any writer stands for, itself or in what it came from."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return error.errno
    for words, number in _IN_RUST.items():
        if words in text:
            return number
    if isinstance(error, RuntimeError) and any(words in text for words in _IN_TORCH):
        return errno.ENOSPC if _largest_file() is None else errno.EFBIG
    return None if error.__cause__ is None else why_full(error.__cause__)


def no_room(path: str | os.PathLike[str] | None, number: int) -> str:
    """Return the sentence for a file that cannot be written: the disk, and what is free on it.

    None: it has no name, as standard output has none.
    """
    if path is None:
        return f"standard output cannot be written: {os.strerror(number)}; make room"
    place = Path(path).absolute()
    place = next(p for p in (place, *place.parents) if p.exists())
    limit = _largest_file()
    if number == errno.EFBIG and limit is not None:
        return (
            f"{path} cannot be written: a file of this process may have {_size(limit)} at most; "
            "raise it (ulimit -f unlimited)"
        )
    mount = next(p for p in (place, *place.parents) if os.path.ismount(p))
    usage = shutil.disk_usage(mount)
    return (
        f"{path} cannot be written: {os.strerror(number)}; the disk at {mount} has "
        f"{_size(usage.free)} of {_size(usage.total)} free; make room"
    )


def _largest_file() -> int | None:
    """Return the bytes that a file of this process may have; None where nothing is said."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _size(count: float) -> str:
    """Return bytes as people read them.

    >>> _size(0), _size(65_536), _size(3 * 2**30)
    ('0 bytes', '64.0 KiB', '3.0 GiB')
    """
    if count < 1024:
        return f"{count:.0f} bytes"
    power = min(4, int(math.log(count, 1024)))
    return f"{count / 1024**power:.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


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


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden neighbour to write files to, which becomes `folder` at the end of the block.

    A reader never takes half a model for a whole one, and an error leaves `folder` as it was. What
    a process that was killed left of it is deleted first.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming(folder):
            yield temporary
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
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
