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
  it, in the same clause) or before *is absent* does not count: the caption denies it. Other
  denials are not understood, such as "the hydroxy group has been replaced".

Not found are trade names, most names of peptides and proteins, species, and names of natural
products without a telling ending.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from rdkit import Chem

from collamo.chem.molecule import Molecule, parse_molecule
from collamo.chem.motifs import count_motifs
from collamo.errors import MoleculeError
from collamo.evaluation.entities.extractor import Caption, fold
from collamo.evaluation.entities.lexicon import load_lexicon
from collamo.evaluation.entities.words import Words


class OfflineExtractor:
    """Finds entities by the rules above, and knows which of them a molecule has.

    Examples
    --------
    >>> entities = OfflineExtractor().entities("A ketone with two hydroxy groups, but no ester.")
    >>> sorted(entities)
    ['hydroxyl group', 'ketone']
    """

    def __init__(self):
        self._lexicon = load_lexicon()
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
        words = Words(fold(text))
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

    def _mentions(self, words: Words) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Yield (first word, word after the last, entities) of every mention, in order."""
        roles = dict(self._lexicon.roles(words))
        start = 0
        while start < len(words):
            if start in roles:
                end = roles[start]
                # A role the lexicon knows has its name there.
                known = self._lexicon.phrase(words, start)
                entities = (
                    known[1] if known and known[0] == end else (" ".join(words.folded[start:end]),)
                )
            else:
                end, entities = self._longest(words, start)
            if entities:
                yield start, end, entities
            start = end

    def _longest(self, words: Words, start: int) -> tuple[int, tuple[str, ...]]:
        phrase = self._lexicon.phrase(words, start)
        end = self._lexicon.name_end(words, start)
        if end and (phrase is None or end > phrase[0]):
            return end, (words.name(start, end),)
        if phrase:
            return phrase
        return start + 1, self._lexicon.parts(words.folded[start]) or ()


@cache
def _pattern(smarts: str) -> Chem.Mol:
    return Chem.MolFromSmarts(smarts)
