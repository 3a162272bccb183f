"""A predictions file from the command line: published scores, counts that add up, odd files."""

import json

import pyarrow.parquet as pq
import pytest

from collamo.cli import run
from collamo.errors import UsageError
from collamo.evaluation.score.names import opsin_absent
from collamo.evaluation.score.scorer import ScoreOptions
from collamo.evaluation.score.scoring import score_predictions

HEADER = "SMILES\tground truth\toutput\n"


def evaluate(path, task, out, **options):
    if task in ("captions", "iupac"):
        options.setdefault("tokenizer", "whitespace")
    report = score_predictions(path, ScoreOptions(task, **options), out)
    counts = report["counts"]
    assert counts["rows"] == sum(n for name, n in counts.items() if name != "rows")
    assert pq.read_metadata(out / "rows.parquet").num_rows == counts["rows"]
    assert json.loads((out / "report.json").read_text()) == report
    return report


def tsv(folder, *rows, header=HEADER):
    path = folder / "predictions.tsv"
    path.write_text(header + "".join(f"x\t{truth}\t{guess}\n" for truth, guess in rows))
    return path


# The published scores


@pytest.mark.slow
def test_published_caption_scores(shared_data, tmp_path, capsys):
    arguments = [f"{shared_data}/molt5_small_captions.tsv", "--task", "captions"]
    arguments += ["--tokenizer", f"scibert:{shared_data}/scibert_vocab.txt"]
    arguments += ["--wordnet", f"{shared_data}/wordnet.zip", "--out", str(tmp_path)]
    assert run(["score", *arguments]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    published = {"bleu2": 0.5315, "bleu4": 0.4449, "rouge1": 0.6210, "rouge2": 0.4699}
    published |= {"rougeL": 0.5639, "meteor": 0.5575}
    assert {name: report["scores"][name] for name in published} == pytest.approx(
        published, abs=5e-4
    )
    assert report["counts"]["scored"] == report["counts"]["rows"] == 3300
    assert report["manifest"]["tokenizer"] == "scibert"
    assert report["manifest"]["absent"] == {}
    assert "bleu4\t0.4449" in capsys.readouterr().out


@pytest.mark.slow
def test_published_molecule_scores(shared_data, tmp_path):
    path = shared_data / "molt5_small_molecules.tsv"
    report = evaluate(path, "molecules", tmp_path)
    published = {"bleu_char": 0.7490, "exact_inchi": 0.0815, "exact_canonical": 0.0806}
    published |= {"maccs": 0.7801, "rdk": 0.6526, "morgan": 0.6012, "validity": 0.7245}
    scores = report["scores"]
    assert {name: scores[name] for name in published} == pytest.approx(published, abs=5e-4)
    assert scores["levenshtein"] == pytest.approx(28.816, abs=0.01)
    assert scores["maccs_all"] == pytest.approx(scores["maccs"] * scores["validity"])
    assert report["counts"]["invalid_prediction"] == 909


# Single metrics, computed by hand


# Files: every row in one count


def test_garbage_rows_are_found_in_the_counts(tmp_path):
    path = tmp_path / "garbage.tsv"
    rows = [
        b"x\ta b\ta b",
        b"x\ta b\t",
        b"x\t\ta b",
        b"x\ta",
        b"x\ta\tb\tc",
        b"x\ta\t\xff\xfe",
        b"",
    ]
    path.write_bytes(HEADER.encode() + b"\n".join(rows) + b"\n")
    report = evaluate(path, "captions", tmp_path / "out")
    assert report["counts"] == {
        "rows": 7,
        "scored": 1,
        "malformed": 3,
        "not_utf8": 1,
        "empty_reference": 1,
        "empty_prediction": 1,
    }
    assert report["scores"]["rouge1"] == pytest.approx(0.5)  # the empty prediction is wrong


def test_molecules_and_counts_that_cannot_be_read_are_counted(tmp_path):
    path = tsv(tmp_path, ("CCO", "CCO"), ("CCO", "C("), ("what", "CCO"), ("CCO", ""))
    counts = evaluate(path, "molecules", tmp_path / "molecules")["counts"]
    assert counts["scored"] == counts["invalid_prediction"] == counts["invalid_reference"] == 1
    assert counts["empty_prediction"] == 1
    path = tsv(tmp_path, ("2", "three"), ("2", "many"), ("none", "2"), ("2", "it has 2"))
    report = evaluate(path, "motifs", tmp_path / "motifs")
    assert report["counts"]["unparsed_prediction"] == report["counts"]["unparsed_reference"] == 1
    assert report["scores"] == pytest.approx({"exact": 1 / 3, "mae": 0.5, "parsed": 2 / 3})


def test_motifs_one_by_one(tmp_path):
    header = "motif\tground truth\toutput\n"
    path = tmp_path / "motifs.tsv"
    path.write_text(header + "ring\t1\t1\nring\t2\t1\nether\t0\t0\n")
    report = evaluate(path, "motifs", tmp_path / "out")
    per_motif = report["scores"]["per_motif"]
    assert per_motif["ring"] == {"exact": 0.5, "mae": 0.5, "parsed": 1}
    assert per_motif["ether"]["exact"] == 1


def test_silence_costs_the_distance_to_the_train_mean(tmp_path):
    path = tsv(tmp_path, ("1.0", "2.0 Hartree"), ("3.0", "who knows"))
    options = {"unit": "Hartree", "train_mean": {"": 1.5}}
    scores = evaluate(path, "property", tmp_path / "out", **options)["scores"]
    assert (scores["mae"], scores["mae_penalised"], scores["parsed"]) == (1, 1.25, 0.5)
    assert scores["mae_ev"] == pytest.approx(27.211386245988)
    without = evaluate(path, "property", tmp_path / "without")
    assert "mae_penalised" not in without["scores"]
    assert "--train-mean" in without["manifest"]["absent"]["mae_penalised"]


def test_errors_of_several_properties_are_not_averaged(tmp_path):
    path = tmp_path / "properties.tsv"
    path.write_text("property\tground truth\toutput\ngap\t1\t2\nmass\t100\t150\n")
    report = evaluate(path, "property", tmp_path / "out")
    assert "mae" not in report["scores"]
    assert report["scores"]["per_property"]["mass"]["mae"] == 50
    with pytest.raises(UsageError, match="row 2: --train-mean has no value for mass"):
        evaluate(path, "property", tmp_path / "x", train_mean={"gap": 1.0})
    assert not (tmp_path / "x" / "rows.parquet").exists()


def test_answers_are_read_as_people_write_them(tmp_path):
    path = tsv(tmp_path, ("0", "There are no ethers."), ("0", "None"), ("1", "a single ring"))
    report = evaluate(path, "motifs", tmp_path / "motifs")
    assert report["scores"] == {"exact": 1, "mae": 0, "parsed": 1}
    path = tmp_path / "properties.csv"
    lines = ("mu,1.85,1.85D", "gap,0.25,6.802846561 eV", "gap,0.25,5 kg", 'gap,0.25,"0,25"')
    path.write_text("\n".join(("property,reference,output", *lines, "gap,0.25,no idea", "")))
    report = evaluate(path, "property", tmp_path / "out", unit="Hartree")
    counts = {name: number for name, number in report["counts"].items() if number}
    faults = ("other_unit_prediction", "ambiguous_prediction", "unparsed_prediction")
    assert counts == {"rows": 5, "scored": 2, **dict.fromkeys(faults, 1)}
    scores = report["scores"]["per_property"]
    assert scores["mu"]["mae"] == 0
    assert scores["gap"]["mae"] == pytest.approx(0, abs=1e-9)
    assert scores["gap"]["parsed"] == 0.25


def test_a_unit_that_is_not_known_is_named(tmp_path):
    path = tsv(tmp_path, ("1", "1.5 eV"))
    report = evaluate(path, "property", tmp_path / "out", unit="points")
    assert report["scores"]["mae"] == 0.5
    assert "'points' is no unit" in report["manifest"]["absent"]["conversion of units"]


def test_names_are_compared_as_structures(tmp_path):
    pytest.importorskip("py2opsin")
    if opsin_absent():
        pytest.skip(opsin_absent())
    truth = "2-hydroxybenzoic acid"
    guesses = (truth, "o-hydroxybenzoic acid", "benzoic acid", "nonsense acidd", "")
    path = tsv(tmp_path, *((truth, guess) for guess in guesses), ("bogus name", truth))
    report = evaluate(path, "iupac", tmp_path / "out")
    assert report["scores"]["exact"] == pytest.approx(1 / 6)
    assert report["scores"]["opsin_match"] == pytest.approx(2 / 5)
    assert report["scores"]["opsin_parsed"] == pytest.approx(4 / 6)
    counts = report["counts"]
    assert (counts["scored"], counts["unparsed_prediction"], counts["unparsed_reference"]) == (
        3,
        1,
        1,
    )


def test_names_without_java_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    report = evaluate(tsv(tmp_path, ("ethanol", "ethanol")), "iupac", tmp_path / "out")
    assert report["scores"]["exact"] == 1
    assert set(report["manifest"]["absent"]) == {"meteor", "opsin_parsed", "opsin_match"}


def test_the_same_rows_in_every_format(tmp_path):
    rows = [{"ground truth": 'a "b" c', "output": 'a "b"'}, {"ground truth": "d", "output": "e"}]
    plain = tmp_path / "rows.tsv"
    plain.write_text('ground truth\toutput\na "b" c\ta "b"\nd\te\n')
    quoted = tmp_path / "rows.csv"
    quoted.write_text('ground truth,output\n"a ""b"" c","a ""b"""\nd,e\n')
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reports = [
        evaluate(path, "captions", tmp_path / path.suffix) for path in (plain, quoted, lines)
    ]
    assert reports[0]["scores"] == reports[1]["scores"] == reports[2]["scores"]


def test_tabs_line_breaks_and_markup_in_texts(tmp_path):
    path = tmp_path / "rows.jsonl"
    text = "a\tb\n<script>|"
    path.write_text("no json\n" + json.dumps({"ground truth": text, "output": text}) + "\n")
    report = evaluate(path, "captions", tmp_path / "out")
    assert report["counts"]["malformed"] == report["counts"]["scored"] == 1
    assert report["scores"]["bleu1"] == 1
    assert "<script>" not in (tmp_path / "out/report.html").read_text()


def test_no_rows_and_one_row(tmp_path):
    report = evaluate(tsv(tmp_path), "captions", tmp_path / "none")
    assert (report["scores"], report["counts"]["rows"]) == ({}, 0)
    report = evaluate(tsv(tmp_path, ("a", "a")), "captions", tmp_path / "one")
    assert (report["scores"]["bleu1"], report["scores"]["bleu2"]) == (1, 0)


def test_the_pictures_are_in_the_page(tmp_path):
    evaluate(tsv(tmp_path, ("CCO", "CCN")), "molecules", tmp_path / "out")
    assert "<svg" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{file}"], "Missing option '--task'"),
        (["{file}", "--task", "caption"], "did you mean 'captions'?"),
        (["{file}", "--task", "captions"], "needs --tokenizer"),
        (["nowhere.tsv", "--task", "motifs"], "No such file"),
        (["--task", "captions"], "Missing argument"),
        (["{file}", "--task", "captions", "--limit", "3"], "No such option: --limit"),
        (["{file}", "--task", "property", "--train-mean", "x"], "no number"),
    ],
)
def test_usage_errors(tmp_path, arguments, part, capsys):
    file = tsv(tmp_path, ("a", "a"))
    arguments = [argument.format(file=file) for argument in arguments]
    assert run(["score", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert part in capsys.readouterr().err


def test_a_file_without_the_columns_names_those_it_has(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("smiles\tanswers\nC\tD\n")
    with pytest.raises(UsageError, match=r"no column for the prediction: .*; it has smiles"):
        evaluate(path, "captions", tmp_path / "out")
