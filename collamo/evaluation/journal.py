"""Answers that cost time or money, written down as they come: a run that was cut off goes on.

Lines of JSON, appended and flushed to the disk. SQLite would keep them as safely, but here people
can read them, and mend them, with any editor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from collamo.errors import UsageError
from collamo.files import flush, naming

log = logging.getLogger(__name__)
_FINISHED = {"finished": True}
_HEADER = b'{"answers_to": '


def digest(*parts: object) -> str:
    """Return the SHA-256 of JSON values, equal for equal values: the key of an answer."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Journal:
    """Answers by key, each on the disk when `put` returns.

    A power cut costs the answers that were being written: an unfinished last line is cut off when
    the file is opened again. Other lines that cannot be read are left out, with a warning. In
    memory is only where each answer stands. Threads may share an object; a second process is
    refused as long as the first has the file open.

    Parameters
    ----------
    path
        The file, made where it is not there.
    subject
        Plain JSON values: everything that decides an answer and is not in its key. It is the first
        line. A file with the same subject is read back. A `finished` one with another is replaced,
        an unfinished one never: it may hold hours of work.

    Raises
    ------
    UsageError
        When the file is not a journal, is the unfinished one of another subject, or is open in
        another process.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "answers.jsonl"
    >>> with Journal(path, {"seed": 0}) as journal:
    ...     journal.put({"first": "yes"})
    >>> with Journal(path, {"seed": 0}) as journal:
    ...     journal.get("first"), "second" in journal
    ('yes', False)
    """

    def __init__(self, path: Path, subject: Mapping[str, object]):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._places: dict[str, int] = {}
        new = not path.exists()
        self._file = path.open("a+b")
        try:
            if not _only_user(self._file):
                raise UsageError(f"{path} is in use by another run; wait for it to end")
            self._load(json.loads(json.dumps(subject)))
        except BaseException:
            self.close()
            raise
        if new:  # its name should last as its content does, where the system can do that
            with contextlib.suppress(OSError):
                flush(path.parent)

    def _load(self, subject: dict[str, Any]) -> None:
        self._file.seek(0)
        header = self._file.readline()
        if _torn_header(header):
            return self._begin(subject)
        kept = _record(header).get("answers_to")
        if not isinstance(kept, dict):
            raise UsageError(f"{self.path} is not a file of answers; give another one")
        finished = self._read_back(len(header))
        if kept != subject:
            if not finished:
                names = [n for n in {**kept, **subject} if kept.get(n) != subject.get(n)]
                raise UsageError(
                    f"{self.path} holds the answers of an unfinished evaluation that differs in "
                    f"{', '.join(names)}; delete it or give another place"
                )
            return self._begin(subject)
        if self._places:
            log.info("%s: %d answers are not asked for again", self.path, len(self._places))

    def _begin(self, subject: dict[str, Any]) -> None:
        self._places.clear()
        self._file.truncate(0)
        self._append([{"answers_to": subject}])

    def _read_back(self, place: int) -> bool:
        """Find the answers from `place` on; return whether the last line is `finish`'s."""
        damaged, finished = 0, False
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(place)
                break
            record = _record(line)
            finished = record == _FINISHED
            if isinstance(record.get("key"), str) and "answer" in record:
                self._places[record["key"]] = place
            elif not finished:
                damaged += 1
            place += len(line)
        if damaged:
            log.warning("%s: %d damaged lines are not used", self.path, damaged)
        return finished

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another run have the file."""
        with naming(self.path):  # after a full disk it holds what was not written
            self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Any:
        """Return the answer kept for `key`, a JSON value; None where there is none."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            self._file.seek(place)
            record = _record(self._file.readline())
        return record.get("answer") if record.get("key") == key else None

    def put(self, answers: Mapping[str, object]) -> None:
        """Keep answers by key: JSON values that are not None."""
        records = [{"key": key, "answer": answer} for key, answer in answers.items()]
        with self._lock:
            self._places.update(zip(answers, self._append(records), strict=True))

    def finish(self) -> None:
        """Say that nothing is missing: another subject may take the file's place."""
        with self._lock:
            self._append([_FINISHED])

    def _append(self, records: list[dict[str, Any]]) -> list[int]:
        """Write records and wait until the disk has them; return where each begins."""
        with naming(self.path):
            places, place = [], self._file.seek(0, os.SEEK_END)
            for record in records:
                places.append(place)
                place += self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        return places


def _only_user(file: BinaryIO) -> bool:
    """Lock a file until it is closed; return False where another process has done so.

    A system or a file system without such locks lets everybody in.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def _torn_header(line: bytes) -> bool:
    """Return whether a first line was cut off by a crash: nothing came after it."""
    return not line.endswith(b"\n") and (line.startswith(_HEADER) or _HEADER.startswith(line))


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
