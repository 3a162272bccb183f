from dataclasses import field
from typing import Annotated, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from collamo.errors import UsageError
from collamo.schema import CONFIG, Number, Whole, checked, read_yaml


@dataclass(frozen=True, config=CONFIG)
class Inner:
    rank: Whole = 8
    names: tuple[str, ...] = ()


@dataclass(frozen=True, config=CONFIG)
class Outer:
    kind: Literal["align", "tune"]
    data: str
    rate: Number | None = None
    fast: bool = False
    inner: Inner = field(default_factory=Inner)
    pair: Annotated[tuple[str, ...], Field(min_length=2, max_length=2)] = ("a", "b")


VALID = {"kind": "align", "data": "d"}


def test_values_come_out_with_the_types_of_the_dataclass():
    values = {**VALID, "rate": "1e-4", "fast": "true", "inner": {"rank": 4.0, "names": ["x"]}}
    assert checked(Outer, values, "file") == Outer("align", "d", 1e-4, True, Inner(4, ("x",)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kidn": "align"}, "file: unknown key 'kidn' (did you mean 'kind'?)"),  # and `kind` misses
        ({"inner": {"rnak": 1}}, "file: inner: unknown key 'rnak' (did you mean 'rank'?)"),
        ({}, "file: missing key 'kind', 'data'"),
        (3, "file: expected `key: value` lines, got 3"),
        ({**VALID, "inner": 3}, "file: inner: expected `key: value` lines, got 3"),
        ({**VALID, "inner": {"rank": 1.5}}, "file: inner: rank: expected a whole number, got 1.5"),
        (
            {**VALID, "inner": {"rank": True}},
            "file: inner: rank: expected a whole number, got True",
        ),
        ({**VALID, "rate": True}, "file: rate: expected a number, got True"),
        ({**VALID, "fast": "maybe"}, "file: fast: expected true or false, got 'maybe'"),
        ({**VALID, "data": 3}, "file: data: expected text, got 3"),
        ({**VALID, 3: 4}, "file: unknown key 3"),
        ({**VALID, "inner": {"names": "x"}}, "file: inner: names: expected a list, got 'x'"),
        ({**VALID, "inner": {"names": ["x", 3]}}, "inner: names: 1: expected text, got 3"),
        ({**VALID, "pair": ["x"]}, "file: pair: expected a list of 2, got ['x']"),
        ({**VALID, "kind": "tnue"}, "kind: 'tnue' is none of align, tune (did you mean 'tune'?)"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_the_way_out(values, message):
    with pytest.raises(UsageError) as caught:
        checked(Outer, values, "file")
    assert str(caught.value).endswith(message)


def test_a_file_is_called_by_its_kind(tmp_path):
    path = tmp_path / "rubric.yaml"
    with pytest.raises(UsageError, match=f"rubric {path} does not exist"):
        read_yaml(path, "rubric")
    path.write_text("a:\n\tb: 1")
    with pytest.raises(UsageError, match=r"is not YAML: .*; indent with spaces, not tabs"):
        read_yaml(path, "rubric")
    path.write_text("a: 1")
    assert read_yaml(path, "rubric") == {"a": 1}
