"""What stands in a column for nothing."""

from __future__ import annotations

import json

# Those that pandas knows, and what people write by hand.
_MARKS = {"#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "-nan", "1.#ind", "1.#qnan", "<na>"}
_MARKS |= {"n/a", "n.a.", "na", "nan", "nat", "nil", "none", "null", "n.d.", "nd", "missing"}
_MARKS |= {"not available", "not determined", "-", "--", "---", "–", "—", "?", ".", "..", "..."}


def is_missing(text: str) -> bool:
    """Return whether a text says that there is no value; a JSON object or list is none either.

    >>> is_missing(" NaN "), is_missing('{"text": "x"}'), is_missing("An alcohol.")
    (True, True, False)
    """
    stripped = text.strip()
    return not stripped or stripped.lower() in _MARKS or _is_json(stripped)


def _is_json(text: str) -> bool:
    if text[0] + text[-1] not in ("{}", "[]"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
