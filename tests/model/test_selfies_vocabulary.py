"""Ids of SELFIES tokens."""

import pytest

from collamo.model import SelfiesVocabulary


def test_vocabulary():
    vocabulary = SelfiesVocabulary(["[C]", "[=O]"])
    assert dict(vocabulary) == {"[PAD]": 0, "[UNK]": 1, "[C]": 2, "[=O]": 3}
    assert vocabulary.encode(["[C]", "[Xe]", "[=O]"]) == [2, 1, 3]
    assert SelfiesVocabulary().tokens == sorted(SelfiesVocabulary().tokens)
    with pytest.raises(ValueError, match=r"'\[C\]' is in the vocabulary twice"):
        SelfiesVocabulary(["[C]", "[C]"])
