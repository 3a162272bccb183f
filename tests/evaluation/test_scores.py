import numpy as np
import pytest
from handmade import Example, count, logp

from collamo.errors import CollamoError
from collamo.evaluation.baselines import TrainStatistics, wrong_molecules
from collamo.evaluation.scores import primary_metric, score


def test_train_statistics_by_hand():
    train = TrainStatistics.of([logp(0, 1.0), logp(1, 3.0), logp(2, 3.0), count(0, 2), count(1, 1)])
    key = ("property_2d", "logp")
    assert train.most_common_answer(*key) == "3.00"
    assert train.median_answer(*key) == "3.0"
    assert train.mean[key] == pytest.approx(7 / 3)
    assert train.scale[key] == pytest.approx(np.sqrt(((4 / 3) ** 2 + 2 * (2 / 3) ** 2) / 3))
    # Two answers equally common: the first in the alphabet, on every machine.
    assert train.most_common_answer("motif_count", "hydroxyl group") == "1"


def test_an_unseen_target_gets_the_answer_of_its_task():
    train = TrainStatistics.of([count(0, 2), count(1, 2)])
    assert train.most_common_answer("motif_count", "amide") == "2"
    assert train.most_common_answer("caption", "x") == ""
    assert train.median_answer("motif_count", "amide") == "2"


def test_errors_are_scaled_by_the_train_spread_of_each_target():
    train = TrainStatistics.of(
        [logp(0, 0.0), logp(1, 2.0), logp(0, 0.0, "weight"), logp(1, 200.0, "weight")]
    )
    # errors 1 (spread 1) and 50 (spread 100): 1.0 and 0.5
    found = score([logp(7, 1.0), logp(8, 100.0, "weight")], ["2.00", "150"], train)
    assert found.metrics["scaled_mae"].value == pytest.approx(0.75)
    assert found.metrics["scaled_error"].value == pytest.approx(0.75)
    assert "mae" not in found.metrics  # two units do not add up
    one = score([logp(7, 1.0), logp(8, 4.0)], ["2.00", "1"], train)
    assert one.metrics["mae"].value == pytest.approx(2.0)


def test_unparsed_answers_are_wrong_and_charged_the_worse_of_two_guesses():
    train = TrainStatistics.of([logp(0, 0.0), logp(1, 2.0)])  # mean 1, spread 1, "0.00" first
    found = score([logp(7, 3.0), logp(8, 3.0)], ["3.00", "no idea"], train)
    assert (found.questions, found.scored, found.unparsed, found.skipped) == (2, 1, 1, 0)
    assert found.metrics["exact_match"].value == 0.5
    assert found.metrics["scaled_mae"].value == 0.0
    assert found.metrics["scaled_error"].value == pytest.approx((0 + 3) / 2)
    low = score([logp(8, -1.0)], [""], train)
    assert low.metrics["scaled_error"].value == pytest.approx(2)  # the mean is further off


def test_silence_never_beats_a_guess():
    train = TrainStatistics.of([logp(i, float(i**2)) for i in range(20)])
    examples = [logp(i, float(i**2)) for i in range(20)]
    silent = score(examples, [""] * 20, train).metrics["scaled_error"].value
    for guess in ("0.00", repr(train.mean["property_2d", "logp"])):
        assert silent >= score(examples, [guess] * 20, train).metrics["scaled_error"].value


def test_rows_in_are_rows_scored_unparsed_and_skipped():
    examples = [count(i, i) for i in range(4)]
    train = TrainStatistics.of(examples)
    found = score(examples, ["0", "?", None, "1"], train)
    assert (found.questions, found.scored, found.unparsed, found.skipped) == (4, 2, 1, 1)
    assert found.metrics["exact_match"].value == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="3 answers for 4 questions"):
        score(examples, ["0", "1", "2"], train)


def test_a_target_without_spread_is_left_out_of_the_scaled_mean():
    train = TrainStatistics.of([logp(0, 5.0), logp(1, 5.0)])
    found = score([logp(2, 5.0)], ["6"], train)
    assert found.metrics["mae"].value == 1.0
    assert found.metrics["scaled_mae"].value is None


def test_captions_get_bleu_and_empty_ones_are_unparsed():
    text = "an aromatic molecule with one ring and two groups"
    examples = [Example(i, "caption", "caption", "Describe it.", text) for i in range(2)]
    train = TrainStatistics.of(examples)
    assert score(examples, [text, text], train).metrics["bleu"].value == pytest.approx(100)
    half = score(examples, [text, " "], train)
    assert half.unparsed == 1
    assert half.metrics["bleu"].value < 100


def test_primary_metric_of_each_kind_of_task():
    assert primary_metric("caption", False) == "bleu"
    assert primary_metric("motif_count", True) == "exact_match"
    assert primary_metric("property_3d", True) == "scaled_error"
    assert primary_metric("iupac_name", False) == "exact_match"


@pytest.mark.parametrize("seed", range(20))
def test_a_wrong_molecule_is_never_the_molecule_itself(seed):
    rows = list(range(6))
    identity = dict(enumerate(["a", "b", "a", "c", "d", "a"]))  # 0, 2 and 5 are the same structure
    wrong = wrong_molecules(rows, identity, seed)
    assert set(wrong) == set(rows)
    assert all(identity[wrong[row]] != identity[row] for row in rows)


def test_wrong_molecules_follow_the_seed_and_need_two():
    identity = {i: str(i) for i in range(30)}
    once, again, other = (wrong_molecules(range(30), identity, s) for s in (0, 0, 1))
    assert once == again != other
    assert sorted(once.values()) == list(range(30))
    with pytest.raises(CollamoError, match="two different molecules, there is 1"):
        wrong_molecules([0, 1], {0: "a", 1: "a"}, 0)
