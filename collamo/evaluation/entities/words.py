"""The words of a caption, and what stands between them."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+")
# What may stand between the words of one phrase: "amino-acid", "1,4-benzoquinone", "(x) inhibitor".
_JOINT = re.compile(r"[ \-()\[\]]+|,(?=\d)")
#: Words that deny what follows them.
DENIALS = frozenset(("no", "not", "without", "lack", "lacking", "neither", "nor", "devoid"))
_DENIALS_WITH_OF = {"free", "absence", "instead"}  # with "of" after it
_CLAUSE_END = re.compile(r"[.;:](\s|$)")
_CLAUSE_WORDS = {"but", "rather", "however", "though", "although"}
_DENIAL_REACH = 5  # words

# Before a name, what only says how it is turned in space: "(2S)-", "beta-D-", "cis-".
_TURNED = re.compile(
    r"(?:[(\[]*(?:\d*[rsez](?:,\d*[rsez])*|(?:alpha-|beta-)?[dl]|dl|rac|cis|trans|\+|-|\+/-)"
    r"[)\]]*-)+(?=[\w(\[])"
)
_CHARGE = re.compile(r"\(\d*[+-]?$")  # of "citrate(3-)", its end being cut off


class Words:
    """The words of a folded text, with what stands between them."""

    def __init__(self, text: str):
        self.text = text
        self.spans = [match.span() for match in _WORD.finditer(text)]
        self.folded = [singular(text[start:end]) for start, end in self.spans]
        gaps = [
            text[end:start]
            for (_, end), (start, _) in zip(self.spans, self.spans[1:], strict=False)
        ]
        self._gaps = [*gaps, text[self.spans[-1][1] :] if self.spans else ""]
        follows = [
            bool(_JOINT.fullmatch(gap)) or (gap == "," and word[0].isdigit())
            for gap, word in zip(gaps, self.folded[1:], strict=True)
        ]
        self.joined = [*follows, False]

    def __len__(self) -> int:
        return len(self.folded)

    def chunk_end(self, start: int) -> int | None:
        """Return where the run of words without a blank ends that begins at `start`, else None."""
        if start and not re.search(r"\s", self._gaps[start - 1]):
            return None
        end = start + 1
        while end < len(self) and not re.search(r"[\s/;:]", self._gaps[end - 1]):
            end += 1
        return end

    def name(self, start: int, end: int) -> str:
        """Return a chemical name as an entity: as written, but singular and not turned."""
        first = self.spans[start][0]
        while first and self.text[first - 1] in "([":
            first -= 1
        last = self.spans[end - 1][0]
        name = self.text[first:last] + self.folded[end - 1]
        turned = _TURNED.match(name)
        name = _CHARGE.sub("", name[turned.end() :] if turned else name)
        return name if name.count("(") == name.count(")") else name.strip("()")

    def in_number(self, index: int) -> bool:
        """Return whether a word is part of a number with points: the 7 of "EC 3.1.1.7"."""
        return self.folded[index].isdigit() and index > 0 and self._gaps[index - 1] == "."

    def denied(self, start: int, end: int) -> bool:
        """Return whether the caption denies what the words from `start` to `end` name."""
        for before in range(start - 1, max(-1, start - 1 - _DENIAL_REACH), -1):
            if _CLAUSE_END.match(self._gaps[before].lstrip(")]")):
                break
            word = self.folded[before]
            if word in _CLAUSE_WORDS:
                break
            if word in DENIALS or (word in _DENIALS_WITH_OF and self.folded[before + 1] == "of"):
                return True
        return self.folded[end : end + 2] in (["is", "absent"], ["are", "absent"])


def singular(word: str) -> str:
    """Return an English word without the ending of a plural.

    >>> [singular(word) for word in ("ketones", "bases", "moieties", "ester", "analysis", "glass")]
    ['ketone', 'base', 'moiety', 'ester', 'analysis', 'glass']
    """
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return word[:-3] + "y" if word.endswith("ies") and word != "species" else word[:-1]
