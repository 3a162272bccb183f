"""Tokenisers by name: pinned, never downloaded."""

import pytest

from collamo.errors import MissingDependencyError, UsageError
from collamo.evaluation.score.tokenisation import load_tokenisation


@pytest.mark.parametrize("spec", ["words", "scibret:x", "llm", "whitespace:x", "13a:x"])
def test_unknown_tokenisers_are_refused(spec):
    with pytest.raises(UsageError, match="whitespace, 13a, scibert:VOCABULARY"):
        load_tokenisation(spec)


def test_a_tokeniser_is_never_downloaded():
    with pytest.raises(MissingDependencyError, match="nothing is downloaded"):
        load_tokenisation("llm:nobody/has-this-model")


def test_scibert_is_lower_cased_and_cut(shared_data):
    scibert = load_tokenisation(f"scibert:{shared_data}/scibert_vocab.txt")
    assert scibert.tokens("The Molecule") == ["the", "molecule"]
    assert len(scibert.tokens("the " * 1000)) == 510
    assert scibert.sha256.startswith("0a7d0066")
