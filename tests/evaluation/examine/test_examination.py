"""A split examined by hand-made answers: verdicts, counts, files; the scores of a file."""

import json
import random
import re

import pyarrow.parquet as pq
import pytest
from handmade import count, logp

from collamo.data.tasks import TaskExample
from collamo.errors import UsageError
from collamo.evaluation.comparison import compare
from collamo.evaluation.examine.baselines import TrainStatistics
from collamo.evaluation.examine.examination import examine
from collamo.evaluation.examine.reliance import MODEL, SAME_SIZE, WRONG_MOLECULE, Answers
from collamo.evaluation.examine.results import make_report, write_rows
from collamo.evaluation.examine.split import fixed_answers
from collamo.evaluation.examine.split_report import show, write_split_report
from collamo.evaluation.examine.split_scorer import SplitScorer
from collamo.evaluation.examine.verdicts import MOST_COMMON
from collamo.evaluation.score.scorer import ScoreOptions
from collamo.evaluation.score.scoring import score_predictions

COUNTS = [count(i, i % 3) for i in range(60)]
VALUES = [logp(i, float(i)) for i in range(60)]
TRAIN = TrainStatistics.count([*COUNTS, *VALUES])
PAIRING = {"molecules": 60, "same_size": 60, "nearest_size": 0, "largest_difference": 0}


def examined(examples, right, wrong, **more):
    answers = {MODEL: Answers(right), WRONG_MOLECULE: Answers(wrong)}
    answers |= {name: Answers(texts) for name, texts in more.items()}
    answers |= fixed_answers(examples, TRAIN)
    smiles = {e.molecule: "C" for e in examples}
    return examine(examples, answers, SplitScorer(examples, TRAIN), smiles)


def written(found, out):
    """Write the report and the rows as `evaluate` does; return the report as read back."""
    out.mkdir()
    manifest = {"split": "test", "questions": len(found.examples), "molecules": 60, "units": {}}
    manifest |= {"same_size_pairing": PAIRING, "absent": {}, "versions": {}}
    report = make_report(found, manifest)
    write_rows(found, out)
    write_split_report(report, [], out)
    assert json.loads((out / "report.json").read_text()) == report
    return report


def verdict_of(found, task):
    return next(v for v in found.verdicts if v.task == task)


# Verdicts


def test_a_model_that_reads_the_molecule_beats_both_baselines():
    shifted = [str((i + 1) % 3) for i in range(60)]
    verdict = verdict_of(examined(COUNTS, [e.answer for e in COUNTS], shifted), "motif_count")
    assert verdict.beats_both
    assert "beats both baselines" in verdict.sentence
    assert "NOT" not in verdict.sentence


def test_a_model_that_ignores_the_molecule_is_told_so():
    same = ["0"] * 60
    found = examined(COUNTS, same, same, **{SAME_SIZE: same})
    verdict = verdict_of(found, "motif_count")
    assert not verdict.beats_both
    assert "does NOT beat both baselines" in verdict.sentence
    assert "overlap" in verdict.sentence
    assert "does NOT clearly read the molecule" in verdict.reading
    assert verdict.depends == {SAME_SIZE: "no clear change"}


def test_beating_one_baseline_is_not_beating_both():
    answers = [e.answer if e.molecule % 8 else "9" for e in COUNTS]
    verdict = verdict_of(examined(COUNTS, answers, answers), "motif_count")
    assert verdict.beaten[MOST_COMMON]
    assert not verdict.beaten[WRONG_MOLECULE]
    assert not verdict.beats_both


def test_a_worse_model_is_called_worse():
    verdict = verdict_of(examined(COUNTS, ["7"] * 60, [e.answer for e in COUNTS]), "motif_count")
    assert "is WORSE than the wrong molecule baseline" in verdict.sentence


