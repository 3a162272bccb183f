"""The lexicon of the offline extractor (offline.tsv), and its rule for chemical names."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from collamo.evaluation.entities.extractor import fold
from collamo.evaluation.entities.words import DENIALS, Words

LEXICON = "offline.tsv"
_MULTIPLIER = re.compile("mono|di|tri|tetra|penta|hexa|hepta|octa|nona|deca|bis|tris|per")

_BEFORE_ROLES = 3  # words

# Endings of chemical names; the lexicon has the English words of five letters and more with one.
_ENDING = re.compile(
    "(?:ane|ene|yne|ol|one|ose|ine|in|ide|ate|oside|oyl|yl|azole|onium|idinium|olium)$"
)
_SHORTEST_NAME = 5  # letters


class Entry(NamedTuple):
    """A line of the lexicon; `smarts` "motif" stands for the pattern of `collamo.chem.motifs`."""

    kind: str
    entity: str
    smarts: str

    @property
    def entities(self) -> tuple[str, ...]:
        """Return what a mention of it names: "gold standard" names nothing."""
        return () if self.kind == "nothing" else (self.entity,)


class Lexicon:
    """The lexicon by phrases and by parts of words, and the rule for chemical names."""

    def __init__(self):
        content = (resources.files("collamo.evaluation.entities") / LEXICON).read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.entries: dict[str, Entry] = {}
        self._phrases: dict[tuple[str, ...], Entry] = {}
        self._longest: dict[str, int] = {}  # words of the longest phrase that begins with a word
        lines = (line for line in content.decode("utf-8").splitlines() if line[0] != "#")
        lists: dict[str, frozenset[str]] = {}
        for record in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if record["kind"] == "words":
                lists[record["entity"]] = frozenset(record["also"].split("|"))
                continue
            entry = Entry(record["kind"], record["entity"], record["smarts"])
            self.entries[entry.entity] = entry
            for name in (entry.entity, *filter(None, record["also"].split("|"))):
                phrase = tuple(Words(fold(name)).folded)
                self._phrases[phrase] = entry
                self._longest[phrase[0]] = max(self._longest.get(phrase[0], 0), len(phrase))
        self._english = lists["english"]
        self._heads, self._alone = lists["head"], lists["head alone"]
        self._untelling = lists["untelling"] | DENIALS
        self._prefixes = sorted(
            (
                words[0]
                for words, entry in self._phrases.items()
                if len(words) == 1 and entry.kind in ("group", "element")
            ),
            key=len,
            reverse=True,
        )
        # The words of captions come back thousands of times.
        self.parts = lru_cache(maxsize=65536)(self._parts)

    def phrase(self, words: Words, start: int) -> tuple[int, tuple[str, ...]] | None:
        """Return (word after the last, entities) of the longest phrase at `start`."""
        phrase, end = None, start
        longest = start + self._longest.get(words.folded[start], 0)
        while end < min(longest, len(words)):
            end += 1
            entry = self._phrases.get(tuple(words.folded[start:end]))
            if entry:
                phrase = end, entry.entities
            if not words.joined[end - 1]:
                break
        return phrase

    def roles(self, words: Words) -> Iterator[tuple[int, int]]:
        """Yield (first word, word after the last) of every role with a head word."""
        for head, word in enumerate(words.folded):
            if word in self._heads:
                start = head
                while head - start < _BEFORE_ROLES and self._tells(words, start - 1):
                    start -= 1
                if start < head or word in self._alone:
                    yield start, head + 1

    def _tells(self, words: Words, index: int) -> bool:
        """Return whether a word belongs to the role that the next one begins."""
        return (
            index >= 0
            and words.joined[index]
            and words.folded[index] not in self._untelling
            and not words.in_number(index)
        )

    def name_end(self, words: Words, start: int) -> int | None:
        """Return the end of the chemical name at `start` that the lexicon does not explain."""
        end = words.chunk_end(start)
        if end is None:
            return None
        acid = (
            words.joined[end - 1]
            and words.folded[end - 1].endswith("ic")
            and words.folded[end] == "acid"
        )
        chemical = acid or any(self._unknown_name(word) for word in words.folded[start:end])
        return end + acid if chemical else None

    def _unknown_name(self, word: str) -> bool:
        return (
            len(word) >= _SHORTEST_NAME
            and bool(_ENDING.search(word))
            and word not in self._english
            and self.parts(word) is None
        )

    def _parts(self, word: str) -> tuple[str, ...] | None:
        """Return the entities of a word that is made of known parts, None where it is not."""
        entry = self._phrases.get((word,))
        if entry:
            return entry.entities
        multiplier = _MULTIPLIER.match(word)
        rest = word[multiplier.end() :] if multiplier else ""
        if rest in self._prefixes:  # "dimethyl"
            return self._phrases[rest,].entities
        return (rest and self._with_prefix(rest)) or self._with_prefix(word)

    def _with_prefix(self, word: str) -> tuple[str, ...] | None:
        for prefix in self._prefixes:
            if word.startswith(prefix) and len(word) > len(prefix):
                rest = self.parts(word[len(prefix) :])
                if rest:
                    return (*self._phrases[prefix,].entities, *rest)
        return None


# Read when first needed.
load_lexicon = lru_cache(maxsize=1)(Lexicon)
