"""CHARM and RCHARM by hand, their edges, and on the command line."""

import json
import random

import pyarrow.parquet as pq
import pytest
from fake_service import Reply, fake_service

from collamo.cli import run
from collamo.evaluation.comparison import compare
from collamo.evaluation.entities.hallucination import (
    STATUSES,
    hallucination_row,
    hallucination_scores,
    score_hallucination,
)
from collamo.evaluation.entities.loading import load_extractor
from collamo.evaluation.score.scorer import ScoreOptions
from collamo.evaluation.score.scoring import score_predictions
from collamo.evaluation.statistics import Sums


def sets(generated, reference):
    return frozenset(generated), frozenset(reference)


def test_one_caption_by_hand():
    # Said: a b c; true: b c d e. Made up: a. Left out: d e.
    status, values = hallucination_row(*sets("abc", "bcde"))
    assert status == "scored"
    assert (values["charm"], values["rcharm"]) == (1 / 3, 2 / 4)
    assert (values["entities_made_up"], values["entities_left_out"]) == (1, 2)
    # The molecule has a: it was no invention.
    _, values = hallucination_row(*sets("abc", "bcde"), frozenset("a"))
    assert (values["charm"], values["charm_molecule"]) == (1 / 3, 0)


def test_what_one_caption_leaves_out_the_other_makes_up():
    _, values = hallucination_row(*sets("abc", "bcdef"))
    _, turned = hallucination_row(*sets("bcdef", "abc"))
    assert (values["charm"], values["rcharm"]) == (turned["rcharm"], turned["charm"])


def test_means_and_pooled_shares_by_hand():
    sums = Sums()
    for generated, reference in (("abc", "bcde"), ("a", "x"), ("", "yz")):
        sums.add(hallucination_row(*sets(generated, reference))[1])
    assert hallucination_scores(sums) == pytest.approx(
        {
            "charm": (1 / 3 + 1) / 2,
            "rcharm": (2 / 4 + 1 + 1) / 3,
            "charm_pooled": 2 / 4,
            "rcharm_pooled": (2 + 1 + 2) / (4 + 1 + 2),
        }
    )


def test_the_edges():
    assert hallucination_row(*sets("ab", "ab"))[1]["charm"] == 0
    status, values = hallucination_row(*sets("", "ab"))
    assert (status, values["rcharm"], "charm" in values) == ("nothing_generated", 1, False)
    assert hallucination_row(*sets("ab", "")) == ("nothing_to_find", {})
    assert hallucination_row(*sets("", "")) == ("nothing_to_find", {})
    assert hallucination_row(None, frozenset("a")) == ("no_entities_known", {})
    assert hallucination_row(frozenset("a"), None) == ("no_entities_known", {})


def test_captions_in_memory():
    predictions = ["a ketone and an ester", "", "a pyridine", "It is white."]
    references = ["a ketone", "a ketone", "It is white.", "It is white."]
    with load_extractor("offline") as extractor:
        scores, counts = score_hallucination(predictions, references, extractor)
        assert (scores["charm"], scores["rcharm"]) == (0.5, 0.5)
        assert "charm_molecule" not in scores
        assert counts == {
            "rows": 4,
            "scored": 1,
            "nothing_generated": 1,
            "nothing_to_find": 2,
            "no_entities_known": 0,
            "not_scored": 0,
        }
        molecules = ["CC(C)=O", "CC(C)=O", "C", "C"]
        assert score_hallucination(predictions, references, extractor, molecules)[0][
            "charm_molecule"
        ] == pytest.approx(0.5)  # acetone is no ester
        molecules[0] = "CC(=O)COC(C)=O"
        scores, _ = score_hallucination(predictions, references, extractor, molecules)
        assert (scores["charm"], scores["charm_molecule"]) == (0.5, 0)
        assert score_hallucination([], [], extractor) == ({}, dict.fromkeys(counts, 0))


