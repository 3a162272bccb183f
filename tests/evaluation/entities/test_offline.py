"""Entities of captions: what the offline rules find and miss."""

import json
from pathlib import Path

import pytest
from rdkit import Chem

from collamo.chem.motifs import MOTIFS
from collamo.errors import UsageError
from collamo.evaluation.entities.extractor import fold
from collamo.evaluation.entities.lexicon import load_lexicon
from collamo.evaluation.entities.loading import load_extractor
from collamo.evaluation.entities.offline import OfflineExtractor

VALIDATION = Path(__file__).parents[2] / "fixtures" / "entity_captions.jsonl"


def entities(text):
    return set(OfflineExtractor().entities(text))


def test_precision_and_recall_on_captions_written_by_hand():
    """The figures of docs/evaluation.md: 68 captions, 188 entities."""
    right = wrong = missed = 0
    lines = VALIDATION.read_text(encoding="utf-8").splitlines()
    for record in map(json.loads, lines):
        known, found = set(record["entities"]), entities(record["caption"])
        right += len(known & found)
        wrong += len(found - known)
        missed += len(known - found)
    assert (len(lines), right, wrong, missed) == (68, 179, 9, 9)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hydroxy, hydroxyl and hydroxylated", {"hydroxyl group"}),
        ("two Ketones", {"ketone"}),
        ("a trihydroxyflavone", {"hydroxyl group", "flavone"}),
        ("dimethylamino", {"methyl group", "amino group"}),
        ("tert‑butyl and tert butyl", {"tert-butyl group"}),
        ("primary alcohol", {"primary alcohol"}),  # and not an alcohol besides
        ("an amino, acid-free", {"amino group"}),  # the comma parts what a blank would join
        ("L-alanine (β-D-glucose)", {"alanine", "glucose"}),
        ("7-deoxyloganin", {"7-deoxyloganin"}),
        ("xanthurenic acid and citrate(3-)", {"xanthurenic acid", "citrate"}),
        ("(2S)-naringenin", {"naringenin"}),
        ("EC 3.1.1.7 (acetylcholinesterase) inhibitor", {"acetylcholinesterase inhibitor"}),
        ("a potent cyclooxygenase 2 inhibitor", {"cyclooxygenase 2 inhibitor"}),
        ("the agent, an inhibitor", set()),  # of nothing in particular
        ("the gold standard", set()),
        ("gold", {"gold"}),
        ("no ester. A ketone", {"ketone"}),
        ("not an ester but a ketone", {"ketone"}),
        ("free of esters", set()),
        ("a free amino group", {"amino group"}),
        ("the ester is absent", set()),
        ("no sign whatever of any such ester", {"ester"}),  # six words away: a stated limit
        ("", set()),
        ("\t \x00\ud800", set()),
    ],
)
def test_reading(text, found):
    assert entities(text) == found


def test_no_order_of_sentences_and_no_repetition_matters():
    parts = ["A ketone.", "It has a role as a plant metabolite.", "It contains chlorine."]
    assert entities(" ".join(parts)) == entities(" ".join(parts[::-1] * 2))


@pytest.mark.parametrize(
    ("molecule", "has", "lacks"),
    [
        (
            "CCO",
            {"primary alcohol", "hydroxyl group", "oxygen", "ethyl group"},
            {"phenol", "ether"},
        ),
        ("Oc1ccccc1", {"phenol", "benzene", "aromatic ring"}, {"primary alcohol", "pyridine"}),
        ("CC(=O)C=C", {"ketone", "enone", "vinyl group"}, {"aldehyde group", "ester"}),
        ("CCOC(C)=O", {"ester", "acetyl group"}, {"lactone", "carboxylic acid group", "ketone"}),
        ("O=C1CCCO1", {"lactone", "ester"}, {"macrolide", "lactam"}),
        ("[NH3+]C(C)C(=O)[O-]", {"zwitterion", "alpha-amino acid", "anion"}, {"amide"}),
        ("C[N+](=O)[O-]", {"nitro group"}, {"zwitterion", "anion", "cation", "salt"}),
        ("[Na+].[O-]C(=O)c1ccccc1", {"sodium", "salt", "carboxylate"}, {"zwitterion"}),
        ("CN(C)C", {"tertiary amine", "amine"}, {"secondary amine", "amide"}),
        ("CC(=O)NC", {"amide"}, {"amine", "secondary amine"}),
        ("c1ccc2[nH]ccc2c1", {"indole"}, {"indazole", "benzimidazole"}),
        ("c1ccc2occ(-c3ccccc3)c(=O)c2c1", {"isoflavone"}, {"flavone"}),
        ("C1CCC2C(C1)CCC1C2CCC2CCCC12", {"steroid"}, {"flavone"}),
        ("CSC", {"sulfide"}, {"sulfoxide", "thiol group"}),
        ("CS(C)=O", {"sulfoxide"}, {"sulfone"}),
        ("COP(=O)(O)O", {"phosphate", "organophosphate"}, {"diphosphate"}),
        ("C1OC1C", {"epoxide"}, {"oxetane"}),
        ("C#N", set(), {"alkyne"}),
        ("not a molecule", set(), {"carbon"}),
    ],
)
def test_what_a_molecule_has(molecule, has, lacks):
    asked = frozenset(has | lacks)
    assert OfflineExtractor().grounded(asked, molecule) == has


def test_the_lexicon_itself():
    entries = load_lexicon().entries.values()
    assert len(entries) > 400
    motifs = {entry.entity for entry in entries if entry.smarts == "motif"}
    assert motifs == set(MOTIFS)  # what we ask about and compose captions of, we read
    for motif in MOTIFS:
        assert entities(f"two {motif}s") == {motif}
    for entry in entries:
        assert entry.smarts in ("", "motif") or Chem.MolFromSmarts(entry.smarts), entry
        expected = set() if entry.kind == "nothing" else {entry.entity}
        assert entities(entry.entity) == expected, entry


def test_folding():
    assert fold(" β–D‑Glucose\n") == "beta-d-glucose"


def test_specs(tmp_path):
    assert load_extractor("offline").about["entities"] == "offline"
    for spec in ("ofline", "offline:x", "bern2", "file", "bern2:nowhere", f"file:{tmp_path}/x.tsv"):
        with pytest.raises(UsageError):
            load_extractor(spec)
