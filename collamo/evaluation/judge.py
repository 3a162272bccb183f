"""A language model as the judge of captions: scores by a rubric, or which of two files is better.

Any OpenAI-compatible endpoint serves. Every answer is on the disk before the next question of its
thread is asked, so that a run can be cut off anywhere and the same command goes on. What the judge
says is read strictly: an answer that is not exactly what was asked for is asked for again, a stated
number of times, and then counted as unparsed. Nothing is guessed.

A pair of captions is shown in both orders. A judge that prefers a place to a caption contradicts
itself; how often is a score of its own.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from string import Template

import yaml

from collamo.errors import UsageError, suggest
from collamo.evaluation.predictions import (
    READING,
    PredictionRow,
    RowsFile,
    batches,
    file_sha256,
    read_predictions,
    versions,
)
from collamo.evaluation.report import markdown_table, write_whole
from collamo.evaluation.service import (
    AnswerFile,
    Limits,
    Service,
    ServiceDownError,
    ServiceError,
    check_url,
    digest,
)
from collamo.evaluation.statistics import Sums

log = logging.getLogger(__name__)

PROMPT = Path(__file__).with_name("judge_prompt.yaml")
PLACES = {
    "score": ("molecule", "reference", "prediction", "lowest", "highest", "criteria", "example"),
    "compare": ("molecule", "reference", "first", "second", "criteria"),
}
NEEDED = {"score": ("reference", "prediction"), "compare": ("reference", "first", "second")}
STATUSES = ("scored", "unparsed", "failed", *READING)
PAIR_SCORES = ("a_preferred", "a_wins", "b_wins", "ties", "swayed")
USAGE = ("requests", "prompt_tokens", "completion_tokens", "answers_without_usage")
POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}  # of the caption that stands first
ROWS_AT_ONCE = 200  # their answers are waited for together
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
        """Read a YAML file like ``judge_prompt.yaml``.

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
        if not (isinstance(self.criteria, dict) and self.criteria):
            raise UsageError(f"{path}: criteria must name at least one, each with its description")
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
    return better if isinstance(better, str) and better in POINTS else None


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges, by what, and for how much.

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
class Answer:
    """What became of a question: "scored" with its `value`, "unparsed" or "failed"; the `text`."""

    status: str
    value: object = None
    text: str = ""