def test_no_order_of_captions_matters():
    words = ["ketone", "ester", "pyridine", "chlorine", "steroid", "furan", "white"]
    draw = random.Random(0)
    pairs = [
        (" ".join(draw.sample(words, draw.randint(0, 5))), " ".join(draw.sample(words, 3)))
        for _ in range(50)
    ]
    with load_extractor("offline") as extractor:
        scores, counts = score_hallucination(*zip(*pairs, strict=True), extractor)
        draw.shuffle(pairs)
        shuffled, again = score_hallucination(*zip(*pairs, strict=True), extractor)
    assert shuffled == pytest.approx(scores)
    assert counts == again


# Files


def evaluate(path, out, entities="offline"):
    with load_extractor(entities) as extractor:
        options = ScoreOptions("captions", "whitespace", entities=extractor)
        report = score_predictions(path, options, out)
    for counts in (report["counts"], report["entity_counts"]):
        assert counts["rows"] == sum(n for name, n in counts.items() if name != "rows")
    assert report["counts"]["rows"] == report["entity_counts"]["rows"]
    return report


ROWS = [
    b"CC(C)=O\ta ketone\ta ketone and an ester",
    b"C\ta ketone\t",
    b"C\tIt is white.\ta ketone",
    b'C\ta "ketone"\t\xe2\x80\x9cketones\xe2\x80\x9d',
    b"C\t\ta ketone",
    b"C\ta ketone",
    b"C\ta ketone\ta\tketone",
    b"C\ta ketone\t\xff\xfe",
    b"?(\tan ester\ta ketone",
]


