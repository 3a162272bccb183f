"""`collamo generate` on good and bad input: exit code, one clear line, nothing lost."""

import csv
import json

import pytest
from command_line import BAD_SMILES, assert_fails, write_csv
from rdkit import Chem

from collamo.evaluation.score.predictions import read_predictions

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


QUESTION = "How many rings does it have?"


def test_generate_returns_every_row(collamo, run, tmp_path):
    rows = [["CCO", QUESTION, "1"], ["c1ccccc1", QUESTION, "2"]]
    rows += [[smiles, QUESTION, "bad"] for smiles in BAD_SMILES]
    rows += [["CCO", "", "bad"], ["CCO", "a <mol> b", "bad"], ["CCO", "why " * 5000, "bad"]]
    rows += [["CCO", QUESTION, "3"]]
    file = write_csv(tmp_path / "q.csv", rows, header=("smiles", "question", "answer"))
    out = tmp_path / "deep" / "a.csv"
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "8", "--out", out]
    code, text, err = collamo("generate", file, *options)
    assert code == 0, err
    assert text == ""
    assert f"{len(rows)} rows: 3 answered, {len(rows) - 3} with errors" in err
    with open(out, newline="", encoding="utf-8") as opened:
        found = list(csv.DictReader(opened))
    assert [f["row"] for f in found] == [str(i) for i in range(1, len(rows) + 1)]
    for (smiles, question, mark), row in zip(rows, found, strict=True):
        assert (row["smiles"], row["question"]) == (smiles, question)
        assert row["input_answer"] == mark  # a column of the user's is never overwritten
        assert row["status"] == ("error" if mark == "bad" else "ok")
        assert bool(row["reason"]) == (mark == "bad")
    assert found[0]["answer"] == found[-1]["answer"]


@pytest.mark.slow
def test_generate_gives_the_same_bytes_with_any_number_of_workers(collamo, run, tmp_path):
    smiles = ["C" * 20, "CCO", "C1CC", "c1ccccc1", "CCO", "", "C" * 300, "C[C@H](N)C(=O)O"]
    file = write_csv(tmp_path / "q.csv", [[s, QUESTION] for s in smiles], ("smiles", "question"))
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "4", "--time-limit", "1"]
    one = collamo("generate", file, *options, "--workers", "1")
    assert one[0] == 0
    assert one == collamo("generate", file, *options, "--workers", "3")
    rows = [json.loads(line) for line in one[1].splitlines()]
    assert [r["smiles"] for r in rows] == smiles
    assert [i for i, r in enumerate(rows) if r["status"] == "error"] == [2, 5]
    assert rows[2]["reason"].startswith("row 3: SMILES 'C1CC' has an unclosed ring")
    assert rows[6]["reason"] == "answered without 3D: no geometry within 1 s of processor time"


def test_generate_jsonl_on_stdout(collamo, run, tmp_path):
    file = tmp_path / "q.jsonl"
    lines = [
        {"molecule": "CCO", "q": QUESTION, "id": 7},
        {"molecule": 3, "q": QUESTION},
        {"molecule": "CC\ud800", "q": QUESTION},
    ]
    text = "\n".join([json.dumps(lines[0]), "{broken", *map(json.dumps, lines[1:])])
    file.write_text(text + "\n")
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "8"]
    columns = ["--smiles-column", "molecule", "--question-column", "q"]
    code, out, err = collamo("generate", file, *options, *columns)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [r["status"] for r in rows] == ["ok", "error", "error", "error"]
    assert rows[0]["id"] == 7
    assert "not a JSON object" in rows[1]["reason"]


def test_generate_answers_every_row_of_a_tsv_and_scores_what_it_wrote(collamo, run, tmp_path):
    texts = ['"open', 'closed"', 'The "simplest" alcohol.']
    rows = [["SMILES", "Question", "Reference"], *(["CCO", QUESTION, text] for text in texts)]
    file, out = tmp_path / "q.txt", tmp_path / "A.TSV.gz"
    file.write_text("".join("\t".join(row) + "\n" for row in rows))
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "4", "--out", out]
    code, _, err = collamo("generate", file, *options)
    assert code == 0, err
    assert "3 rows: 3 answered" in err
    assert [row.reference for row in read_predictions(out, "captions")] == texts


def test_generate_keeps_every_value_or_says_so(collamo, run, tmp_path):
    file = tmp_path / "q.csv"
    file.write_text("smiles,question,name,name\nCCO,why?,first,second\n")
    assert_fails(collamo("generate", file), 2, "column 'name' 2 times")
    file.write_bytes(b"smiles,question,name\nCCO,why?,caf\xe9\n")
    code, out, err = collamo("generate", file, "--checkpoint", run.checkpoint)
    assert code == 0, err
    (row,) = map(json.loads, out.splitlines())
    assert (row["status"], row["reason"]) == (
        "error",
        "row 1: not UTF-8; convert the file to UTF-8",
    )


def test_generate_reads_sdf_and_columns_that_are_named(collamo, run, tmp_path):
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("C"))
    (tmp_path / "q.sdf").write_text(f"{block}> <Question>\n{QUESTION}\n\n$$$$\n" * 2)
    (tmp_path / "q.csv").write_text(f"molecule,Q\n[C],{QUESTION}\n")
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "4"]
    code, out, err = collamo("generate", tmp_path / "q.sdf", *options)
    assert code == 0, err
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["ok", "ok"]
    columns = ["--selfies-column", "Molecule", "--question-column", "q"]
    code, out, err = collamo("generate", tmp_path / "q.csv", *options, *columns)
    assert json.loads(out)["status"] == "ok", err


def test_generate_from_no_file_or_the_wrong_one_is_exit_2(collamo, tmp_path):
    assert_fails(collamo("generate", "nowhere.csv"), 2, "nowhere.csv", "No such file")
    assert_fails(collamo("generate", "q.xlsx"), 2, "unknown kind of file", ".csv, .tsv, ")
    file = write_csv(tmp_path / "q.csv", [["CCO", QUESTION]], header=("smilse", "question"))
    assert_fails(collamo("generate", file), 2, "no SMILES column", "did you mean 'smilse'?")
    named = collamo("generate", file, "--smiles-column", "smiles")
    assert_fails(named, 2, "no column 'smiles'", "did you mean 'smilse'?")
    assert_fails(collamo("generate", file, "--out", "a.xlsx"), 2, "a.xlsx")
    assert_fails(collamo("generate", file, "--out", "a.sdf"), 2, "a.sdf", ".csv, .tsv or .jsonl")
    assert_fails(collamo("generate", tmp_path), 2, "is a folder")
    file.write_text("")
    assert_fails(collamo("generate", file), 2, "has no rows; it needs smiles and question")
    file.write_text('smiles,question\nCCO,"open\nCCN,hi\n')
    assert_fails(collamo("generate", file), 2, "record of line 2 is never closed")


def test_generate_without_weights_is_exit_4(collamo, tmp_path):
    file = write_csv(tmp_path / "q.csv", [["CCO", QUESTION]], header=("smiles", "question"))
    assert_fails(collamo("generate", file), 4, "no trained weights")
