"""An answer as text: whether it matches the truth."""

from __future__ import annotations

from collamo.data.numbers import parse_number


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
