"""Entities without any service: a lexicon, a rule for chemical names, and RDKit's facts.

How a caption is read, the longest match first, from left to right:

- Case, plural endings, hyphens against blanks, Greek letters against their names and kinds of
  dashes make no difference. Synonyms are one entity: *hydroxy*, *hydroxyls* and *hydroxylated* are
  ``hydroxyl group``, by the name that `collamo.chem.motifs` counts it under.
- A word the lexicon lacks is cut into parts that it has, multipliers aside: *trihydroxyflavone* is
  ``hydroxyl group`` and ``flavone``. Positions do not count there, nor before a known word
  (*L-alanine* is ``alanine``).
- Another word with the ending of a chemical name (``-oside``, ``-azole``, ``-ic acid`` …) is an
  entity by itself, with its positions but without *(2S)-*, *beta-D-* and the like before it.
- A role is a head word (*inhibitor*, *metabolite*, *agent* …) with up to three words before it:
  ``acetylcholinesterase inhibitor``. Roles of one word are in the lexicon.
- A mention after *no*, *not*, *without*, *lacks*, *neither*, *free of* … (at most five words before
  it, in the same clause) or before *is absent* is none: the caption denies it. Other denials are
  not understood, such as "the hydroxy group has been replaced".

Not found are trade names, most names of peptides and proteins, species, and names of natural
products without a telling ending.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import NamedTuple

from rdkit import Chem

from collamo.chem.molecule import Molecule, parse_molecule
from collamo.chem.motifs import count_motifs
from collamo.errors import MoleculeError
from collamo.evaluation.entities.extractor import Caption, fold

LEXICON = "offline.tsv"
_WORD = re.compile(r"[^\W_]+")
# What may stand between the words of one phrase: "amino-acid", "1,4-benzoquinone", "(x) inhibitor".
_JOINT = re.compile(r"[ \-()\[\]]+|,(?=\d)")
_MULTIPLIER = re.compile("mono|di|tri|tetra|penta|hexa|hepta|octa|nona|deca|bis|tris|per")

_BEFORE_ROLES = 3  # words

_NO = {"no", "not", "without", "lack", "lacking", "neither", "nor", "devoid"}
_NO_OF = {"free", "absence", "instead"}  # with "of" after it
_CLAUSE_END = re.compile(r"[.;:](\s|$)")
_CLAUSE_WORDS = {"but", "rather", "however", "though", "although"}
_NO_REACH = 5  # words

# Endings of chemical names; the lexicon has the English words of five letters and more with one.
_ENDING = re.compile(
    "(?:ane|ene|yne|ol|one|ose|ine|in|ide|ate|oside|oyl|yl|azole|onium|idinium|olium)$"
)
_SHORTEST_NAME = 5  # letters
# Before a name, what only says how it is turned in space: "(2S)-", "beta-D-", "cis-".
_TURNED = re.compile(
    r"(?:[(\[]*(?:\d*[rsez](?:,\d*[rsez])*|(?:alpha-|beta-)?[dl]|dl|rac|cis|trans|\+|-|\+/-)"
    r"[)\]]*-)+(?=[\w(\[])"
)
_CHARGE = re.compile(r"\(\d*[+-]?$")  # of "citrate(3-)", its end being cut off


class Entry(NamedTuple):
    """A line of the lexicon; `smarts` "motif" stands for the pattern of `collamo.chem.motifs`."""

    kind: str
    entity: str
    smarts: str

    @property
    def entities(self) -> tuple[str, ...]:
        """Return what a mention of it names: "gold standard" names nothing."""
        return () if self.kind == "nothing" else (self.entity,)


class OfflineExtractor:
    """Finds entities by the rules of this module, and knows which of them a molecule has.

    Examples
    --------
    >>> found = OfflineExtractor().entities("A ketone with two hydroxy groups, but no ester.")
    >>> sorted(found)
    ['hydroxyl group', 'ketone']
    """

    def __init__(self):
        self._lexicon = _lexicon()
        self.about = {"entities": "offline", "entities_sha256": self._lexicon.sha256}

    def __enter__(self) -> OfflineExtractor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def extract(self, captions: Sequence[Caption]) -> list[frozenset[str]]:
        """Return the entities of each caption."""
        return [self.entities(caption.text) for caption in captions]

    def entities(self, text: str) -> frozenset[str]:
        """Return the entities that a text names and does not deny."""
        words = _Words(fold(text))
        mentions = list(self._mentions(words))
        return frozenset(
            entity
            for start, end, entities in mentions
            if not words.denied(start, end)
            for entity in entities
        )

    def grounded(self, entities: frozenset[str], molecule: str) -> frozenset[str]:
        """Return those of `entities` that the lexicon has a pattern for and `molecule` matches.

        A molecule that cannot be read has none of them.
        """
        try:
            read = parse_molecule(molecule)
        except MoleculeError:
            return frozenset()
        return frozenset(entity for entity in entities if self._has(read, entity))

    def _has(self, molecule: Molecule, entity: str) -> bool:
        entry = self._lexicon.entries.get(entity)
        if entry is None or not entry.smarts:
            return False
        if entry.smarts == "motif":
            return count_motifs(molecule)[entity] > 0
        return molecule.mol.HasSubstructMatch(_pattern(entry.smarts))

    def _mentions(self, words: _Words) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Yield (first word, word after the last, entities) of every mention, in order."""
        roles = dict(self._lexicon.roles(words))
        start = 0
        while start < len(words):
            if start in roles:
                end = roles[start]
                # A role the lexicon knows has its name there.
                known = self._lexicon.phrase(words, start)
                found = (
                    known[1] if known and known[0] == end else (" ".join(words.folded[start:end]),)
                )
            else:
                end, found = self._longest(words, start)
            if found:
                yield start, end, found
            start = end

    def _longest(self, words: _Words, start: int) -> tuple[int, tuple[str, ...]]:
        phrase = self._lexicon.phrase(words, start)
        end = self._lexicon.name_end(words, start)
        if end and (phrase is None or end > phrase[0]):
            return end, (words.name(start, end),)
        if phrase:
            return phrase
        return start + 1, self._lexicon.parts(words.folded[start]) or ()


