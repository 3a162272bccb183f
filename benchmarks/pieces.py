"""Commands that run until a deadline, each in a process of its own.

What they print lands line by line in one log, so that whatever ends a run early leaves all that was
seen until then. Shared by ``benchmarks/gpu.py`` and ``tests/gpu.py``, for machines that are lent by
the minute.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOG_LIMIT = 400_000  # characters of one piece; a sanitizer can print a thousand times that
LEAST = 10.0  # s; with less left no piece is started
DRAIN = 3.0  # s to read on after a process ended: its children may hold the pipe open
TAIL = 60  # lines of a failed piece that are shown


@dataclass(frozen=True)
class Piece:
    """A command that passes where it exits with 0, and the most seconds it may take."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = float("inf")


class Outcome(NamedTuple):
    """How a piece ended: its exit code (None: it was not started), and its last lines."""

    piece: Piece
    code: int | None
    seconds: float
    tail: list[str]

    @property
    def passed(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.code == 0

    @property
    def summary(self) -> str:
        """The line that tells most: pytest's counts, or else the last."""
        if self.code is None:
            return "not run: the time was up"
        lines = [line for line in self.tail if line.strip()] or [""]
        counts = (x for x in reversed(lines) if " passed" in x or " failed" in x)
        return next(counts, lines[-1]).strip("= ")


class Log:
    """A file that several pieces write to: a line at a time, with the piece's name before it."""

    def __init__(self, path: Path):
        self._lock, self._sizes = threading.Lock(), collections.Counter[str]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", errors="replace")

    def write(self, name: str, line: str) -> None:
        """Add a line; of a piece that printed too much already, nothing."""
        with self._lock:
            before = self._sizes[name]
            self._sizes[name] += len(line) + 1
            if before > LOG_LIMIT:
                return
            cut = " (the rest is left out)" if self._sizes[name] > LOG_LIMIT else ""
            self._file.write(f"[{name}] {line}{cut}\n")
            self._file.flush()


def run(
    piece: Piece, deadline: float, log: Log, each: Callable[[str], bool] | None = None
) -> Outcome:
    """Run a piece to its end, its own limit or the deadline (of `time.monotonic`).

    Lines for which `each` returns True were taken, and do not go to the log.
    """
    start = time.monotonic()
    end = min(deadline, start + piece.seconds)
    if end - start < min(LEAST, piece.seconds):
        log.write(piece.name, "not run: the time was up")
        return Outcome(piece, None, 0.0, [])
    tail: collections.deque[str] = collections.deque(maxlen=TAIL)

    def read(stream) -> None:
        for line in stream:
            line = line.rstrip("\n")
            if each is None or not each(line):
                tail.append(line)
                log.write(piece.name, line)

    code = _to_its_end(piece, end, read)
    seconds = time.monotonic() - start
    if code is None or isinstance(code, str):
        reason = code or f"stopped after {seconds:.0f} s"
        tail.append(reason)
        log.write(piece.name, reason)
        code = -1
    return Outcome(piece, code, seconds, list(tail))


def _to_its_end(piece: Piece, end: float, read: Callable) -> int | str | None:
    """Return the exit code, None where it was stopped, or why it did not start."""
    try:
        process = subprocess.Popen(
            piece.command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **piece.environment},
            cwd=ROOT,
            process_group=0,  # of this session still: who ends the session ends it too
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return f"does not start: {error}"
    _RUNNING.add(process.pid)
    reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    finally:  # its children too, which it may have left behind
        _kill_group(process.pid)
        process.wait()
        _RUNNING.discard(process.pid)
        reader.join(DRAIN)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


_RUNNING: set[int] = set()


def stop_when_told() -> None:
    """Take the pieces along where this process is interrupted or ended by a signal."""

    def stop(number: int, frame: object) -> None:
        for leader in list(_RUNNING):
            _kill_group(leader)
        os._exit(128 + number)  # all rows and logs are written by now

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def python(file: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a script of this repository with this interpreter."""
    return (sys.executable, str(ROOT / file), *arguments)
