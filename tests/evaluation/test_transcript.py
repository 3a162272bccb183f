"""Answers outlive a power cut, and are never mistaken for those of something else."""

import pytest

from collamo.errors import UsageError
from collamo.evaluation.examine.transcript import Transcript

KEY = {"checkpoint_sha256": "a", "seed": 0}


def test_answers_come_back(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = Transcript(path, KEY)
    first.add("CoLLaMo", {0: "3", 2: "a\nb\ud800 Å"})
    first.add("1d only", {0: ""})
    # No close, no finish: the process is gone.
    again = Transcript(path, KEY)
    assert again.answers == {"CoLLaMo": {0: "3", 2: "a\nb\ud800 Å"}, "1d only": {0: ""}}
    again.add("CoLLaMo", {1: "x"})
    again.finish()
    assert Transcript(path, KEY).answers["CoLLaMo"] == {0: "3", 1: "x", 2: "a\nb\ud800 Å"}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_short_is_asked_again(tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    Transcript(path, KEY).add("CoLLaMo", {0: "3", 1: "4"})
    path.write_bytes(path.read_bytes()[:-cut])
    again = Transcript(path, KEY)
    assert again.answers == {"CoLLaMo": {0: "3"}}
    again.add("CoLLaMo", {1: "5"})
    assert Transcript(path, KEY).answers["CoLLaMo"] == {0: "3", 1: "5"}


def test_a_file_without_a_whole_key_is_begun_anew(tmp_path):
    path = tmp_path / "answers.jsonl"
    for text in ("", '{"key": {"se', "no json\n", "[1]\n"):
        path.write_text(text)
        assert Transcript(path, KEY).answers == {}
        assert Transcript(path, KEY).answers == {}


def test_unfinished_answers_of_another_model_are_refused_and_kept(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = Transcript(path, KEY)
    first.add("CoLLaMo", {0: "3"})
    other = {**KEY, "checkpoint_sha256": "b"}
    with pytest.raises(UsageError, match=r"unfinished .* differs in checkpoint_sha256; delete"):
        Transcript(path, other)
    assert Transcript(path, KEY).answers["CoLLaMo"] == {0: "3"}
    first.finish()
    assert Transcript(path, other).answers == {}  # a finished one may go
