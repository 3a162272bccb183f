import numpy as np
import pytest

from collamo.training.sampler import EpochSampler


class Items:
    """So many items of well mixed lengths."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def length(self, index):
        return (index * 7919) % self.count


def sampler(data, **options):
    return EpochSampler(data, **{"seed": 3, "batch_size": 2, "group_by_length": False, **options})


@pytest.mark.parametrize("group", [False, True])
def test_each_pass_visits_every_item_once_in_a_new_order(group):
    data = Items(9)
    order = sampler(data, group_by_length=group)
    passes = []
    for epoch in range(6):
        order.epoch = epoch
        items = list(order)
        assert sorted(items) == list(range(epoch * len(data), (epoch + 1) * len(data)))
        assert list(order) == items
        passes.append(tuple(i % len(data) for i in items))
    assert len(set(passes)) > 3


def test_grouping_puts_like_lengths_together():
    data = Items(400)
    order = np.array(list(sampler(data, batch_size=4, group_by_length=True)))
    assert sorted(order) == list(range(400))
    lengths = np.array([data.length(i) for i in order]).reshape(-1, 4)
    assert np.ptp(lengths, axis=1).max() < 30  # of 400, shuffled batches spread over about 240
    assert abs(np.corrcoef(lengths.mean(1), np.arange(100))[0, 1]) < 0.3  # batches are shuffled
