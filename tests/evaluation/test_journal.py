"""Answers outlive kills and power cuts, and are never mistaken for those of something else."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from collamo.errors import UsageError
from collamo.evaluation.journal import Journal

SUBJECT = {"checkpoint_sha256": "a", "seed": 0}


def answers_of(path, subject=SUBJECT):
    with Journal(path, subject) as journal:
        return {key: journal.get(key) for key in journal._places}


def test_answers_outlive_the_process(tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    with Journal(path, SUBJECT) as journal:
        journal.put({"a": [1], "b": {"text": "\ud800 ü Å\n"}})
        journal.put({"": ""})
        assert path.read_bytes().count(b"\n") == 4  # before anything is read or closed
        assert journal.get("a") == [1]
    with Journal(path, SUBJECT) as journal:
        assert (journal.get("a"), journal.get("c"), len(journal)) == ([1], None, 3)
        assert "a" in journal
        assert "c" not in journal
        assert journal.get("b") == {"text": "\ud800 ü Å\n"}
        journal.put({"c": "x"})
        journal.finish()
    assert answers_of(path) == {"a": [1], "b": {"text": "\ud800 ü Å\n"}, "": "", "c": "x"}


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_cut_last_line_is_lost_and_nothing_else(tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    with Journal(path, SUBJECT) as journal:
        journal.put({"a": 1})
        whole = path.read_bytes()
        journal.put({"b": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, SUBJECT) as journal:
        assert (journal.get("a"), journal.get("b")) == (1, None)
        journal.put({"b": 3})
    assert path.read_bytes().startswith(whole)
    assert answers_of(path) == {"a": 1, "b": 3}


def test_a_file_whose_first_line_was_cut_off_is_begun_anew(tmp_path):
    path = tmp_path / "answers.jsonl"
    whole = json.dumps({"answers_to": SUBJECT})
    for length in range(len(whole)):
        path.write_text(whole[:length])
        assert answers_of(path) == {}
        assert answers_of(path) == {}
        assert path.read_text() == whole + "\n"


@pytest.mark.parametrize("text", ["no json\n", "[1]\n", '{"row": 1}\n', "a text without an end"])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"answers\.jsonl is not a file of answers"):
        Journal(path, SUBJECT)
    assert path.read_text() == text


def test_damaged_lines_are_said(tmp_path, caplog):
    path = tmp_path / "answers.jsonl"
    with Journal(path, SUBJECT) as journal:
        journal.put({"a": 1})
    header, good = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + b"\x00\x00\n[1]\n" + good + b"\x00\x00\x00")
    assert answers_of(path) == {"a": 1}
    assert "2 damaged lines" in caplog.text


def test_unfinished_answers_to_something_else_are_refused_and_kept(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Journal(path, SUBJECT) as journal:
        journal.put({"a": "3"})
    other = {**SUBJECT, "checkpoint_sha256": "b"}
    with pytest.raises(UsageError, match=r"unfinished .* differs in checkpoint_sha256; delete"):
        Journal(path, other)
    assert answers_of(path) == {"a": "3"}
    with Journal(path, SUBJECT) as journal:
        journal.finish()
    assert answers_of(path) == {"a": "3"}
    assert answers_of(path, other) == {}  # a finished one may go
    with pytest.raises(UsageError, match="unfinished"):
        Journal(path, SUBJECT)


def test_two_writers(tmp_path):
    path = tmp_path / "answers.jsonl"
    with Journal(path, SUBJECT) as journal:
        journal.put({"a": 1})
        with pytest.raises(UsageError, match="in use by another run"):
            Journal(path, SUBJECT)
        journal.put({"b": 2})
    assert answers_of(path) == {"a": 1, "b": 2}


WRITER = """
import sys
from pathlib import Path
from collamo.evaluation.journal import Journal
journal = Journal(Path(sys.argv[1]), {"checkpoint_sha256": "a", "seed": 0})
number = len(journal)
while True:
    journal.put({str(number): "x" * 100_000, str(number + 1): number})
    print(number, flush=True)
    number += 2
"""


def test_a_writer_that_is_killed_loses_nothing_that_it_had_kept(tmp_path):
    path, kept = tmp_path / "answers.jsonl", 0
    for seconds in (0.0, 0.003, 0.01):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], env=os.environ, stdout=subprocess.PIPE
        )
        said = writer.stdout.readline()
        time.sleep(seconds)
        writer.send_signal(signal.SIGKILL)
        lines = (said + writer.stdout.read()).splitlines()
        writer.wait()
        assert int(lines[0]) >= kept  # it went on where the last one was killed
        kept = int(lines[-1]) + 2
        answers = answers_of(path)
        assert [answers[str(number)] for number in range(1, kept, 2)] == list(range(0, kept, 2))
        assert {len(answers[str(number)]) for number in range(0, kept, 2)} == {100_000}
