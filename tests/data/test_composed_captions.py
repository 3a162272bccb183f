import random

from collamo.chem.conformer import absent_conformer
from collamo.chem.molecule import parse_molecule
from collamo.data.composed_captions import compose_caption
from collamo.data.facts import measure
from collamo.data.sources import open_source
from collamo.data.tasks import task_rng

ASPIRIN = parse_molecule("CC(=O)Oc1ccccc1C(=O)O")


def test_captions_are_short_varied_and_true():
    facts = measure(ASPIRIN, absent_conformer("not needed"))
    captions = {compose_caption(facts, random.Random(seed)) for seed in range(50)}
    assert len(captions) > 30
    for caption in captions:
        assert "C9H8O4" in caption
        assert "180.2 g/mol" in caption
        assert "a carboxylic acid group and an acetyl group" in caption
        assert "1.3" in caption


def test_captions_have_15_to_40_words():
    for row in list(open_source("nci"))[:200]:
        facts = measure(parse_molecule(row.text), absent_conformer("not needed"))
        words = compose_caption(facts, task_rng(0, row.text)).split()
        assert 15 <= len(words) <= 40
