"""Baselines: wrong molecules are never the molecule itself, train answers are the most common."""

import numpy as np
import pytest
from handmade import count, logp

from collamo.errors import CollamoError
from collamo.evaluation.examine.baselines import (
    TrainStatistics,
    same_size_molecules,
    wrong_molecules,
)

IDENTITY = dict(enumerate(["a", "b", "a", "c", "d", "a"]))  # 0, 2 and 5 are the same structure
SIZES = dict(enumerate([3, 3, 3, 3, 7, 3]))


def drawn(rows, identity, seed, sizes=None):
    if sizes is None:
        return wrong_molecules(rows, identity, seed)
    return same_size_molecules(rows, identity, sizes, seed)


@pytest.mark.parametrize("sizes", [None, SIZES])
@pytest.mark.parametrize("seed", range(20))
def test_a_wrong_molecule_is_never_the_molecule_itself(seed, sizes):
    wrong = drawn(range(6), IDENTITY, seed, sizes)
    assert set(wrong) == set(range(6))
    assert all(IDENTITY[wrong[row]] != IDENTITY[row] for row in range(6))
    assert drawn(range(6)[::-1], IDENTITY, seed, sizes) == wrong


@pytest.mark.parametrize("sizes", [None, dict.fromkeys(range(30), 5)])
def test_wrong_molecules_follow_the_seed_and_need_two(sizes):
    identity = {i: str(i) for i in range(30)}
    once, again, other = (drawn(range(30), identity, s, sizes) for s in (0, 0, 1))
    assert once == again != other
    assert sorted(once.values()) == list(range(30))
    assert drawn(range(30)[::-1], identity, 0, sizes) == once  # whatever the order of the rows
    with pytest.raises(CollamoError, match="two different molecules, there is 1"):
        drawn([0, 1], {0: "a", 1: "a"}, 0, sizes)


def test_same_size_where_there_is_one_else_the_nearest():
    identity = {i: str(i) for i in range(7)}
    sizes = dict(enumerate([5, 5, 5, 9, 30, 31, 60]))
    for seed in range(10):
        partner = same_size_molecules(range(7), identity, sizes, seed)
        assert {sizes[partner[row]] for row in (0, 1, 2)} == {5}
        assert sizes[partner[3]] == 5
        assert (partner[4], partner[5], partner[6]) == (5, 4, 5)


def test_train_statistics_by_hand():
    train = TrainStatistics.count(
        [logp(0, 1.0), logp(1, 3.0), logp(2, 3.0), count(0, 2), count(1, 1)]
    )
    key = ("property_2d", "logp")
    assert train.most_common_answer(*key) == "3.00"
    assert train.median_answer(*key) == "3.0"
    assert train.mean[key] == pytest.approx(7 / 3)
    assert train.scale[key] == pytest.approx(np.sqrt(((4 / 3) ** 2 + 2 * (2 / 3) ** 2) / 3))
    # Two answers equally common: the first in the alphabet, on every machine.
    assert train.most_common_answer("motif_count", "hydroxyl group") == "1"


def test_an_unseen_target_gets_the_answer_of_its_task():
    train = TrainStatistics.count([count(0, 2), count(1, 2)])
    assert train.most_common_answer("motif_count", "amide") == "2"
    assert train.most_common_answer("caption", "x") == ""
    assert train.median_answer("motif_count", "amide") == "2"
