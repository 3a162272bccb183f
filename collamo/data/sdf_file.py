"""The records of an SDF file: mol blocks with their data items."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from collamo.data.readers import Problem, Record

MOLBLOCK = "molblock"  # the column of a record's mol block
_COUNTS = re.compile(r"[ \d]{6}.*V[23]000\s*$")  # the fourth line of a mol block
_HEADER_LINES = 3  # before it


def sdf_records(lines: Iterable[str], name: str) -> Iterator[Record]:
    """Yield each record: its mol block as "molblock", and its data items by name.

    A record ends at its ``$$$$``; where that was lost, at the mol block of the next one, and the
    last may lack it. Blank lines before a mol block are left out.
    """
    record: list[str] = []
    counts: int | None = None  # where the line with the counts stands in `record`
    for raw in lines:
        line = raw.rstrip("\r\n")
        if line.startswith("$$$$"):
            yield _record(record, counts)
            record, counts = [], None
            continue
        if _COUNTS.match(line):
            if counts is None:
                counts = len(record)
            elif _starts_a_molecule(record, counts):
                yield _record(record[:-_HEADER_LINES], counts)
                record, counts = record[-_HEADER_LINES:], _HEADER_LINES
        record.append(line)
    if any(line.strip() for line in record):
        yield _record(record, counts)


def _starts_a_molecule(record: list[str], counts: int) -> bool:
    """Return whether the last lines of `record` head a molecule, not one inside a data item."""
    before = len(record) - _HEADER_LINES - 1
    # A blank line ends a data item: what follows text goes on with it.
    return before > counts and (not record[before].strip() or record[before].startswith("M  END"))


def _record(lines: list[str], counts: int | None) -> Record:
    start = 0
    if counts is not None and not any(line.strip() for line in lines[: counts - _HEADER_LINES]):
        start = max(0, counts - _HEADER_LINES)
    ends = (i + 1 for i, line in enumerate(lines) if i >= start and line.startswith("M  END"))
    end = next(ends, len(lines))
    items, problem = _data_items(lines[end:])
    if counts is None and any(line.startswith("M  END") for line in lines[end:]):
        problem = ("sdf", "record holds two mol blocks; write $$$$ between them")
    return Record({MOLBLOCK: "\n".join(lines[start:end]) + "\n", **items}, problem)


def _data_items(lines: list[str]) -> tuple[dict[str, str], Problem | None]:
    """Return name → text of the data items.

    An item is ``> <name>``, its lines, and a blank line; before that, a line that begins with
    ``>`` is one of its lines.
    """
    items: dict[str, list[str]] = {}
    problem: Problem | None = None
    name: str | None = None
    after_blank = True
    for line in lines:
        if line.startswith(">") and after_blank:
            start, stop = line.find("<"), line.rfind(">")
            name = line[start + 1 : stop].strip() if 0 < start < stop else None
            if name in (*items, MOLBLOCK):
                problem = ("columns", f"record has the data item <{name}> twice")
            elif name is not None:
                items[name] = []
            after_blank = False
        elif not line.strip():
            after_blank = True
        else:
            after_blank = False
            if name in items:
                items[name].append(line)
    return {name: "\n".join(item) for name, item in items.items()}, problem
