"""What a judge of captions is told, and how strictly its answers are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import yaml

from collamo.errors import UsageError, suggest
from collamo.files import file_sha256

PROMPT = Path(__file__).with_name("prompt.yaml")
PLACES = {
    "score": ("molecule", "reference", "prediction", "lowest", "highest", "criteria", "example"),
    "compare": ("molecule", "reference", "first", "second", "criteria"),
}
NEEDED = {"score": ("reference", "prediction"), "compare": ("reference", "first", "second")}
TAKEN = {"row", "status", "prediction", "reference", "answer"}  # columns of rows.parquet
BETTER = ("first", "tie", "second")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n```", re.DOTALL)


@dataclass(frozen=True)
class Rubric:
    """What a judge is told: texts with ``$places`` and a scale of whole numbers.

    `parameters` go into every request as they are; `sha256` is that of the file.
    """

    name: str
    lowest: int
    highest: int
    criteria: Mapping[str, str]
    system: str
    score: str
    compare: str
    sha256: str
    parameters: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path = PROMPT) -> Rubric:
        """Read a YAML file like ``prompt.yaml``.

        Raises
        ------
        UsageError
            For a missing file, unknown or missing keys, a scale that is none, or a text without a
            place for what it is about or with an unknown one.
        """
        if not path.is_file():
            raise UsageError(f"--prompt {path}: no such file")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is no YAML: {error}") from None
        known = [name for name in cls.__dataclass_fields__ if name != "sha256"]
        for name in values if isinstance(values, dict) else ():
            if name not in known:
                raise UsageError(f"{path}: unknown key {name!r}{suggest(str(name), known)}")
        try:
            rubric = cls(**values, sha256=file_sha256(path))
        except TypeError as error:
            raise UsageError(f"{path}: {error}") from None
        rubric._check(path)
        return rubric

    def _check(self, path: Path) -> None:
        scale = (self.lowest, self.highest)
        if not all(type(end) is int for end in scale) or self.lowest >= self.highest:
            raise UsageError(f"{path}: lowest {scale[0]!r}, highest {scale[1]!r} are no scale")
        criteria = self.criteria if isinstance(self.criteria, dict) else {}
        if not criteria or not all(
            isinstance(text, str) for pair in criteria.items() for text in pair
        ):
            raise UsageError(f"{path}: criteria must name at least one, each with its description")
        for name in criteria.keys() & TAKEN:
            raise UsageError(
                f"{path}: a criterion cannot be called {name!r}: rows have that already"
            )
        if not isinstance(self.parameters, dict):
            raise UsageError(f"{path}: parameters must be names with values")
        for name in ("name", "system", *PLACES):
            text = getattr(self, name)
            if not isinstance(text, str) or not Template(text).is_valid():
                raise UsageError(f"{path}: {name} is no text with $places; $$ stands for a dollar")
        for kind, places in PLACES.items():
            found = Template(getattr(self, kind)).get_identifiers()
            for place in NEEDED[kind]:
                if place not in found:
                    raise UsageError(f"{path}: {kind} has no place for ${place}")
            for place in found:
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
        grades = [answer.get(name) for name in self.criteria]
        if all(type(grade) is int and self.lowest <= grade <= self.highest for grade in grades):
            return dict(zip(self.criteria, grades, strict=True))
        return None


def read_object(content: str) -> dict:
    """Return the one JSON object that a text is, perhaps in a Markdown fence; else {}.

    Two values under one name are no answer either.

    >>> read_object('{"correctness": 4}'), read_object('Sure! {"correctness": 4}')
    ({'correctness': 4}, {})
    """
    content = content.strip()
    fenced = _FENCED.fullmatch(content)

    def unambiguous(pairs: list[tuple[str, object]]) -> dict:
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