def test_for_errors_less_is_better():
    far = [f"{(i + 30) % 60}" for i in range(60)]
    near = [f"{i + 0.5}" for i in range(60)]
    found = examined(VALUES, near, far, **{SAME_SIZE: far, "without 1d": near[::-1]})
    verdict = verdict_of(found, "property_2d")
    assert verdict.beats_both
    assert verdict.depends == {SAME_SIZE: "worse", "without 1d": "worse"}
    assert "property_2d: reads the molecule" in verdict.reading
    found = examined(VALUES, far, near, **{SAME_SIZE: near})
    assert verdict_of(found, "property_2d").depends == {SAME_SIZE: "better"}
    assert not verdict_of(found, "property_2d").beats_both


def test_a_small_change_is_clear_when_it_is_paired():
    """Far inside the interval of either score, and yet the same for all molecules."""
    mine = [f"{60 - i}" for i in range(60)]
    less = [f"{60 - i + (0.3 if i > 30 else -0.3)}" for i in range(60)]
    scores = examined(VALUES, mine, mine, **{"without 1d": less}).scores["property_2d"]
    metrics = [scores[name].metrics["scaled_error"] for name in (MODEL, "without 1d")]
    assert metrics[1].low < metrics[0].value < metrics[1].high
    assert scores["without 1d"].change.clear


def test_changes_compare_the_same_questions_only():
    """The one question that the variant is not asked is the model's only wrong one."""
    mine = ["9", *(e.answer for e in COUNTS[1:])]
    scores = examined(COUNTS, mine, mine, **{"3d only": [None, *mine[1:]]}).scores["motif_count"]
    assert scores["3d only"].metrics["exact"].value == 1 > scores[MODEL].metrics["exact"].value
    assert scores["3d only"].change.value == scores["3d only"].change.high == 0
    assert scores["3d only"].counts["not_asked"] == 1


def test_a_change_is_from_what_a_variant_is_held_against():
    """Two of the model's answers are right without 3D, and one of these two without Φ2d as well."""
    right = [e.answer for e in COUNTS]
    blind, blinder = [*right[:2], *["?"] * 58], [right[0], *["?"] * 59]
    answers = {
        MODEL: Answers(right),
        WRONG_MOLECULE: Answers(["?"] * 60),
        "without 3d": Answers(blind),
        "Φ2d zeroed without 3d": Answers(blinder, against="without 3d"),
    }
    scorer = SplitScorer(COUNTS, TrainStatistics.count(COUNTS))
    answers |= fixed_answers(COUNTS, TrainStatistics.count(COUNTS))
    scores = examine(COUNTS, answers, scorer, {}).scores["motif_count"]
    assert scores["without 3d"].change.value == pytest.approx(-58 / 60)
    assert scores["Φ2d zeroed without 3d"].change.value == pytest.approx(-1 / 60)


def test_nothing_to_score_is_no_victory():
    examples = [TaskExample(0, "iupac_name", "iupac_name", "Name?", "ethanol")]
    verdict = examined(examples, [None], ["x"]).verdicts[0]
    assert not verdict.beats_both
    assert "cannot be compared" in verdict.sentence


# Files


def test_every_question_is_in_one_count_and_garbage_is_found(tmp_path):
    answers = ["1", "many", "", None] * 30
    found = examined([*COUNTS, *VALUES], answers, ["2"] * 120, **{SAME_SIZE: ["2"] * 120})
    report = written(found, tmp_path / "out")
    for task in ("motif_count", "property_2d"):
        counts = report["counts"][task]
        assert counts["rows"] == 60 == sum(n for name, n in counts.items() if name != "rows")
        assert counts["unparsed_prediction"] == counts["empty_prediction"] == 15
        assert counts["not_asked"] == 15
        exact = report["variants"][task][MODEL]["metrics"]["exact"]
        assert exact["low"] <= report["scores"][task]["exact"] == exact["value"] <= exact["high"]
    rows = pq.read_table(tmp_path / "out/rows.parquet").to_pylist()
    assert [row["status"] for row in rows[:4]] == [
        "scored",
        "unparsed_prediction",
        "empty_prediction",
        "not_asked",
    ]
    assert [row["row"] for row in rows] == list(range(1, 121))
    others = pq.read_table(tmp_path / "out/variants.parquet").to_pylist()
    assert len(others) == 120 * (len(found.rows) - 1)
    assert {row["variant"] for row in others} == set(found.rows) - {MODEL}