class _Words:
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
        """Return whether the caption says that what stands there is not there."""
        for before in range(start - 1, max(-1, start - 1 - _NO_REACH), -1):
            if _CLAUSE_END.match(self._gaps[before].lstrip(")]")):
                break
            word = self.folded[before]
            if word in _CLAUSE_WORDS:
                break
            if word in _NO or (word in _NO_OF and self.folded[before + 1] == "of"):
                return True
        return self.folded[end : end + 2] in (["is", "absent"], ["are", "absent"])


class _Lexicon:
    """The lexicon by phrases and by parts of words, and the rule for chemical names."""

    def __init__(self):
        content = (resources.files("collamo.evaluation.entities") / LEXICON).read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.entries: dict[str, Entry] = {}
        self._phrases: dict[tuple[str, ...], Entry] = {}
        self._longest: dict[str, int] = {}  # words of the longest phrase that begins with a word
        lines = (line for line in content.decode("utf-8").splitlines() if line[0] != "#")
        words: dict[str, frozenset[str]] = {}
        for record in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if record["kind"] == "words":
                words[record["entity"]] = frozenset(record["also"].split("|"))
                continue
            entry = Entry(record["kind"], record["entity"], record["smarts"])
            self.entries[entry.entity] = entry
            for name in (entry.entity, *filter(None, record["also"].split("|"))):
                phrase = tuple(_Words(fold(name)).folded)
                self._phrases[phrase] = entry
                self._longest[phrase[0]] = max(self._longest.get(phrase[0], 0), len(phrase))
        self._english = words["english"]
        self._heads, self._alone = words["head"], words["head alone"]
        self._untelling = words["untelling"] | _NO
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

    def phrase(self, words: _Words, start: int) -> tuple[int, tuple[str, ...]] | None:
        """Return (word after the last, entities) of the longest phrase at `start`."""
        found, end = None, start
        longest = start + self._longest.get(words.folded[start], 0)
        while end < min(longest, len(words)):
            end += 1
            entry = self._phrases.get(tuple(words.folded[start:end]))
            if entry:
                found = end, entry.entities
            if not words.joined[end - 1]:
                break
        return found

    def roles(self, words: _Words) -> Iterator[tuple[int, int]]:
        """Yield (first word, word after the last) of every role with a head word."""
        for head, word in enumerate(words.folded):
            if word in self._heads:
                start = head
                while head - start < _BEFORE_ROLES and self._tells(words, start - 1):
                    start -= 1
                if start < head or word in self._alone:
                    yield start, head + 1

    def _tells(self, words: _Words, index: int) -> bool:
        """Return whether a word belongs to the role that the next one begins."""
        return (
            index >= 0
            and words.joined[index]
            and words.folded[index] not in self._untelling
            and not words.in_number(index)
        )

    def name_end(self, words: _Words, start: int) -> int | None:
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
_lexicon = lru_cache(maxsize=1)(_Lexicon)


@cache
def _pattern(smarts: str) -> Chem.Mol:
    return Chem.MolFromSmarts(smarts)


def singular(word: str) -> str:
    """Return an English word without the ending of a plural.

    >>> [singular(word) for word in ("ketones", "bases", "moieties", "ester", "analysis", "glass")]
    ['ketone', 'base', 'moiety', 'ester', 'analysis', 'glass']
    """
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    return word[:-3] + "y" if word.endswith("ies") and word != "species" else word[:-1]
