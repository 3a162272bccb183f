"""A measured value as people write it into a cell: number, unit, qualifier."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from collamo.data.conversions import conversion
from collamo.data.missing_values import is_missing
from collamo.data.numbers import WrittenNumber, number_in_digits
from collamo.data.units import UNKNOWN, find_unit, unit_of

#: Reasons why a cell is not read. A range and a number that can be read in two ways are no value.
UNREAD = ("blank", "missing", "ambiguous", "range", "infinite", "no number", "other text")

_SIGNS = {"<": "<", "<<": "<", "<=": "≤", "=<": "≤", "≤": "≤", "≦": "≤", "⩽": "≤"}
_SIGNS |= {">": ">", ">>": ">", ">=": "≥", "=>": "≥", "≥": "≥", "≧": "≥", "⩾": "≥", "=": ""}
_QUALIFIER = re.compile(
    r"\s*(?P<sign>[<>=]{1,2}|[≤≦⩽≥≧⩾])?(?P<about>[~≈∼≃≅]|(?:ca|circa|approx|about|c)\b\.?)?\s*",
    re.IGNORECASE,
)
_ERROR = re.compile(r"\s*(?:±|\+\s?/\s?[-−–]|\+[-−–])\s*")
_RANGE = re.compile(r"\s*(?:[-−–—]|\.{2,3}|…|to\b)\s*[\d.]", re.IGNORECASE)


@dataclass(frozen=True)
class MeasuredValue:
    """A number, with its unit as written (None where there is none) and its qualifier.

    The qualifier is "", "~", or a bound: "<", "≤", ">", "≥". An error (``±``) is left out.
    """

    number: float
    unit: str | None = None
    qualifier: str = ""

    @property
    def kind(self) -> str:
        """Return by what values are counted: "exact", "approximate" or "bound"."""
        return {"": "exact", "~": "approximate"}.get(self.qualifier, "bound")


class UnreadValue(ValueError):
    """A cell that is not read; `reason` is one of `UNREAD`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def read_measured(text: str, decimal_comma: bool = False) -> MeasuredValue:
    """Read a cell; where the column has a `decimal_comma` elsewhere, "1,234" is ambiguous.

    Raises
    ------
    UnreadValue
        For anything but one number, with its unit and qualifier.

    Examples
    --------
    >>> read_measured(">5.3 nM"), read_measured("3.2±0.1").number
    (MeasuredValue(number=5.3, unit='nM', qualifier='>'), 3.2)
    """
    if not text.strip():
        raise UnreadValue("blank")
    if is_missing(text):
        raise UnreadValue("missing")
    if decimal_comma and _THOUSANDS_OR_DECIMALS.search(text):
        raise UnreadValue("ambiguous")
    try:
        number = float(text)
    except ValueError:
        return _read_cell(text.strip())
    if not math.isfinite(number):
        raise UnreadValue("infinite")
    return MeasuredValue(number)


def in_unit(value: MeasuredValue, unit: str | None) -> MeasuredValue:
    """Return the value in this unit, or as it is where its own does not convert to it.

    >>> in_unit(read_measured("5.3 µM"), "nM")
    MeasuredValue(number=5300.0, unit='nM', qualifier='')
    >>> in_unit(read_measured(">5 mg/L"), "nM")
    MeasuredValue(number=5.0, unit='mg/L', qualifier='>')
    """
    written, expected = unit_of(value.unit), unit_of(unit)
    change = conversion(written, expected) if written and expected else None
    number = math.nan if change is None else change(value.number)
    return replace(value, number=number, unit=unit) if math.isfinite(number) else value


def has_decimal_comma(text: str) -> bool:
    """Return whether a comma in a cell can only be a decimal one, as in "0,25" and "1,5 nM".

    >>> has_decimal_comma("0,25"), has_decimal_comma("1,234")
    (True, False)
    """
    return bool(_DECIMAL_COMMA.search(text))


_THOUSANDS_OR_DECIMALS = re.compile(r"(?<![\d.,])\d{1,3},\d{3}(?!\d|[.,]\d)")
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(?:\d+,(?:\d{1,2}|\d{4,})|0\d*,\d+)(?![\d,])")


def _read_cell(text: str) -> MeasuredValue:
    qualifier = _QUALIFIER.match(text)
    assert qualifier is not None  # it matches nothing, too
    sign = qualifier["sign"] or ""
    if sign not in _SIGNS and sign:
        raise UnreadValue("no number")
    # Its own text: a number inside a word, such as the 60 of "C60", has something before it.
    body = text[qualifier.end() :]
    number = _number_at_start(body)
    unit, end = _unit(body, number.end)
    error = _ERROR.match(body, end)
    if error:
        width = _number_at_start(body[error.end() :])
        second, end = _unit(body, error.end() + width.end)
        unit = second or unit
    if _RANGE.match(body, end):
        raise UnreadValue("range")
    if body[end:].strip():
        raise UnreadValue("other text")
    assert number.value is not None  # such a number was refused
    about = "~" if qualifier["about"] else ""
    return MeasuredValue(number.value, unit, _SIGNS[sign] if sign else about)


def _number_at_start(text: str) -> WrittenNumber:
    number = number_in_digits(text)
    if number is None or number.start:
        raise UnreadValue("infinite" if number is None and _OVERFLOW.match(text) else "no number")
    if number.value is None or "/" in text[: number.end]:
        raise UnreadValue("ambiguous")
    return number


_OVERFLOW = re.compile(r"[+−–-]?\d[\d.]*[eE]\d{3}")


def _unit(text: str, start: int) -> tuple[str | None, int]:
    """Return (unit as written, where it ends)."""
    unit = find_unit(text, start)
    if unit is None or unit.name == UNKNOWN:
        return None, start
    written = text[start : unit.end].strip()
    return (written[1:].strip(), unit.end + 1) if written[0] in "([" else (written, unit.end)
