import numpy as np
import pytest

from collamo.evaluation.statistics import Estimate, bootstrap, ratio


def test_the_value_is_the_mean_and_the_interval_holds_it():
    right = [1, 0, 1, 1, 0, 1, 0, 1, 1, 1] * 10
    estimate = bootstrap([[r, 1] for r in right], range(len(right)), ratio)
    assert estimate.value == pytest.approx(0.7)
    assert estimate.low < 0.7 < estimate.high
    # Normal approximation: ± 1.96 √(0.7·0.3/100) = ± 0.0898
    assert estimate.high - estimate.low == pytest.approx(2 * 0.0898, rel=0.15)
    assert (estimate.rows, estimate.molecules) == (100, 100)


def test_questions_of_one_molecule_are_drawn_together():
    """100 equal rows of each of 10 molecules carry the information of 10 rows, not of 1,000."""
    molecules = np.repeat(np.arange(10), 100)
    rows = [[float(m < 5), 1] for m in molecules]
    together = bootstrap(rows, molecules.tolist(), ratio)
    apart = bootstrap(rows, range(1000), ratio)
    assert together.value == apart.value == 0.5
    assert together.high - together.low > 5 * (apart.high - apart.low)


def test_molecules_with_more_questions_weigh_more():
    assert bootstrap([[3, 3], [0, 1]], ["a", "b"], ratio).value == pytest.approx(3 / 4)


def test_the_same_seed_gives_the_same_interval():
    rows = [[value, 1] for value in np.random.default_rng(0).normal(size=50)]
    once, again, other = (bootstrap(rows, range(50), ratio, seed=s) for s in (1, 1, 2))
    assert once == again != other
    assert once.value == other.value


def test_nothing_to_score_has_no_value():
    assert bootstrap([], [], ratio) == Estimate(None, None, None, 0, 0)
    assert bootstrap([[0, 0]], ["a"], ratio).value is None
    with pytest.raises(ValueError, match="2 rows of statistics for 1 molecules"):
        bootstrap([[1, 1], [1, 1]], ["a"], ratio)


def test_above_and_below_need_a_gap():
    low, high = Estimate(1, 0.5, 1.5, 9, 9), Estimate(3, 2.0, 4.0, 9, 9)
    touching = Estimate(1.75, 1.5, 2.0, 9, 9)
    assert high.above(low)
    assert low.below(high)
    assert not low.above(high)
    assert not touching.above(low)
    assert not touching.below(high)
    assert not Estimate(None, None, None, 0, 0).below(high)
