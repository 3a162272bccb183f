"""The SELFIES tokens that the 1D encoder knows, and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping


class SelfiesVocabulary(Mapping[str, int]):
    """SELFIES token → id: 0 is [PAD], 1 is [UNK], the given tokens follow in order.

    Its length is the rows an embedding table needs.

    Parameters
    ----------
    tokens
        Distinct tokens, in the order of their ids; None takes the alphabet of the selfies package
        (sorted), which covers ordinary organic molecules.

    Raises
    ------
    ValueError
        If a token appears twice.

    Examples
    --------
    >>> SelfiesVocabulary(["[C]", "[O]"]).encode(["[C]", "[Xe]"])
    [2, 1]
    """

    def __init__(self, tokens: Iterable[str] | None = None):
        if tokens is None:
            from selfies import get_semantic_robust_alphabet

            tokens = sorted(get_semantic_robust_alphabet())
        self.tokens = list(tokens)
        every = ["[PAD]", "[UNK]", *self.tokens]
        self._ids = {token: i for i, token in enumerate(every)}
        if len(self._ids) != len(every):
            twice = next(t for t in every if every.count(t) > 1)
            raise ValueError(f"SELFIES token '{twice}' is in the vocabulary twice; keep one")

    def __getitem__(self, token: str) -> int:
        return self._ids[token]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids; a token outside the vocabulary is [UNK]."""
        return [self.get(token, self["[UNK]"]) for token in tokens]
