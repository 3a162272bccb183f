"""`collamo prepare` on good and bad input: exit code, one clear line, nothing lost."""

import json

from command_line import BAD_SMILES, assert_fails, write_csv


def test_prepare_counts_rows_in_and_out(collamo, tmp_path):
    smiles = ["CCO", "c1ccccc1O", "C1CC", "CC(=O)O", "C" * 300]
    file = write_csv(tmp_path / "few.csv", [[text] for text in smiles])
    out = tmp_path / "data"
    options = ["--max-reject-rate", "0.5", "--workers", "1", "--time-limit", "1"]
    code, text, notes = collamo("prepare", file, "--out", out, *options)
    assert code == 0
    assert "5 rows: 4 ok, 1 rejected" in text
    assert str(out / "rejected.jsonl") in notes
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["conformers"] == {"etkdgv3+mmff": 3, "none": 1}  # 300 atoms: too long for 3D
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [r["row"] for r in rejected] == [3]


def test_prepare_with_too_many_rejected_rows_is_exit_3_and_keeps_them(collamo, tmp_path):
    rows = [["CCO"], ["CCN"], *([smiles] for smiles in BAD_SMILES if smiles.strip())]
    file = write_csv(tmp_path / "bad.csv", rows)
    out = tmp_path / "data"
    result = collamo("prepare", file, "--out", out, "--workers", "1")
    assert_fails(result, 3, f"{len(rows) - 2} of {len(rows)} rows were rejected")
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == len(rows) - 2
    assert all(r["message"] for r in rejected)


def test_prepare_of_nothing_useful_is_a_usage_error(collamo, tmp_path):
    out = tmp_path / "data"
    assert_fails(collamo("prepare", "nowhere.csv", "--out", out), 2, "nowhere.csv")
    file = write_csv(tmp_path / "a.csv", [["CCO"]], header=("smilse",))
    assert_fails(collamo("prepare", file, "--out", out), 2, "smilse")
    result = collamo("prepare", file, "--out", out, "--smiles-column", "smiles")
    assert_fails(result, 2, "did you mean 'smilse'?")


def test_prepare_reads_the_pubchem_file(collamo, shared_data, tmp_path):
    source = shared_data / "pubchem_3k.jsonl"
    options = ["--limit", "40", "--no-conformers", "--workers", "1"]
    code, text, _ = collamo("prepare", source, "--out", tmp_path / "data", *options)
    assert code == 0
    assert text.startswith("40 rows: ")


def test_prepare_keeps_a_published_split_and_says_what_it_shares(collamo, tmp_path):
    rows = [["CCO", "train"], ["CCN", "train"], ["CC[NH3+]", "test"], ["CCCl", "val"]]
    file = write_csv(tmp_path / "published.csv", rows, header=("smiles", "set"))
    options = ["--no-conformers", "--workers", "1", "--split"]
    code, text, notes = collamo("prepare", file, "--out", tmp_path / "a", *options, "column:set")
    assert (code, "2 train, 1 validation, 1 test" in text) == (0, True)
    assert "note: test in train: 0 molecules, and 1 with the same parent" in notes
    result = collamo("prepare", file, "--out", tmp_path / "b", *options, "scaffolds")
    assert_fails(result, 2, "did you mean 'scaffold'?")
