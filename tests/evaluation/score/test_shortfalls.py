"""References against themselves: 1 in every score, or counted with the reason."""

import json

import pytest

from collamo.cli import run
from collamo.evaluation.score.predictions import PredictionRow
from collamo.evaluation.score.scorer import ScoreOptions
from collamo.evaluation.score.scoring import score_predictions
from collamo.evaluation.score.shortfalls import shortfalls


def gold(folder, references, task, **options):
    path = folder / "gold.jsonl"
    lines = (json.dumps({"reference": text, "output": text}) for text in references)
    path.write_text("".join(f"{line}\n" for line in lines))
    return score_predictions(path, ScoreOptions(task, **options), folder / "out")


def rows_below_1(report):
    return {name: entry["rows"] for name, entry in report["shortfalls"].items()}


def test_identical_salts_are_similar_to_nothing_by_the_published_definition(tmp_path):
    report = gold(tmp_path, ["[Na+].[I-]", "[39Ar]", "CCO", "*CC"], "molecules")
    assert rows_below_1(report) == {"exact_inchi": 1, "rdk": 2, "bleu_char": 2}
    assert report["scores"]["rdk"] == 0.5  # as published
    assert report["scores"]["exact_canonical"] == report["scores"]["morgan"] == 1
    assert "two empty fingerprints" in (tmp_path / "out/report.md").read_text()


def test_the_terminal_says_so(tmp_path, capsys):
    (tmp_path / "gold.tsv").write_text("reference\toutput\n[Na+].[I-]\t[Na+].[I-]\n")
    arguments = ["score", str(tmp_path / "gold.tsv"), "--task", "molecules"]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "note: rdk of 1 right answers is below 1: no bit is set" in capsys.readouterr().err


def test_short_captions_have_no_pairs_of_words(tmp_path):
    texts = ["It is a ketone of four.", "ketone", "Å"]
    report = gold(tmp_path, texts, "captions", tokenizer="whitespace")
    counts = {"bleu2": 2, "bleu3": 2, "bleu4": 2, "rouge1": 1, "rouge2": 2, "rougeL": 1}
    assert rows_below_1(report) == counts


@pytest.mark.parametrize(
    ("task", "references", "options"),
    [
        ("motifs", ["0", "3", "no rings", "two"], {}),
        ("property", ["0.25", "-1.5e-3", "1,234.5", "6.8 eV", "156.8 kcal mol-1"], {"unit": "eV"}),
        ("property", ["0.25 D", "1.2 × 10⁻³", "25 °C", "180 g"], {}),
        ("molecules", ["CCCO", "c1ccccc1O"], {}),
        ("captions", ["The molecule is a ketone."], {"tokenizer": "whitespace"}),
    ],
)
def test_a_reference_against_itself_scores_1(task, references, options, tmp_path):
    report = gold(tmp_path, references, task, **options)
    assert report["counts"]["scored"] == report["counts"]["rows"] == len(references)
    assert report["shortfalls"] == {}
    errors = ("mae", "levenshtein")
    for name, value in report["scores"].items():
        assert value == pytest.approx(0 if name.startswith(errors) else 1), name


def test_a_wrong_answer_falls_short_of_nothing():
    values = {"rdk": 0.0, "exact_canonical": 0.0}
    assert shortfalls(PredictionRow(1, "CCO", "CCN", values=values)) == []
    assert shortfalls(PredictionRow(1, "OCC", "CCO", values=values | {"exact_canonical": 1.0})) == [
        "rdk"
    ]


@pytest.mark.slow
def test_the_published_references_against_themselves(shared_data, tmp_path):
    lines = (shared_data / "molt5_small_molecules.tsv").read_text().splitlines()
    header = lines[0].split("\t")
    references = [line.split("\t")[header.index("ground truth")] for line in lines[1:]]
    report = gold(tmp_path, references, "molecules")
    below = rows_below_1(report)
    scores, rows = report["scores"], len(references)
    assert scores["rdk"] == pytest.approx(1 - below["rdk"] / rows)
    assert scores["rdk"] == pytest.approx(0.9942, abs=5e-5)
    for name in ("exact_inchi", "maccs", "morgan", "validity", "exact_canonical"):
        assert scores[name] == pytest.approx(1 - below.get(name, 0) / rows)
