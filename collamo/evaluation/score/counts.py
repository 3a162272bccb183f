"""The count in an answer to "How many …?": a number, "a single ring", "no rings", "none"."""

from __future__ import annotations

import re

from collamo.data.numbers import WrittenNumber, number_in_digits, number_in_words
from collamo.evaluation.entities.extractor import fold
from collamo.evaluation.entities.lexicon import load_lexicon
from collamo.evaluation.entities.words import Words

_SINGLE = re.compile(
    r"\b(?:an?|only|just|one|the|exactly one)\s+single\b(?!-)(?!\s+bonds?\b)", re.IGNORECASE
)
_NEGATION = r"(?:not|n['’]t|cannot)"
_VERB = "(?:contain|have|possess|include|bear|carry|feature|show)"
# What stands before the thing that is denied.
_DENIAL = re.compile(
    rf"""
    (?:
      \bno
      |{_NEGATION}(?:\s+\w+){{0,2}}?\s+(?:any|a\s+single)
      |\b(?:does|do|did)(?:\s+not|n['’]t)\s+{_VERB}(?:\s+(?:an?|the|this|these|such))?
      |\b(?:is|are)(?:\s+not|n['’]t)(?:\s+an?)?
      |\b(?:without|lacks?|lacking|devoid\s+of|free\s+of)(?:\s+(?:any|an?|a\s+single))?
    )\s+(?=(?P<thing>[\w\s\-,'()]{{1,100}}))
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Most answers deny nothing, which is seen sooner.
_DENIES = re.compile(r"no|n['’]t|without|lack|devoid|free", re.IGNORECASE)
_NOTHING = re.compile(
    rf"""
    \A\s*(?:no|nil|nothing)\s*[.!]?\s*\Z                     # the whole answer
    |\bnone\b(?!\s+(?:the\s+less|other|too|of\s+the\s+above))
    |{_NEGATION}(?:\s+\w+){{0,2}}?\s+any\s*(?:[.!;,]|\Z)     # "There are not any."
    |\bnot\s+(?:a\s+single\s+)?one\s*(?:[.!]|\Z)            # "Not a single one."
    """,
    re.VERBOSE | re.IGNORECASE,
)
# References and missing values are written by programs: a bare None there is no count.
_MISSING = frozenset(("none", "no", "nil", "nothing"))

# What is counted beside what the lexicon of entities knows.
_COUNTED = (
    "ring cycle group atom heteroatom bond donor acceptor centre center stereocentre stereocenter "
    "chain charge substituent moiety unit motif fragment scaffold linkage"
)
# A denial names its thing in a few words; these end it …
_ENDS = (
    "the this its your of for about on in that which who what how many whether to from as is are "
    "was were be and or but if than can because since here there present at"
)
# … and these show that it denies something else.
_ELSE = (
    "more less fewer further longer other additional extra one idea clue doubt answer information "
    "data evidence knowledge way need reason matter result"
)
_COUNTED_WORDS, _END_WORDS, _ELSE_WORDS = (
    frozenset(words.split()) for words in (_COUNTED, _ENDS, _ELSE)
)
_THING_WORDS = 5


def find_count(text: str) -> WrittenNumber | None:
    """Return the count that an answer says, None where it says none.

    The first number in digits; without one the first of a number in words, "a single …" (1) and a
    denial (0): *none*, *no rings*, *without any ring*, *does not have rings*. What is denied must
    be a thing that molecules have: "no idea" and "No. of rings: three" deny nothing.

    >>> [find_count(text).value for text in ("none", "It has no rings.", "a single ring", "2")]
    [0.0, 0.0, 1.0, 2.0]
    >>> find_count("no idea"), find_count("a benzene ring")
    (None, None)
    """
    return number_in_digits(text) or min(
        filter(None, (_denial(text), _single(text), number_in_words(text))),
        key=lambda number: number.start,
        default=None,
    )


def find_reference_count(text: str) -> WrittenNumber | None:
    """Return the count of a reference: as `find_count`, but a bare "None" is a missing value."""
    return None if text.strip().lower() in _MISSING else find_count(text)


def _single(text: str) -> WrittenNumber | None:
    match = _SINGLE.search(text)
    return WrittenNumber(1.0, *match.span()) if match else None


def _denial(text: str) -> WrittenNumber | None:
    if not _DENIES.search(text):
        return None
    things = (match for match in _DENIAL.finditer(text) if _is_counted(match["thing"]))
    matches = filter(None, (next(things, None), _NOTHING.search(text)))
    spans = [match.span() for match in matches]
    return WrittenNumber(0.0, *min(spans)) if spans else None


def _is_counted(text: str) -> bool:
    """Return whether a text begins with the name of something that molecules have."""
    thing: list[str] = []
    for word in re.split(r"[\s,]+", fold(text).strip())[:_THING_WORDS]:
        if word in _END_WORDS:
            break
        thing.append(word)
    words, lexicon = Words(" ".join(thing)), load_lexicon()
    if not words or not _ELSE_WORDS.isdisjoint(words.folded):
        return False
    return any(
        word in _COUNTED_WORDS
        or lexicon.parts(word)
        or lexicon.phrase(words, place)
        or lexicon.name_end(words, place)
        for place, word in enumerate(words.folded)
    )