def test_the_pages_hold_the_verdicts_and_the_chart(tmp_path, capsys):
    from rich.console import Console

    same = ["0"] * 120
    found = examined([*COUNTS, *VALUES], same, same, **{SAME_SIZE: same})
    report = written(found, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    page = (tmp_path / "out/report.html").read_text()
    for verdict in found.verdicts:
        assert verdict.sentence in text
        assert verdict.reading in text
        assert verdict.reading in page
    assert "](reliance.svg)" in text
    assert (tmp_path / "out/reliance.svg").read_text().startswith("<svg")
    assert "<svg" in page
    assert not re.search(r'(src|href)=(?!["\']#)', page)  # self-contained
    show(report, Console(width=200))
    shown = capsys.readouterr().out
    assert "does NOT beat both baselines" in shown
    assert "does NOT clearly read the molecule" in shown


def test_a_split_scores_as_the_same_answers_in_a_file(tmp_path):
    draw = random.Random(0)
    said = [draw.choice(["0", "1", "2 groups", "", "none at all", "12.5"]) for _ in range(60)]
    words = ["a", "ring", "and", "two", "groups", "with", "one", "acid"]
    captions = [
        TaskExample(i, "caption", "given", "?", " ".join(draw.choices(words, k=9)))
        for i in range(60)
    ]
    texts = [" ".join(draw.choices(words, k=7)) for _ in range(59)] + [""]
    for task, kind, examples, answers, options in (
        ("motif_count", "motifs", COUNTS, said, {}),
        ("property_2d", "property", VALUES, said, {"train_mean": {"logp": 29.5}}),
        ("caption", "captions", captions, texts, {"tokenizer": "13a"}),
    ):
        report = make_report(examined(examples, answers, answers), {})
        path = tmp_path / f"{task}.jsonl"
        rows = [
            {"target": e.target, "truth": e.answer, "answer": a}
            for e, a in zip(examples, answers, strict=True)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = score_predictions(path, ScoreOptions(kind, **options), tmp_path / task)
        assert file["counts"]["rows"] == 60
        for name, number in file["counts"].items():
            assert report["counts"][task].get(name, 0) == number
        assert report["shortfalls"][task] == file["shortfalls"]
        mine, its = report["scores"][task], file["scores"]
        if kind == "property":
            mine, its = mine["per_property"]["logp"], its["per_property"]["logp"]
        its.pop("per_motif", None)
        assert {name: mine[name] for name in its} == pytest.approx(its)


def test_no_score_knows_the_order_of_the_questions():
    answers = [str(i % 4) for i in range(60)]
    order = list(range(60))
    random.Random(1).shuffle(order)
    one = make_report(examined(COUNTS, answers, answers), {})["scores"]
    turned = [answers[i] for i in order]
    other = make_report(examined([COUNTS[i] for i in order], turned, turned), {})["scores"]
    assert one == other


def test_one_question(tmp_path):
    report = written(examined(COUNTS[:1], ["0"], ["1"], **{SAME_SIZE: ["1"]}), tmp_path / "out")
    assert report["scores"]["motif_count"]["exact"] == 1
    assert report["variants"]["motif_count"][SAME_SIZE]["change"]["value"] == -1


def test_two_models_are_compared_on_their_own_answers(tmp_path):
    right = [e.answer for e in COUNTS] + ["0"] * 60
    worse = [str(i) for i in range(60)] + ["0"] * 60
    examples = [*COUNTS, *VALUES]
    for name, answers in (("a", worse), ("b", right)):
        written(examined(examples, answers, answers), tmp_path / name)
    found = compare(tmp_path / "a", tmp_path / "b")
    by_name = {each.name: each for each in found.differences}
    exact = by_name["motif_count › exact"]
    assert (exact.a, exact.b) == (pytest.approx(3 / 60), 1)
    assert exact.change.clear
    assert by_name["property_2d › scaled_error"].change.high == 0
    assert found.changed == list(range(4, 61))
    assert found.rows == 120
    examples[0] = count(0, 2)
    written(examined(examples, right, right), tmp_path / "c")
    with pytest.raises(UsageError, match="'reference'"):
        compare(tmp_path / "b", tmp_path / "c")
