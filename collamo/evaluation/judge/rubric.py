"""The rubric a judge of captions works by: its prompt, its scale, its criteria."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from string import Template
from typing import Any

from pydantic import StrictInt
from pydantic.dataclasses import dataclass

from collamo.errors import UsageError, suggest
from collamo.files import file_sha256
from collamo.schema import CONFIG, checked, read_yaml

PROMPT = Path(__file__).with_name("prompt.yaml")
PLACES = {
    "score": ("molecule", "reference", "prediction", "lowest", "highest", "criteria", "example"),
    "compare": ("molecule", "reference", "first", "second", "criteria"),
}
NEEDED = {"score": ("reference", "prediction"), "compare": ("reference", "first", "second")}
TAKEN = {"row", "status", "prediction", "reference", "answer"}  # columns of rows.parquet
BETTER = ("first", "tie", "second")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n```", re.DOTALL)


@dataclass(frozen=True, config=CONFIG)
class RubricFile:
    """The instructions of a judge, as they stand in a YAML file like ``prompt.yaml``.

    Texts with ``$places``, and a scale of whole numbers. `parameters` go into every request as they
    are.
    """

    name: str
    lowest: StrictInt
    highest: StrictInt
    criteria: Mapping[str, str]
    system: str
    score: str
    compare: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=CONFIG)
class Rubric(RubricFile):
    """A checked `RubricFile`, with the SHA-256 of the file."""

    sha256: str = ""

    @classmethod
    def load(cls, path: Path = PROMPT) -> Rubric:
        """Read a YAML file like ``prompt.yaml``.

        Raises
        ------
        UsageError
            For a missing file, unknown or missing keys, a wrong type, a scale that does not rise,
            or a text that lacks a place for what it is about or has an unknown one.
        """
        content = checked(RubricFile, read_yaml(path, "prompt"), str(path))
        rubric = cls(**vars(content), sha256=file_sha256(path))
        rubric._check(path)
        return rubric

    def _check(self, path: Path) -> None:
        if self.lowest >= self.highest:
            raise UsageError(
                f"{path}: lowest {self.lowest}, highest {self.highest} are no scale; highest must "
                "be greater"
            )
        if not self.criteria:
            raise UsageError(f"{path}: criteria must name at least one, each with its description")
        for name in self.criteria.keys() & TAKEN:
            raise UsageError(
                f"{path}: a criterion cannot be called {name!r}: rows have that already"
            )
        for kind in ("system", *PLACES):
            if not Template(getattr(self, kind)).is_valid():
                raise UsageError(f"{path}: {kind} has a $ without a place; $$ stands for a dollar")
        for kind, places in PLACES.items():
            written = Template(getattr(self, kind)).get_identifiers()
            for place in NEEDED[kind]:
                if place not in written:
                    raise UsageError(f"{path}: {kind} has no place for ${place}")
            for place in written:
                if place not in places:
                    raise UsageError(f"{path}: unknown ${place} in {kind}{suggest(place, places)}")

    def messages(self, kind: str, **texts: str) -> list[dict[str, str]]:
        """Return what is asked: `kind` "score" or "compare", the texts of its places."""
        listed = "\n".join(f"- {name}: {text}" for name, text in self.criteria.items())
        content = Template(getattr(self, kind)).substitute(
            {name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()},
            lowest=self.lowest,
            highest=self.highest,
            criteria=listed,
            example="{" + ", ".join(f"{json.dumps(name)}: …" for name in self.criteria) + "}",
        )
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]

    def read_scores(self, content: str) -> dict[str, int] | None:
        """Return the grade by each criterion; None unless all are whole numbers of the scale."""
        answer = read_object(content)
        grades = {}
        for name in self.criteria:
            grade = answer.get(name)
            # isinstance would take True for an int; 4.0 is not the whole number that was asked for.
            if type(grade) is not int or not self.lowest <= grade <= self.highest:
                return None
            grades[name] = grade
        return grades


def read_object(content: str) -> dict[str, Any]:
    """Return the one JSON object that a text is, perhaps in a Markdown fence; else {}.

    Two values under one name make it no answer.

    >>> read_object('{"correctness": 4}'), read_object('Sure! {"correctness": 4}')
    ({'correctness': 4}, {})
    """
    content = content.strip()
    fenced = _FENCED.fullmatch(content)

    def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name twice")
        return dict(pairs)

    try:
        answer = json.loads(fenced[1] if fenced else content, object_pairs_hook=unambiguous)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def read_better(content: str) -> str | None:
    """Return "first", "second" or "tie", None for any other answer."""
    better = read_object(content).get("better")
    return better if isinstance(better, str) and better in BETTER else None
