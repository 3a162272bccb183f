"""OPSIN on real names: what it reads, and whether it finds the compound they were written for."""

import json
from itertools import islice

import pytest
from rdkit import Chem
from rdkit.Chem.inchi import MolToInchi

from collamo.evaluation.score.names import opsin_absent, read_names
from collamo.evaluation.score.scorer import ScoreOptions
from collamo.evaluation.score.scoring import score_predictions

COUNT = 250


@pytest.fixture(scope="module")
def named(shared_data):
    """The first compounds of PubChem's file with their names."""
    if opsin_absent():
        pytest.skip(opsin_absent())
    with (shared_data / "pubchem_3k.jsonl").open(encoding="utf-8") as stream:
        rows = (row for row in map(json.loads, stream) if row.get("iupac_name"))
        return [(row["iupac_name"], row["smiles"]) for row in islice(rows, COUNT)]


def test_names_are_read_back_as_the_compounds_they_name(named):
    """Of all 3,292 names 3,101 are read, 3,070 as the same InChI; 23 of the 31 others differ in
    stereochemistry or isotopes only."""
    read = read_names([name for name, _ in named])
    true = [MolToInchi(Chem.MolFromSmiles(smiles)) for _, smiles in named]
    pairs = [pair for pair in zip(read, true, strict=True) if pair[0]]
    # What OPSIN 2.9 reads of the first 250, all of it right; a later one should not read fewer.
    assert len(pairs) >= 229
    assert sum(one == other for one, other in pairs) >= 229


def test_each_name_matches_itself_and_the_next_one_not(named, tmp_path):
    names = [name for name, _ in named[:100]]
    reports = []
    for shift in (0, 1):
        path = tmp_path / f"{shift}.jsonl"
        with path.open("w") as stream:
            for name, guess in zip(names, names[shift:] + names[:shift], strict=True):
                stream.write(json.dumps({"ground truth": name, "output": guess}) + "\n")
        options = ScoreOptions("iupac", "whitespace")
        reports.append(score_predictions(path, options, tmp_path / f"{shift}"))
    itself, other = reports
    assert itself["scores"]["opsin_match"] == itself["scores"]["exact"] == 1
    assert other["scores"]["opsin_match"] < 0.02
    assert other["scores"]["opsin_parsed"] == itself["scores"]["opsin_parsed"]
    for report in reports:
        counts = report["counts"]
        unread = counts["unparsed_prediction"] + counts["unparsed_reference"]
        assert counts["scored"] + unread == counts["rows"] == len(names)
    assert itself["counts"]["unparsed_reference"] == 0  # both are unread: the prediction's fault
    assert itself["counts"]["scored"] >= 0.9 * len(names)
