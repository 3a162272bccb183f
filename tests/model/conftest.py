"""A small random model around a small random LLaMA, and a handful of real molecules."""

import pytest
from model_helpers import build

from collamo.chem.conformer import absent_conformer, embed_conformer
from collamo.chem.features import featurize
from collamo.chem.molecule import parse_molecule
from collamo.model import train_tokenizer

SMILES = (
    "CCO",  # small
    "CC(=O)Oc1ccccc1C(=O)O",  # ring and branches
    "C",  # one atom, no bond
    "CCC(=O)[O-].CC[NH3+]",  # two fragments
    "C[Se]C",  # in the dictionary, outside the organic subset
)
TEXTS = ["How many hydroxyl groups does this molecule have? 12.5", "What is its weight? -3"] * 9


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=320)


@pytest.fixture(scope="session")
def _shared(tokenizer):
    return build(tokenizer)


@pytest.fixture
def model(_shared):
    """A model in evaluation mode; tests that change it build their own."""
    return _shared[0].eval()


@pytest.fixture
def processor(_shared):
    return _shared[1]


@pytest.fixture(scope="session")
def features():
    """Features with conformers, by SMILES."""
    molecules = {smiles: parse_molecule(smiles) for smiles in SMILES}
    return {smiles: featurize(m, embed_conformer(m)) for smiles, m in molecules.items()}


@pytest.fixture(scope="session")
def flat_features():
    """The same without conformers."""
    return {s: featurize(parse_molecule(s), absent_conformer("not embedded")) for s in SMILES}


@pytest.fixture
def inputs(processor, features):
    """One prompt of its own length per molecule, padded on the left."""
    prompts = [processor.prompt("What is it?" + " Tell me." * i) for i in range(len(SMILES))]
    return processor(prompts, list(features.values()))
