"""The number in an answer, as people write numbers: in digits or in words."""

from __future__ import annotations

import math
import re
from typing import NamedTuple


class WrittenNumber(NamedTuple):
    """A number and where it stands in its text; `value` is None where it can be read in two ways.

    `end` is where a unit may follow.
    """

    value: float | None
    start: int
    end: int


# Every dash a model may write for a minus: hyphen, true minus, en dash, small and full-width
# hyphen, and the superscript.
_DASH = "−–﹣－⁻-"  # the ASCII hyphen last, where a character class reads it as itself
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_PLAIN = str.maketrans(_DASH + "⁺" + _SUPERSCRIPTS, "-" * len(_DASH) + "+0123456789")
# What separates thousands: a comma, no-break and thin blanks, an apostrophe. An ordinary blank
# separates two numbers as often.
_SEPARATORS = ",\u00a0\u2007\u2009\u202f'’"
_POWER = rf"""10(?:\s*(?:\^|\*\*)\s*[({{]?(?P<%s>[+{_DASH}]?\d+)[)}}]?
                  |(?P<%s>[⁺⁻]?[{_SUPERSCRIPTS}]+))"""
# A sign counts only where no letter, digit or bracket stands before it: "2-methyl" holds a 2,
# "-1.5" a minus.
_NUMBER = re.compile(
    rf"""
    (?<![\w.,)\]])             # not inside a word, a formula (C6H6) or another number
    (?P<sign>[+{_DASH}]?)
    (?!\d+(?:,\d+)+'?-\s?[A-Za-z(])  # the places in a name: 1,4-dioxane
    (?:
      (?P<bare>{_POWER % ("bare_caret", "bare_raised")})
      |(?P<digits>(?>
        [1-9]\d{{0,2}}(?P<separator>[{_SEPARATORS}])\d{{3}}(?:(?P=separator)\d{{3}})*(?!\d)(?:\.\d+)?
        |\d+(?:\.\d*)?|\.\d+))
      (?:[eE](?P<exponent>[+{_DASH}]?\d+)
        |\s*[×x*·]\s*(?:{_POWER % ("caret", "raised")}|10(?P<signed>[+{_DASH}]\d+)))?
    )
    """,
    re.VERBOSE,
)
_EXPONENTS = ("exponent", "caret", "raised", "signed", "bare_caret", "bare_raised")
_DIGIT_SIGN = re.compile(r"\d")
# "3D" and "2D" are not numbers, nor is the size of a ring; "2nd" counts nothing.
_WORD_OF_DIGITS = re.compile(
    rf"-?[dD]\b|st\b|nd\b|rd\b|th\b|[{_DASH}]?\s?(?:membered|dimensional)\b", re.IGNORECASE
)
# What makes it two numbers or one in another notation: a decimal comma ("0,25"), groups that are
# no thousands ("12 345", "1.234,5"), a power of another number, a product ("1.2 × 105").
_AMBIGUOUS = re.compile(r"[.,'’]\d|\s?\^|\s*[×x*]\s*\d")
_FURTHER_GROUP = re.compile(r"[ ]\d{3}(?!\d)")
_FRACTION = re.compile(r"\s?/\s?(\d{1,15})(?![\d/]|[.,]\d)")

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate(_ONES.split())}
_WORDS |= {word: 10 * value for value, word in enumerate(_TENS.split(), 2)}
_WORDS |= {"hundred": 100, "thousand": 1000}
_DIGIT = "|".join(_ONES.split()[:10])
_TWO_FIGURES = (
    rf"(?:(?:{_TENS.replace(' ', '|')})(?:[-\s]+(?!zero)(?:{_DIGIT})\b)?"
    rf"|(?:{_ONES.replace(' ', '|')}))\b"
)
_THREE_FIGURES = rf"{_TWO_FIGURES}(?:\s+hundred\b(?:(?:\s+and)?\s+{_TWO_FIGURES})?)?"
_NUMBER_WORDS = re.compile(
    rf"""
    (?<![\w-])(?<!no\s)(?<!any\s)           # "no one" is nobody
    (?:(?P<minus>minus|negative)\s+)?
    (?P<whole>{_THREE_FIGURES}(?:\s+thousand\b(?:(?:\s+and)?\s+{_THREE_FIGURES})?)?)
    (?:\s+point(?P<decimals>(?:\s+(?:{_DIGIT})\b)+))?
    (?P<half>\s+and\s+a\s+half\b)?
    (?!-[A-Za-z])                           # "a six-membered ring"
    (?!(?<=one)\s+(?:can|cannot|could|may|might|must|should|would|has\s+to|needs\s+to)\b)
    """,
    re.VERBOSE | re.IGNORECASE,
)


