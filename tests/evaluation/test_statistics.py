import numpy as np
import pytest

from collamo.evaluation.statistics import (
    Estimate,
    Sums,
    UnitSums,
    differences,
    estimates,
    resampled,
)


def exact(sums):
    mean = sums.mean("exact")
    return {} if mean is None else {"exact": mean}


def unit_sums(values, units, order=None):
    table = np.array(values, dtype=float).reshape(-1, 1)
    return UnitSums(["exact"], table, units, list(dict.fromkeys(units)) if order is None else order)


def estimate(values, units, **options):
    return estimates(resampled([unit_sums(values, list(units))], exact, **options)[0])["exact"]


def test_the_value_is_the_mean_and_the_interval_holds_it():
    right = [1, 0, 1, 1, 0, 1, 0, 1, 1, 1] * 10
    found = estimate(right, range(len(right)))
    assert found.value == pytest.approx(0.7)
    assert found.low < 0.7 < found.high
    # Normal approximation: ± 1.96 √(0.7·0.3/100) = ± 0.0898
    assert found.high - found.low == pytest.approx(2 * 0.0898, rel=0.15)


def test_questions_of_one_molecule_are_drawn_together():
    """100 equal rows of each of 10 molecules carry the information of 10 rows, not of 1,000."""
    molecules = np.repeat(np.arange(10), 100).tolist()
    rows = [float(m < 5) for m in molecules]
    together, apart = estimate(rows, molecules), estimate(rows, range(1000))
    assert together.value == apart.value == 0.5
    assert together.high - together.low > 5 * (apart.high - apart.low)


def test_molecules_with_more_questions_weigh_more():
    assert estimate([1, 1, 1, 0], ["a", "a", "a", "b"]).value == pytest.approx(3 / 4)


def test_the_same_seed_gives_the_same_interval():
    rows = np.random.default_rng(0).normal(size=50)
    once, again, other = (estimate(rows, range(50), seed=s) for s in (1, 1, 2))
    assert once == again != other
    assert once.value == pytest.approx(other.value)


def test_a_statistic_that_does_not_apply_counts_nothing():
    found = unit_sums([1.0, np.nan, np.nan], ["a", "a", "b"])
    assert exact(found.weighted(np.ones((1, 2)))[0]) == {"exact": 1.0}
    assert estimate([np.nan, 1.0], ["a", "b"]) == Estimate(
        1, 1, 1
    )  # a draw of a alone says nothing
    assert estimates(resampled([unit_sums([np.nan], ["a"])], exact)[0]) == {}
    assert resampled([unit_sums([], [])], exact) == [[{}]]


def test_differences_are_paired():
    """Two answers that are right and wrong together differ by a constant in every resample."""
    rows = np.random.default_rng(0).normal(size=60)
    order = list(range(60))
    one, other = resampled(
        [unit_sums(rows, order), unit_sums(rows[::-1] + 0.1, order[::-1], order)], exact
    )
    found = differences(one, other)["exact"]
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert found.clear
    assert not Estimate(0.1, -0.1, 0.3).clear


def test_sums_do_not_know_an_order():
    rows = [{"a": 1.0}, {"a": 2.0, "b": 3.0}, {}]
    forward, backward = Sums(), Sums()
    for row in rows:
        forward.add(row)
    for row in rows[::-1]:
        backward.add(row)
    assert forward.totals == backward.totals
    assert (forward.mean("a"), forward.mean("b"), forward.mean("c")) == (1.5, 3.0, None)


def test_above_and_below_need_a_gap():
    low, high = Estimate(1, 0.5, 1.5), Estimate(3, 2.0, 4.0)
    touching = Estimate(1.75, 1.5, 2.0)
    assert high.above(low)
    assert low.below(high)
    assert not low.above(high)
    assert not touching.above(low)
    assert not touching.below(high)
