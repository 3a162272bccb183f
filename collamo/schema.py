"""YAML that people write, checked by pydantic: every key known, every value of its type.

A file is described by a pydantic dataclass with `CONFIG`. What is wrong with it is said in one
line, a `UsageError`: the place, what was expected there, and the key that was probably meant.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError

from collamo.errors import UsageError, suggest

logger = logging.getLogger(__name__)

#: Of a dataclass that describes a file: pydantic's default ignores a key it does not know.
CONFIG = ConfigDict(extra="forbid")

T = TypeVar("T")


def _except_truth_values(kind: Literal["int_type", "float_type"]) -> BeforeValidator:
    def refuse(value: object) -> object:
        if isinstance(value, bool):
            raise PydanticKnownError(kind)
        return value

    return BeforeValidator(refuse)


#: Numbers as pydantic takes them, except that true is not 1. ``1e-4`` is a number, though YAML 1.1
#: calls it text.
Whole = Annotated[int, _except_truth_values("int_type")]
Number = Annotated[float, _except_truth_values("float_type")]

# pydantic's kind of error → what would have been right.
_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "path_type"), "text"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "dataclass_type"), "`key: value` lines"),
}


#: Where the recipes that come with the package lie: in a wheel inside it, in a clone beside it.
_SHIPPED = (Path(__file__).parent, Path(__file__).parents[1])


def shipped(path: Path) -> Path:
    """Return the file ``configs/…`` that came with the package where there is none of that name in
    the working directory, else `path`."""
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    return next((home / path for home in _SHIPPED if (home / path).is_file()), path)


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """Return the `key: value` lines of a file, a `shipped` one too; a UsageError calls it a `kind`,
    such as recipe."""
    found = shipped(path)
    if found != path:
        logger.info("%s is not in this folder; reading the one of the package, %s", path, found)
    path = found
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UsageError(f"{kind} {path} does not exist{suggest(str(path), siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{kind} {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        advice = "; indent with spaces, not tabs" if "'\\t'" in str(error) else ""
        reason = " ".join(str(error).split())
        raise UsageError(f"{kind} {path} is not YAML: {reason}{advice}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{kind} {path} holds no `key: value` lines")
    return values


def checked(schema: type[T], values: object, place: str) -> T:
    """Return `values` as a `schema`, a dataclass or any other type pydantic knows.

    Raises
    ------
    UsageError
        For an unknown key at any depth, a missing one or a wrong value; `place` is named first.

    Examples
    --------
    >>> checked(dict[str, Whole], {"rank": 8.0}, "lora")
    {'rank': 8}
    >>> checked(dict[str, Whole], {"rank": "many"}, "lora")
    Traceback (most recent call last):
    collamo.errors.UsageError: lora: rank: expected a whole number, got 'many'
    """
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise UsageError(_first_problem(schema, error.errors(include_url=False), place)) from None


def _first_problem(schema: type, problems: Sequence[ErrorDetails], place: str) -> str:
    """Return one line. A misspelt key comes first: it also makes the right one missing."""
    for problem in problems:
        if problem["type"] in ("unexpected_keyword_argument", "invalid_key"):
            *path, key = problem["loc"]
            suggestion = suggest(str(key), _keys(schema, path))
            return f"{_joined(place, path)}: unknown key {key!r}{suggestion}"
    first = problems[0]
    if first["type"] == "missing":
        *path, _ = first["loc"]
        missing = [p["loc"] for p in problems if p["type"] == "missing"]
        keys = [repr(key) for *parents, key in missing if parents == path]
        return f"{_joined(place, path)}: missing key {', '.join(keys)}"
    return f"{_joined(place, first['loc'])}: {_wrong_value(first)}"


def _wrong_value(problem: ErrorDetails) -> str:
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"{value!r} is none of {', '.join(choices)}{suggest(str(value), choices)}"
    if kind in ("too_short", "too_long"):
        length = context.get("min_length", context.get("max_length"))
        return f"expected a list of {length}, got {value!r}"
    return f"expected {_EXPECTED[kind]}, got {value!r}" if kind in _EXPECTED else problem["msg"]


def _joined(place: str, path: Sequence[str | int]) -> str:
    return ": ".join([place, *(str(key) for key in path if key != "[key]")])


def _keys(schema: type, path: Sequence[str | int]) -> list[str]:
    """Return the keys of the dataclass at `path` inside a dataclass."""
    for key in path:
        schema = get_type_hints(schema)[str(key)]
    return [field.name for field in dataclasses.fields(schema)]
