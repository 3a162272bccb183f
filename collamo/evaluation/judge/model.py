"""A language model as a judge: any OpenAI-compatible endpoint, asked about captions.

Every answer is on the disk before the next question of its thread is asked, so that a run can be
cut off anywhere and the same command goes on. An answer that is not exactly what was asked for is
asked for again, a stated number of times, and then counted as unparsed. Nothing is guessed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from collamo.errors import UsageError
from collamo.evaluation.journal import Journal, digest
from collamo.evaluation.judge.rubric import Rubric
from collamo.evaluation.service import (
    Limits,
    Service,
    ServiceDownError,
    ServiceError,
    check_url,
)

log = logging.getLogger(__name__)
T = TypeVar("T")
USAGE = ("requests", "prompt_tokens", "completion_tokens", "answers_without_usage")


@dataclass(frozen=True)
class JudgeOptions:
    """Which model judges, by which rubric, at what price.

    `url` is the endpoint's base (``…/v1``) or its ``…/chat/completions``; `key` goes into the
    request's header and nowhere else. An answer that cannot be read is asked for `reasks` times
    more. `prices` are per 1,000 tokens of prompt and of answer, in whatever currency; None: the
    tokens are counted, but not their cost.
    """

    url: str
    model: str
    rubric: Rubric = field(default_factory=Rubric.load)
    limits: Limits = field(default_factory=Limits)
    reasks: int = 2
    prices: tuple[float, float] | None = None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What became of a question: "scored" with its `value`, "unparsed" or "failed"; the `text`."""

    status: str
    value: T | None = None
    text: str = ""


class _Asked(NamedTuple, Generic[T]):
    """An answer, what its question cost in earlier runs, and what each request cost now."""

    answer: Answer[T]
    before: Counter[str]
    now: list[Counter[str]]


class ModelJudge:
    """Asks one endpoint; every different question once, however often it comes up.

    `usage` adds up what all answers have cost that were needed, kept ones included; `asked` is the
    part of this run.
    """

    def __init__(self, options: JudgeOptions, answers: Path):
        self.options = options
        if "?" in options.url or "#" in options.url:
            raise UsageError("the judge's address must end with its path: no ? and no #")
        url = check_url(options.url).rstrip("/")
        url += "" if url.endswith("/chat/completions") else "/chat/completions"
        self._service = Service(url, options.limits, options.key)
        self._answers = Journal(answers, {"service": "judge"})
        self._known: set[str] = set()
        self.usage = Counter(dict.fromkeys(USAGE, 0))
        self.asked = Counter(dict.fromkeys(USAGE, 0))

    def __enter__(self) -> ModelJudge:
        return self

    def __exit__(self, *exception: object) -> None:
        self._service.__exit__(*exception)
        self._answers.__exit__(*exception)

    def ask(
        self, questions: Sequence[list[dict[str, str]]], read: Callable[[str], T | None]
    ) -> list[Answer[T]]:
        """Return the answer to each list of messages; `read` gives the value of one, or None."""
        bodies = [
            {**self.options.rubric.parameters, "model": self.options.model, "messages": messages}
            for messages in questions
        ]
        keys = [digest("judge", self._service.url, body) for body in bodies]
        different = dict(zip(keys, bodies, strict=True))
        asked = self._service.map(lambda key: self._ask(key, different[key], read), different)
        answers = {}
        for key, (answer, before, now) in zip(different, asked, strict=True):
            answers[key] = answer
            if key not in self._known:
                self._known.add(key)
                self.usage.update(before)
            for usage in now:
                self.usage.update(usage)
                self.asked.update(usage)
        return [answers[key] for key in keys]

    def _ask(self, key: str, body: dict[str, Any], read: Callable[[str], T | None]) -> _Asked[T]:
        record = self._answers.get(key) or {"text": None, "usage": {}}
        total: Counter[str] = Counter(record["usage"])
        before = Counter(total)
        now: list[Counter[str]] = []
        value = None if record["text"] is None else read(record["text"])
        while value is None and total["requests"] <= self.options.reasks:
            try:
                text, usage = self._service.ask(body, read_completion)
            except ServiceDownError as error:
                raise ServiceDownError(
                    f"{error}; answers so far are in {self._answers.path}: the same command goes on"
                ) from None
            except ServiceError as error:
                log.warning("a question failed: %s", error)
                return _Asked(Answer("failed", text=str(error)), before, now)
            now.append(usage)
            total.update(usage)
            record = {"text": self._clean(text), "usage": total}
            self._answers.put({key: record})
            value = read(record["text"])
        status = "unparsed" if value is None else "scored"
        return _Asked(Answer(status, value, record["text"]), before, now)

    def _clean(self, text: str) -> str:
        """Return what may be written down: an endpoint could repeat the key it was sent."""
        return text.replace(self.options.key, "***") if self.options.key else text

    def costs(self) -> dict[str, dict[str, float]]:
        """Return tokens and, where prices are given, their cost: in all, and of this run."""
        return {"all": self._cost(self.usage), "this_run": self._cost(self.asked)}

    def _cost(self, usage: Counter[str]) -> dict[str, float]:
        tokens: dict[str, float] = dict(usage)
        if self.options.prices is not None:
            pairs = zip(
                (tokens["prompt_tokens"], tokens["completion_tokens"]),
                self.options.prices,
                strict=True,
            )
            tokens["cost"] = sum(count / 1000 * price for count, price in pairs)
        return tokens


def read_completion(answer: Any) -> tuple[str, Counter[str]]:
    """Return (text, usage) of a chat completion; ValueError for other JSON.

    A message without text (a refusal) is an empty text; usage that is missing or odd is counted as
    ``answers_without_usage``.
    """
    try:
        content = answer["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError):
        raise ValueError("no choices[0].message.content") from None
    if not isinstance(content, str | None):
        raise ValueError("the content is not text")
    usage = answer.get("usage")
    tokens = usage if isinstance(usage, dict) else {}
    prompt, completion = tokens.get("prompt_tokens"), tokens.get("completion_tokens")
    if type(prompt) is int and type(completion) is int and min(prompt, completion) >= 0:
        counts = (1, prompt, completion, 0)
    else:
        counts = (1, 0, 0, 1)
    return content or "", Counter(dict(zip(USAGE, counts, strict=True)))
