"""Answers to the questions of a split: scores, counts, penalties, by hand."""

import pytest
from handmade import count, logp

from collamo.data.tasks import TaskExample
from collamo.evaluation.entities.loading import load_extractor
from collamo.evaluation.examine.baselines import TrainStatistics
from collamo.evaluation.examine.scores import (
    LARGEST_SCALED_ERROR,
    count_entities,
    count_statuses,
    split_scores,
    target_scores,
)
from collamo.evaluation.examine.split_scorer import SplitScorer
from collamo.evaluation.statistics import Sums

TEXT = "an aromatic molecule with one ring and two groups"


def scored(examples, answers, train=(), **options):
    return SplitScorer(examples, TrainStatistics.count(train), **options).score(answers)


def scores(examples, answers, train=(), **options):
    """Return the scores of answers to one task, and the counts of its rows."""
    rows = scored(examples, answers, train, **options)
    sums = Sums()
    for row in rows:
        sums.add(row.values)
    task = examples[0].task
    counts = count_statuses(task, rows)
    assert counts["rows"] == len(examples) == sum(counts.values()) - counts["rows"]
    return split_scores(task, sums), counts


def test_errors_are_scaled_by_the_train_spread_of_each_target():
    train = [logp(0, 0.0), logp(1, 2.0), logp(0, 0.0, "weight"), logp(1, 200.0, "weight")]
    # errors 1 (spread 1) and 50 (spread 100): 1.0 and 0.5
    found, _ = scores([logp(7, 1.0), logp(8, 100.0, "weight")], ["2.00", "150"], train)
    assert found["scaled_mae"] == found["scaled_error"] == pytest.approx(0.75)
    assert "mae" not in found  # two units do not add up


def test_unparsed_answers_are_wrong_and_charged_the_worse_of_two_guesses():
    train = [logp(0, 0.0), logp(1, 2.0)]  # mean 1, spread 1, "0.00" first
    found, counts = scores([logp(7, 3.0), logp(8, 3.0)], ["3.00", "no idea"], train)
    assert (counts["scored"], counts["unparsed_prediction"]) == (1, 1)
    assert (found["exact"], found["parsed"], found["scaled_mae"]) == (0.5, 0.5, 0.0)
    assert found["scaled_error"] == pytest.approx((0 + 3) / 2)
    low, _ = scores([logp(8, -1.0)], [""], train)
    assert low["scaled_error"] == pytest.approx(2)  # the mean is further off


def test_one_answer_without_measure_does_not_decide_the_mean():
    train = [logp(0, 0.0), logp(1, 2.0)]  # spread 1
    found, _ = scores([logp(7, 1.0), logp(8, 1.0)], ["111111", "1.00"], train)
    assert found["scaled_error"] == found["scaled_mae"] == LARGEST_SCALED_ERROR / 2
    silent, _ = scores([logp(8, 111111.0)], [""], train)
    assert silent["scaled_error"] == LARGEST_SCALED_ERROR


def test_silence_never_beats_a_guess():
    examples = [logp(i, float(i**2)) for i in range(20)]
    train = TrainStatistics.count(examples)
    silent = scores(examples, [""] * 20, examples)[0]["scaled_error"]
    for guess in ("0.00", repr(train.mean["property_2d", "logp"])):
        assert silent >= scores(examples, [guess] * 20, examples)[0]["scaled_error"]


def test_garbage_answers_are_found_in_the_counts():
    examples = [count(i, i) for i in range(6)]
    answers = ["0", "many", " \n", None, "", "5"]
    found, counts = scores(examples, answers)
    assert counts == {
        "rows": 6,
        "scored": 2,
        "unparsed_prediction": 1,
        "empty_prediction": 2,
        "unparsed_reference": 0,
        "ambiguous_prediction": 0,
        "ambiguous_reference": 0,
        "not_asked": 1,
    }
    assert found == pytest.approx({"exact": 2 / 5, "mae": 0, "parsed": 2 / 5})
    with pytest.raises(ValueError, match="3 answers for 6 questions"):
        scored(examples, ["0", "1", "2"])


def test_units_in_answers_are_converted_as_in_a_predictions_file():
    gap = TaskExample(0, "measured", "gap", "What is the gap in eV?", "6.8", 6.8, "eV")
    (row,) = scored([gap], ["0.25 Hartree"], [gap])
    assert row.values["mae"] == pytest.approx(0.25 * 27.211386 - 6.8, abs=1e-5)
    (row,) = scored([gap], ["6800 meV"], [gap])
    assert row.values["exact"] == 1
    sums = Sums()
    sums.add(scored([gap], ["7.8"], [gap])[0].values)
    found = target_scores("measured", "eV", sums)
    assert (found["mae"], found["mae_ev"]) == (pytest.approx(1), pytest.approx(1))
    assert found["mae_hartree"] == pytest.approx(1 / 27.211386)


def test_a_target_without_spread_or_without_training_has_no_scaled_error():
    examples = [logp(2, 5.0)]
    assert "scaled_error" not in scores(examples, ["6"], [logp(0, 5.0), logp(1, 5.0)])[0]
    scorer = SplitScorer(examples, TrainStatistics.count([]))
    (row,) = scorer.score(["6"])
    assert row.values == {"parsed": 1, "mae": 1, "exact": 0}
    assert "the train split has no such question" in scorer.absent["logp: mae_penalised, scaled"]


def test_a_property_may_be_text():
    formula = TaskExample(0, "property_2d", "formula", "Formula?", "C2H6O")
    rows = scored([formula] * 3, [" C2H6O\n", "c2h6o", ""], [formula])
    assert [row.values["exact"] for row in rows] == [1, 0, 0]
    assert [row.status for row in rows] == ["scored", "scored", "empty_prediction"]


def test_captions_and_names_are_scored_as_in_a_predictions_file():
    captions = [TaskExample(i, "caption", "composed", "Describe it.", TEXT) for i in range(2)]
    assert scores(captions, [TEXT, TEXT])[0]["bleu4"] == pytest.approx(1)
    half, counts = scores(captions, [TEXT, " "])
    assert counts["empty_prediction"] == 1
    assert half["bleu4"] < 1
    assert half["rouge1"] == pytest.approx(0.5)
    names = [TaskExample(0, "iupac_name", "iupac_name", "Name?", "ethanol")]
    assert scores(names, ["ethanol"])[0]["exact"] == 1


def test_the_manifest_names_the_tokeniser_and_what_is_absent():
    scorer = SplitScorer([TaskExample(0, "caption", "given", "?", TEXT)], TrainStatistics.count([]))
    assert scorer.about == {"tokenizer": "13a", "tokenizer_sha256": None}
    assert "--wordnet" in scorer.absent["meteor"]


def test_captions_of_a_split_have_their_entities_scored():
    examples = [TaskExample(i, "caption", "given", "?", "It is a ketone.") for i in range(2)]
    said = ["It is a ketone and an ester.", None]
    with load_extractor("offline") as extractor:
        options = {"entities": extractor, "smiles": {0: "CC(=O)COC(C)=O", 1: "CC(C)=O"}}
        found, _ = scores(examples, said, **options)
        counts = count_entities(scored(examples, said, **options))
    assert (found["charm"], found["rcharm"], found["charm_molecule"]) == (0.5, 0, 0)
    assert (counts["rows"], counts["scored"], counts["not_scored"]) == (2, 1, 1)


def test_no_questions_and_no_answers():
    assert scored([], []) == []
    found, counts = scores([count(0, 1)], [None])
    assert (found, counts["not_asked"]) == ({}, 1)
