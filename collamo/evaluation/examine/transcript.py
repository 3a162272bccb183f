"""What a model answered, written down as it answers: a run that was cut off goes on from there."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from collamo.errors import UsageError

logger = logging.getLogger(__name__)


class Transcript:
    """The answers of an evaluation, a JSON line each, on the disk after every batch.

    The first line is the key: everything that decides an answer (hashes of model and data, split,
    seed …). A file with the same key is read back, also when its last line was cut short. A
    finished one with another key is replaced, an unfinished one never: it may hold hours of work.

    Parameters
    ----------
    path
        The file, made where it is not there.
    key
        Plain JSON values.

    Raises
    ------
    UsageError
        When the file is the unfinished transcript of something else.
    """

    def __init__(self, path: Path, key: Mapping[str, object]):
        #: Set of answers → number of the question → answer.
        self.answers: dict[str, dict[int, str]] = defaultdict(dict)
        whole = self._read_back(path, json.loads(json.dumps(key)))
        self._file = path.open("r+b" if whole else "wb")
        if whole:
            self._file.truncate(whole)
            self._file.seek(whole)
        else:
            self._write([{"key": key}])

    def _read_back(self, path: Path, key: dict) -> int:
        """Take over the answers of a file with this key; return the bytes of its whole lines."""
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        records, size = [], 0
        for line in lines:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if not isinstance(record, dict):
                break
            records.append(record)
            size += len(line)
        if not records or "key" not in records[0]:
            return 0
        found = records[0]["key"]
        if found != key:
            differs = [n for n in {**found, **key} if found.get(n) != key.get(n)]
            if records[-1] == {"finished": True}:
                return 0
            raise UsageError(
                f"{path} holds the answers of an unfinished evaluation that differs in "
                f"{', '.join(differs)}; delete it or give another --out"
            )
        for record in records[1:]:
            if "row" in record:
                self.answers[record["set"]][record["row"]] = record["answer"]
        count = sum(map(len, self.answers.values()))
        if count:
            logger.info(
                "%s has %d answers of this evaluation; they are not asked again", path, count
            )
        return size

    def add(self, name: str, answers: Mapping[int, str]) -> None:
        """Keep answers of the set `name` by number of the question; they are on the disk then."""
        self.answers[name].update(answers)
        self._write([{"set": name, "row": row, "answer": text} for row, text in answers.items()])

    def finish(self) -> None:
        """Say that nothing is missing: another evaluation may take the file's place."""
        self._write([{"finished": True}])

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def _write(self, records) -> None:
        for record in records:
            self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
