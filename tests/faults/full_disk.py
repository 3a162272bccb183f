"""A disk that fills while each command writes, and files that may only grow so far."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from trials import SAID, SAME, SILENT, UNCLEAR, Command, Ended, Trial, largest_file, told

#: Writer → the arguments of its command, given the folder it writes to.
Writers = dict[str, Callable[[Path], list[str]]]
Read = Callable[[Path], object]
#: Sizes of the disk, as parts of what a command leaves on it; of a file, of its largest.
SHARES = (0.02, 0.25, 0.5, 0.75, 0.97)


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes in memory; needs root."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def make_room(place: Path) -> None:
    """Let the mounted file system hold 256 MiB."""
    subprocess.run(["mount", "-o", "remount,size=256m", str(place)], check=True)


def can_mount(place: Path) -> bool:
    """Return whether this user may mount a file system."""
    with contextlib.suppress(subprocess.CalledProcessError, OSError), small_disk(place, 65536):
        return True
    return False


def fill(
    writer: str, command: Callable[[Path], list[str]], read: Read, scratch: Path
) -> Iterator[Trial]:
    """Run one command on disks of five sizes up to what it takes; then again, with room.

    Nothing that is left behind may read as whole and differ; with room the same command, `--resume`
    for a training, must give what it gives elsewhere.
    """
    expected, sizes = undisturbed(command, read, scratch)
    for share in SHARES:
        size = max(4096, int(share * sum(pages(sizes))) // 4096 * 4096)
        with small_disk(scratch / f"disk-{share}", size) as place:
            out = place / "out"
            ended = Command(command(out), scratch).wait()
            verdict = _verdict(ended, out, read, expected, str(place))
            message = _message(ended)
            if verdict == SAID:
                make_room(place)
                arguments = command(out) + (["--resume"] if command(out)[0] == "train" else [])
                again = Command(arguments, scratch).wait()
                if again.code:
                    verdict, message = UNCLEAR, f"with room: {_message(again)}"
                elif read(out) != expected:
                    verdict = SILENT
        yield Trial("disk full", writer, f"{size} bytes", verdict, message)


def limit(
    writer: str, command: Callable[[Path], list[str]], read: Read, scratch: Path
) -> Iterator[Trial]:
    """Run one command whose files may not have the size of its largest, as by ``ulimit -f``."""
    expected, sizes = undisturbed(command, read, scratch)
    for share in SHARES:
        size, out = max(2048, int(share * max(sizes))), scratch / f"limited-{share}"
        ended = Command(command(out), scratch, largest_file(size)).wait()
        verdict = _verdict(ended, out, read, expected, "ulimit -f")
        yield Trial("ulimit -f", writer, f"{size} bytes", verdict, _message(ended))
        _delete(out)


def undisturbed(
    command: Callable[[Path], list[str]], read: Read, scratch: Path
) -> tuple[object, list[int]]:
    """Return what a command gives with room enough, and the bytes of the files it leaves."""
    place = scratch / "undisturbed-disk"
    place.mkdir()
    ended = Command(command(place / "out"), scratch).wait()
    assert ended.code == 0, ended.err
    expected = read(place / "out")
    sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
    shutil.rmtree(place)
    return expected, sizes


def pages(sizes: list[int]) -> list[int]:
    """Return what files take on a disk of pages of 4 KiB."""
    return [-(-size // 4096) * 4096 for size in sizes]


def _delete(out: Path) -> None:
    for path in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _verdict(ended: Ended, out: Path, read: Read, expected: object, name: str) -> str:
    try:
        with contextlib.redirect_stderr(None):
            left = read(out)
    except Exception:  # nothing there, or it says that it is not whole
        left = None
    if left is not None and left != expected:
        return SILENT
    if ended.code == 0:
        return SAME if left == expected else SILENT
    return told(ended, name)


def _message(ended: Ended) -> str:
    return " / ".join(ended.errors) or f"exit code {ended.code}: {ended.err[-300:]}"