class Judge:
    """Asks one endpoint; every different question once, whoever asks it.

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
        self._answers = AnswerFile(answers)
        self._known: set[str] = set()
        self.usage = Counter(dict.fromkeys(USAGE, 0))
        self.asked = Counter(dict.fromkeys(USAGE, 0))

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exception) -> None:
        self._service.__exit__(*exception)
        self._answers.__exit__(*exception)

    def ask(
        self, questions: Sequence[list[dict]], read: Callable[[str], object | None]
    ) -> list[Answer]:
        """Return the answer to each list of messages; `read` gives the value of one, or None."""
        bodies = [
            {**self.options.rubric.parameters, "model": self.options.model, "messages": messages}
            for messages in questions
        ]
        keys = [digest("judge", self._service.url, body) for body in bodies]
        different = dict(zip(keys, bodies, strict=True))
        found = dict(
            zip(
                different,
                self._service.map(lambda item: self._ask(*item, read), different.items()),
                strict=True,
            )
        )
        for key, (_, before, new) in found.items():
            if key not in self._known:
                self._known.add(key)
                self.usage.update(before)
            for usage in new:
                self.usage.update(usage)
                self.asked.update(usage)
        return [found[key][0] for key in keys]

    def _ask(self, key: str, body: dict, read) -> tuple[Answer, Counter, list[Counter]]:
        """Return (answer, what its question cost in earlier runs, what each request cost now)."""
        record = self._answers.get(key) or {"text": None, "usage": {}}
        total = Counter(record["usage"])
        before, new = Counter(total), []
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
                return Answer("failed", text=str(error)), before, new
            new.append(usage)
            total.update(usage)
            record = {"text": self._clean(text), "usage": total}
            self._answers.put(key, record)
            value = read(record["text"])
        status = "unparsed" if value is None else "scored"
        return Answer(status, value, record["text"]), before, new

    def _clean(self, text: str) -> str:
        """Return what may be written down: an endpoint could repeat the key it was sent."""
        return text.replace(self.options.key, "***") if self.options.key else text

    def costs(self) -> dict:
        """Return tokens and, where prices are given, their cost: in all, and of this run."""
        found = {"all": dict(self.usage), "this_run": dict(self.asked)}
        if self.options.prices is not None:
            for name, tokens in found.items():
                pairs = zip(
                    (tokens["prompt_tokens"], tokens["completion_tokens"]),
                    self.options.prices,
                    strict=True,
                )
                found[name] = {**tokens, "cost": sum(n / 1000 * price for n, price in pairs)}
        return found


def read_completion(answer: object) -> tuple[str, Counter]:
    """Return (text, usage) of a chat completion; ValueError for JSON that is none.

    A message without text (a refusal) is an empty text; usage that is missing or odd is counted as
    ``answers_without_usage``.
    """
    try:
        content = answer["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError):
        raise ValueError("no choices[0].message.content") from None
    if not isinstance(content, str | None):
        raise ValueError("a content that is no text")
    usage = answer.get("usage")
    tokens = [usage.get(name) if isinstance(usage, dict) else None for name in USAGE[1:3]]
    if all(type(count) is int and count >= 0 for count in tokens):
        counts = (1, *tokens, 0)
    else:
        counts = (1, 0, 0, 1)
    return content or "", Counter(dict(zip(USAGE, counts, strict=True)))


def judge_predictions(
    path: Path,
    options: JudgeOptions,
    out: Path,
    *,
    other: Path | None = None,
    answers: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict:
    """Have a predictions file judged, or compared with `other`; write the report into `out`.

    Writes ``report.json``, ``report.md``, ``rows.parquet`` and, unless `answers` names another
    file, ``answers.jsonl``. Returns the report: ``scores`` (means over scored rows), ``intervals``
    (95 %, ±1.96 standard errors), ``counts`` (``rows``, and what became of them), ``usage`` and
    ``manifest``.

    One file: ``scores`` has the mean of each criterion of the rubric. An empty prediction is given
    the lowest grade unasked. Two files of the same references, a and b, each pair in both orders:

    - ``a_preferred``: mean of 1 where a is better, ½ for a tie, 0 where b is, over both orders;
      ``a_wins``, ``b_wins`` and ``ties`` are shares of rows by that mean;
    - ``swayed``: share of rows where both answers name the same place, so that the order decided;
    - ``first_preferred``: of all answers but ties, the share that names the first: ½ without bias.

    An empty prediction loses unasked against one that is not, and two of them are a tie; neither is
    in ``swayed`` or ``first_preferred``. Rows without a usable reference are only counted.
    """
    out.mkdir(parents=True, exist_ok=True)
    task = _Scoring(options.rubric) if other is None else _Comparing(options.rubric)
    rows = _single(path) if other is None else _paired(path, other)
    counts = Counter(dict.fromkeys(STATUSES, 0))
    sums, squares = Sums(), Sums()
    with (
        Judge(options, answers or out / "answers.jsonl") as judge,
        RowsFile(out / "rows.parquet", task.columns, task.texts) as rows_file,
    ):
        for batch in batches(rows, ROWS_AT_ONCE):
            task.judge(judge, [row for row in batch if row.status in (None, "empty_prediction")])
            for row in batch:
                counts[row.status] += 1
                sums.add(row.values)
                squares.add({name: value**2 for name, value in row.values.items()})
            rows_file.write(batch)
            if progress is not None:
                progress(len(batch))
    scores = task.scores(sums)
    report = {
        "scores": scores,
        "intervals": {name: _interval(name, sums, squares) for name in scores},
        "counts": {"rows": counts.total(), **counts},
        "usage": judge.costs(),
        "manifest": _manifest(options, [path] if other is None else [path, other]),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_whole(out / "report.json", text + "\n")
    write_whole(out / "report.md", _markdown(report))
    return report


@dataclass
class JudgedRow(PredictionRow):
    """A row, the prediction of the other file where two are compared, and what the judge said."""

    other: str = ""
    answer: str = ""
    swapped_answer: str = ""


def _single(path: Path) -> Iterator[JudgedRow]:
    for row in read_predictions(path, "captions"):
        yield JudgedRow(**vars(row))


def _paired(path: Path, other: Path) -> Iterator[JudgedRow]:
    """Yield the rows of two files; a fault of either keeps both from being judged."""
    for a, b in zip_longest(
        read_predictions(path, "captions"), read_predictions(other, "captions")
    ):
        if a is None or b is None:
            longer, number = (path, a.number) if b is None else (other, b.number)
            raise UsageError(f"{path} and {other} differ in length: only {longer} has row {number}")
        row = JudgedRow(**vars(a), other=b.prediction)
        faults = [each.status for each in (a, b) if each.status not in (None, "empty_prediction")]
        if faults:
            row.status = faults[0]
        elif a.reference != b.reference:
            raise UsageError(f"{path} and {other} differ in the reference of row {row.number}")
        else:
            row.status = a.status or b.status
        yield row


class _Scoring:
    """Every prediction by itself, by the criteria of a rubric."""

    texts = ("status", "prediction", "reference", "answer")

    def __init__(self, rubric: Rubric):
        self.rubric, self.columns = rubric, tuple(rubric.criteria)

    def judge(self, judge: Judge, rows: Sequence[JudgedRow]) -> None:
        asked = [row for row in rows if row.status is None]
        for row in rows:
            if row.status == "empty_prediction":
                row.values = dict.fromkeys(self.columns, float(self.rubric.lowest))
        questions = [
            self.rubric.messages(
                "score",
                molecule=_molecule(row),
                reference=row.reference,
                prediction=row.prediction,
            )
            for row in asked
        ]
        answers = judge.ask(questions, self.rubric.read_scores)
        for row, answer in zip(asked, answers, strict=True):
            row.status, row.answer = answer.status, answer.text
            row.values = {name: float(grade) for name, grade in (answer.value or {}).items()}

    def scores(self, sums: Sums) -> dict[str, float]:
        return _means(sums, self.columns)


class _Comparing:
    """Two predictions for one reference, in both orders."""

    texts = ("status", "prediction", "other", "reference", "answer", "swapped_answer")
    # Of answers that are no tie: how many there are, and how many name the first.
    columns = (*PAIR_SCORES, "decided", "first_named")

    def __init__(self, rubric: Rubric):
        self.rubric = rubric

    def judge(self, judge: Judge, rows: Sequence[JudgedRow]) -> None:
        asked = [row for row in rows if row.status is None]
        for row in rows:
            if row.status == "empty_prediction":
                said = [bool(text.strip()) for text in (row.prediction, row.other)]
                row.values = _outcome((1 + said[0] - said[1]) / 2)
        questions = [
            self.rubric.messages(
                "compare",
                molecule=_molecule(row),
                reference=row.reference,
                first=first,
                second=second,
            )
            for row in asked
            for first, second in ((row.prediction, row.other), (row.other, row.prediction))
        ]
        answers = iter(judge.ask(questions, read_better))
        for row, one, swapped in zip(asked, answers, answers, strict=False):
            row.answer, row.swapped_answer = one.text, swapped.text
            states = (one.status, swapped.status)
            row.status = next((s for s in ("failed", "unparsed") if s in states), "scored")
            if row.status == "scored":
                row.values = self._values(one.value, swapped.value)

    @staticmethod
    def _values(one: str, swapped: str) -> dict[str, float]:
        decided = [better for better in (one, swapped) if better != "tie"]
        return _outcome((POINTS[one] + 1 - POINTS[swapped]) / 2) | {
            "swayed": float(one == swapped != "tie"),
            "decided": float(len(decided)),
            "first_named": float(decided.count("first")),
        }

    def scores(self, sums: Sums) -> dict[str, float]:
        scores = _means(sums, PAIR_SCORES)
        if sums.totals.get("decided"):
            scores["first_preferred"] = sums.totals["first_named"] / sums.totals["decided"]
        return scores


def _outcome(points: float) -> dict[str, float]:
    return {
        "a_preferred": points,
        "a_wins": float(points > 0.5),
        "b_wins": float(points < 0.5),
        "ties": float(points == 0.5),
    }


def _molecule(row: JudgedRow) -> str:
    return row.molecule or "not given"


def _means(sums: Sums, names: Sequence[str]) -> dict[str, float]:
    return {name: mean for name in names if (mean := sums.mean(name)) is not None}


def _interval(name: str, sums: Sums, squares: Sums) -> list[float] | None:
    """Return mean ± 1.96 standard errors; None for fewer than two rows.

    ``first_preferred`` is a share of answers, two to a row: those are taken as independent.
    """
    if name == "first_preferred":
        count, mean = sums.totals["decided"], sums.totals["first_named"] / sums.totals["decided"]
        variance = mean * (1 - mean)
    else:
        count, mean = sums.counts[name], sums.mean(name)
        variance = max(0.0, squares.totals[name] / count - mean**2)
    if count < 2:
        return None
    error = 1.96 * math.sqrt(variance / (count - 1))
    return [mean - error, mean + error]


def _manifest(options: JudgeOptions, paths: Sequence[Path]) -> dict:
    rubric = options.rubric
    return {
        "predictions": [path.name for path in paths],
        "predictions_sha256": [file_sha256(path) for path in paths],
        "judge": options.url,
        "judge_model": options.model,
        "prompt": rubric.name,
        "prompt_sha256": rubric.sha256,
        "scale": [rubric.lowest, rubric.highest],
        "parameters": dict(rubric.parameters),
        "reasks": options.reasks,
        "prices_per_1k_tokens": options.prices,
        "versions": versions(),
    }


def _markdown(report: dict) -> str:
    def table(title: str, header: list[str], rows: Mapping[str, object]) -> list[str]:
        lines = [[name, str(value)] for name, value in rows.items()]
        return [f"## {title}", "", *markdown_table(header, lines), ""]

    scores = {}
    for name, value in report["scores"].items():
        interval = report["intervals"][name]
        ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        scores[name] = f"{value:.3f}{ends}"
    usage = {
        f"{what}, {when}": count
        for when, tokens in report["usage"].items()
        for what, count in tokens.items()
    }
    manifest = {name: value for name, value in report["manifest"].items() if value is not None}
    return "\n".join(
        [
            "# Captions judged by a language model",
            "",
            *table("Scores", ["score", "mean [95 %]"], scores),
            *table("Rows", ["rows", "count"], report["counts"]),
            *table("Tokens and cost", ["what", "how much"], usage),
            *table("How it was judged", ["what", "which"], manifest),
        ]
    )