def parse_number(text: str) -> float | None:
    """Return the first number in `text`, or None where there is none (or it overflows).

    Signs (also the Unicode minus), decimals, thousands separators (``1,234.5``), exponents
    (``1e-3``, ``1.2 × 10^-3``, ``10⁻³``), fractions of two whole numbers (``1/3``) and, where no
    digit gives a number, words: ``zero``, ``twenty-one``, ``one point five``, ``two and a half``.
    The first number counts whatever is said of it: "not 3 but 4" is 3. None also where the first
    number can be read in two ways: ``0,25``. Digits that belong to a word (``C6H6``, ``3D``,
    ``2nd``, ``6-membered``) are not numbers.

    >>> parse_number("about −1.5 Å"), parse_number("C6H6"), parse_number("It has three rings.")
    (-1.5, None, 3.0)
    """
    number = find_number(text)
    return number.value if number else None


def find_number(text: str) -> WrittenNumber | None:
    """Return the number that counts, None where there is none; see `parse_number`.

    >>> find_number("about 1.5 eV"), find_number("0,25")
    (WrittenNumber(value=1.5, start=6, end=9), WrittenNumber(value=None, start=0, end=1))
    """
    return number_in_digits(text) or number_in_words(text)


def number_in_digits(text: str) -> WrittenNumber | None:
    """Return the first number in digits; one that overflows is none."""
    first = _DIGIT_SIGN.search(text)
    if first is None:
        return None
    for match in _NUMBER.finditer(text, max(0, first.start() - 2)):  # with a sign and a point
        start, end = match.span()
        whole = (match["digits"] or "").isdigit() and not match["exponent"]
        if whole and _WORD_OF_DIGITS.match(text, end):
            continue
        grouped = whole and end - start <= 3 and _FURTHER_GROUP.match(text, end)
        if grouped or _AMBIGUOUS.match(text, end):
            return WrittenNumber(None, start, end)
        value = _value(match)
        fraction = _FRACTION.match(text, end) if whole else None
        if fraction and int(fraction[1]):
            value, end = value / int(fraction[1]), fraction.end()
        return WrittenNumber(value, start, end) if math.isfinite(value) else None
    return None


def _value(match: re.Match[str]) -> float:
    try:
        return float(match[0])  # most are written as Python writes them
    except ValueError:
        pass
    sign = match["sign"].translate(_PLAIN)
    digits = re.sub(f"[{_SEPARATORS}]", "", match["digits"] or "1")  # a bare power is 1 × 10ⁿ
    exponent = next((match[name] for name in _EXPONENTS if match[name]), "0").translate(_PLAIN)
    return float(f"{sign}{digits}e{exponent}")


def number_in_words(text: str) -> WrittenNumber | None:
    """Return the first number in words.

    >>> number_in_words("minus twenty-one point five").value
    -21.5
    """
    match = _NUMBER_WORDS.search(text)
    if match is None:
        return None
    total = part = 0
    for word in re.split(r"[-\s]+", match["whole"].lower()):
        value = _WORDS.get(word, 0)  # "and" adds nothing
        if value == 1000:
            total, part = total + part * value, 0
        else:
            part = part * value if value == 100 else part + value
    decimals = "".join(str(_WORDS[word]) for word in (match["decimals"] or "").lower().split())
    number = float(f"{total + part}.{decimals or 0}") + (0.5 if match["half"] else 0)
    return WrittenNumber(-number if match["minus"] else number, *match.span())
