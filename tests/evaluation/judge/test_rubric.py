"""The rubric of a judge: prompts that cannot work, and how strictly answers are read."""

import json

import pytest
import yaml

from collamo.errors import UsageError
from collamo.evaluation.judge.rubric import PROMPT, Rubric, read_better, read_object


def grades(correctness, completeness):
    return json.dumps({"correctness": correctness, "completeness": completeness})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "4",
        "[4]",
        "I give it 4 of 5.",
        'Sure! {"correctness": 4, "completeness": 4}',
        '{"correctness": 4}',
        grades(0, 4),
        grades(6, 4),
        grades(4.0, 4),
        grades("4", 4),
        grades(True, 4),
        grades(None, 4),
        '{"correctness": 4, "completeness": 4, "correctness": 1}',
        grades(4, 4) * 2,
        '{"correctness": NaN, "completeness": 4}',
        "[" * 100_000,
    ],
)
def test_anything_but_the_grades_is_unparsed(content):
    assert Rubric.load().read_scores(content) is None


@pytest.mark.parametrize(
    "content",
    [
        grades(1, 5),
        f" {grades(1, 5)}\n",
        f"```json\n{grades(1, 5)}\n```",
        '{"reason": "x", "correctness": 1, "completeness": 5}',
    ],
)
def test_grades_are_read(content):
    assert Rubric.load().read_scores(content) == {"correctness": 1, "completeness": 5}


def test_which_is_better_is_read_strictly():
    assert read_better('{"better": "second"}') == "second"
    for content in ("second", '{"better": "Second"}', '{"better": ["tie"]}', '{"better": null}'):
        assert read_better(content) is None
    assert read_object("null") == {}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"lowest": 5}, "no scale"),
        ({"lowest": True}, "lowest: expected a whole number, got True"),
        ({"highest": "5"}, "prompt.yaml: highest: expected a whole number, got '5'"),
        ({"criteria": {}}, "criteria must name"),
        ({"criteria": {1: "x"}}, "criteria: 1: expected text, got 1"),
        ({"criteria": {"answer": "x"}}, "cannot be called 'answer'"),
        ({"score": "$reference"}, "no place for \\$prediction"),
        ({"score": "$reference $prediction $predicted"}, "unknown \\$predicted in score"),
        ({"score": "$reference $prediction costs $5"}, "\\$\\$ stands for a dollar"),
        ({"score": 3}, "prompt.yaml: score: expected text, got 3"),
        ({"parameters": []}, r"parameters: expected `key: value` lines, got \[\]"),
        ({"scale": 5}, "prompt.yaml: unknown key 'scale'"),
        ({"critera": {}}, r"unknown key 'critera' \(did you mean 'criteria'\?\)"),
        ({"sha256": "0"}, "unknown key 'sha256'"),
        ({"system": None}, "system: expected text, got None"),
    ],
)
def test_prompts_that_cannot_work(tmp_path, change, part):
    values = yaml.safe_load(PROMPT.read_text())
    path = tmp_path / "prompt.yaml"
    path.write_text(yaml.safe_dump(values | change))
    with pytest.raises(UsageError, match=part):
        Rubric.load(path)
