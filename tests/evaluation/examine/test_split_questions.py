"""Which questions of a split are asked."""

import pytest
from handmade import count, logp

from collamo.evaluation.examine.split_questions import choose_questions


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_the_limit_is_per_task_and_follows_the_seed(limit):
    examples = [*(count(i, i % 3) for i in range(60)), *(logp(i, float(i)) for i in range(60))]
    chosen = choose_questions(examples, limit, seed=3)
    assert chosen == choose_questions(examples, limit, seed=3)
    for task in ("motif_count", "property_2d"):
        assert sum(e.task == task for e in chosen) == min(limit, 60)
    assert choose_questions(examples, None, 0) == examples
