"""A trial: what is done to a file or a process, what is seen then, and whether that is allowed."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: What may come of a fault. Anything else that is seen is a defect.
SAME, SAID = "same result", "one line, named"
#: Defects: a result that differs without a word; an error that is no line, or that names nothing.
SILENT, UNCLEAR = "SILENT", "UNCLEAR"
VERDICTS = (SAME, SAID, SILENT, UNCLEAR)


@dataclass(frozen=True)
class Trial:
    """A row of the log: group and target make a line of the table."""

    group: str
    target: str
    fault: str
    verdict: str
    message: str = ""


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: the signal), stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that begin with ``error:``."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def told(ended: Ended, *names: str) -> str:
    """Return `SAID` where a command failed with one line that has one of `names`."""
    whole = "Traceback" not in ended.err and len(ended.errors) == 1
    named = any(name in line for line in ended.errors for name in names)
    vague = any("(--debug shows where)" in line for line in ended.errors)
    return SAID if ended.code in (1, 2, 4) and whole and named and not vague else UNCLEAR


class Command:
    """A ``collamo`` command in a child that was forked from this process, whose imports it has.

    So that a trial takes the time of its work: importing takes four times as long as ten steps.

    Parameters
    ----------
    folder
        Where stdout and stderr are kept.
    arm
        Called in the child before the command: limits, hooks that kill it.
    """

    def __init__(self, arguments: list[str], folder: Path, arm: Callable[[], object] | None = None):
        self._files = [folder / "out.txt", folder / "err.txt"]
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, arm)

    def _run(self, arguments: list[str], arm: Callable[[], object] | None) -> None:
        """Run the command in the child, and end it whatever happens: never return."""
        code = 70
        try:
            os.setpgid(0, 0)  # a kill takes the workers along
            for number, path in enumerate(self._files, start=1):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                os.dup2(descriptor, number)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's child would ignore it
            from collamo.cli import run

            if arm is not None:
                arm()
            sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
            code = run(arguments)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except BaseException:
            import traceback

            with contextlib.suppress(OSError):
                os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)  # nothing of this process's is flushed or cleaned up by its copy

    def signal(self, number: int) -> None:
        """Send a signal to the command and its workers, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def runs(self) -> bool:
        """Return whether the command has not ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self, seconds: float = 600) -> Ended:
        """Return how the command ended; one that hangs is killed after `seconds` (exit code -9)."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                self.signal(signal.SIGKILL)
            time.sleep(0.005)
        out, err = (
            path.read_text(errors="replace") if path.exists() else "" for path in self._files
        )
        return Ended(os.waitstatus_to_exitcode(status), out, err)


def here(arguments: list[str]) -> Ended:
    """Run a command in this process."""
    from collamo.cli import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    return Ended(code, out.getvalue(), err.getvalue())


def largest_file(size: int) -> Callable[[], object]:
    """Return what limits a child's files to `size` bytes, as ``ulimit -f`` does."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextlib.contextmanager
def altered(path: Path, content: bytes | None) -> Iterator[None]:
    """Have other bytes in a file, or no file (None), for the length of the block."""
    before = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        yield
    finally:
        path.write_bytes(before)