def test_every_row_of_a_file_is_in_one_count(tmp_path):
    path = tmp_path / "captions.tsv"
    path.write_bytes(b"SMILES\tground truth\toutput\n" + b"\n".join(ROWS) + b"\n")
    report = evaluate(path, tmp_path / "out")
    counts = {"scored": 3, "nothing_generated": 1, "nothing_to_find": 1, "not_scored": 4}
    assert report["entity_counts"] == {"rows": 9, "no_entities_known": 0, **counts}
    scores = report["scores"]
    assert scores["charm"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert scores["rcharm"] == pytest.approx((0 + 1 + 0 + 1) / 4)
    assert scores["charm_molecule"] == scores["charm"]  # acetone is no ester, "?(" no molecule
    assert report["manifest"]["entities"] == "offline"
    rows = pq.read_table(tmp_path / "out/rows.parquet").to_pylist()
    assert [row["entity_status"] for row in rows[:3]] == [
        "scored",
        "nothing_generated",
        "nothing_to_find",
    ]
    assert [row["charm"] for row in rows] == [0.5, None, None, 0, *[None] * 4, 1]
    text = (tmp_path / "out/report.md").read_text()
    assert "| charm ↓ |" in text
    assert "| nothing_generated | 1 |" in text
    assert "Captions and their entities" in (tmp_path / "out/report.html").read_text()


def test_files_without_rows_or_molecules(tmp_path):
    path = tmp_path / "captions.tsv"
    path.write_text("ground truth\toutput\n")
    report = evaluate(path, tmp_path / "none")
    assert (report["scores"], report["entity_counts"]["rows"]) == ({}, 0)
    path.write_text("ground truth\toutput\na ketone\ta furan\n")
    report = evaluate(path, tmp_path / "one")
    assert (report["scores"]["charm"], report["scores"]["rcharm"]) == (1, 1)
    assert "SMILES" in report["manifest"]["absent"]["charm_molecule"]


def test_two_files_are_compared(tmp_path):
    truths = ["a ketone", "an ester", "a furan", "a steroid"] * 5
    for name, guesses in (("a", ["a ketone"] * 20), ("b", truths)):
        rows = "".join(f"{t}\t{g}\n" for t, g in zip(truths, guesses, strict=True))
        (tmp_path / f"{name}.tsv").write_text("ground truth\toutput\n" + rows)
        evaluate(tmp_path / f"{name}.tsv", tmp_path / name)
    found = {each.name: each for each in compare(tmp_path / "a", tmp_path / "b").differences}
    assert (found["charm"].a, found["charm"].b, found["charm"].change.clear) == (0.75, 0, True)
    assert (found["rcharm_pooled"].a, found["rcharm_pooled"].b) == (0.75, 0)


def test_entities_from_a_file(tmp_path):
    path = tmp_path / "captions.tsv"
    path.write_text("ground truth\toutput\nx\ty\nx\ty\nx\ty\n")
    known = tmp_path / "entities.jsonl"
    rows = [("abc", "bcde"), None, ("a", "a")]
    known.write_text(
        "".join(
            json.dumps({"row": number, "prediction": [*row[0]], "reference": [*row[1]]}) + "\n"
            for number, row in enumerate(rows, 1)
            if row
        )
    )
    report = evaluate(path, tmp_path / "out", f"file:{known}")
    assert report["scores"]["charm"] == pytest.approx(1 / 6)
    assert report["entity_counts"]["no_entities_known"] == 1


def test_entities_from_a_service(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path = tmp_path / "captions.tsv"
    path.write_text("ground truth\toutput\nketone\tketone furan\nketone\tbad\n")

    def answer(body, _):
        if body["text"] == "bad":
            return Reply({"error": "too long"}, 413)
        words = [{"mention": w, "obj": "drug", "prob": 1} for w in body["text"].split()]
        return {"annotations": words}

    with fake_service(answer) as server:
        arguments = [str(path), "--task", "captions", "--tokenizer", "whitespace"]
        arguments += ["--entities", f"bern2:{server.url}", "--out", str(tmp_path / "out")]
        arguments += ["--entities-per-minute", "6000"]
        assert run(["score", *arguments]) == 0
        assert len(server.bodies) == 3
        assert run(["score", *arguments]) == 0
        assert len(server.bodies) == 4  # only the failed one again
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["scores"]["charm"] == 0.5
    assert report["entity_counts"]["no_entities_known"] == 1
    assert "charm\t0.5000" in capsys.readouterr().out


def test_no_network_unless_asked(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    path = tmp_path / "captions.tsv"
    path.write_text("ground truth\toutput\na ketone\ta furan\n")
    evaluate(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("task", "entities", "part"),
    [
        ("captions", "ofline", "did you mean 'offline'?"),
        ("captions", "bern2:nowhere", "is not an http(s) address"),
        ("captions", "file:nowhere.tsv", "no such file"),
        ("motifs", "offline", "--task captions"),
    ],
)
def test_usage_errors(tmp_path, task, entities, part, capsys):
    path = tmp_path / "rows.tsv"
    path.write_text("ground truth\toutput\n1\t1\n")
    arguments = [str(path), "--task", task, "--tokenizer", "whitespace"]
    arguments += ["--entities", entities, "--out", str(tmp_path / "out")]
    assert run(["score", *arguments]) == 2
    assert part in capsys.readouterr().err


def test_options_without_effect_are_refused(tmp_path, capsys):
    path = tmp_path / "rows.tsv"
    path.write_text("ground truth\toutput\nx\tx\n")
    arguments = ["score", str(path), "--task", "captions"]
    arguments += ["--tokenizer", "whitespace", "--out", str(tmp_path / "out")]
    assert run([*arguments, "--entities", "offline", "--entities-per-minute", "5"]) == 2
    assert run([*arguments, "--entities-answers", "x.jsonl"]) == 2
    assert "only with --entities bern2:URL" in capsys.readouterr().err
    assert run(["evaluate", "--entities", f"file:{path}"]) == 2
    assert "only with `collamo score`" in capsys.readouterr().err


def test_the_statuses_are_those_that_are_counted():
    with load_extractor("offline") as extractor:
        assert list(score_hallucination([], [], extractor)[1]) == ["rows", *STATUSES]
