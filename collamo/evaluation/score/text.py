"""An answer as text: the number in it, and whether it matches the truth."""

from __future__ import annotations

import math
import re

# A sign counts only where no letter, digit or bracket stands before it: "2-methyl" holds a 2,
# "-1.5" a minus. Every dash a model may write for a minus: hyphen, true minus, en dash, small and
# full-width hyphen.
_DASH = "−–﹣－-"  # the ASCII hyphen last, where a character class reads it as itself
_NUMBER = re.compile(
    rf"""
    (?<![\w.,)\]])             # not inside a word, a formula (C6H6) or another number
    (?P<sign>[+{_DASH}]?)
    (?P<digits>(?>\d{{1,3}}(?:,\d{{3}})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+))
    (?:[eE](?P<exponent>[+{_DASH}]?\d+)
      |\s*[×x*·]\s*10\s*\^?\s*(?P<power>[+{_DASH}]?\d+))?
    (?![dD]\b)                 # "3D" and "2D" are not numbers
    """,
    re.VERBOSE,
)
_NAMES = "zero one two three four five six seven eight nine ten eleven twelve"
_WORDS = {word: float(value) for value, word in enumerate(_NAMES.split())}
_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)


def parse_number(text: str) -> float | None:
    """Return the first number in `text`, or None where there is none (or it overflows).

    Signs (also the Unicode minus), decimals, thousands separators (``1,234.5``), exponents
    (``1e-3``, ``1.2 × 10^-3``) and, where no digit gives a number, the words zero to twelve.
    Digits that belong to a word (``C6H6``, ``3D``) are not numbers.

    >>> parse_number("about −1.5 Å"), parse_number("C6H6"), parse_number("It has three rings.")
    (-1.5, None, 3.0)
    """
    match = _NUMBER.search(text)
    if match is None:
        word = _WORD.search(text)
        return _WORDS[word.group().lower()] if word else None
    exponent = _ascii_sign(match["exponent"] or match["power"] or "0")
    digits = match["digits"].replace(",", "")
    value = float(f"{_ascii_sign(match['sign'])}{digits}e{exponent}")
    return value if math.isfinite(value) else None


def number_span(text: str) -> tuple[int, int] | None:
    """Return where the digits that `parse_number` reads stand, None where it reads none.

    >>> number_span("about 1.5 eV")
    (6, 9)
    """
    match = _NUMBER.search(text)
    return match.span() if match else None


def _ascii_sign(text: str) -> str:
    return re.sub(f"[{_DASH}]", "-", text)


def normalise(text: str) -> str:
    """Return `text` with every run of white space as one blank and none at the ends; case is kept
    (SMILES)."""
    return " ".join(text.split())


def exact_match(answer: str, truth: str, numeric: bool) -> bool:
    """Return whether `answer` says the same as `truth`.

    Numeric questions compare the first number of each (``3 rings`` equals ``3``; ``3.10`` equals
    ``3.1``), all others the text with white space normalised.
    """
    if numeric:
        number = parse_number(answer)
        return number is not None and number == parse_number(truth)
    return normalise(answer) == normalise(truth)
