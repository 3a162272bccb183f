"""What the numbers say, in words: does the model beat its baselines, and what does it read?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

from collamo.evaluation.examine.reliance import (
    ALONE,
    MODEL,
    SAME_SIZE,
    SCATTERED,
    WITHOUT,
    WRONG_MOLECULE,
    ZEROED,
    ZEROED_ALONE,
)
from collamo.evaluation.examine.scores import Scores, primary_metric
from collamo.evaluation.report.page import metric_name
from collamo.evaluation.statistics import Estimate, higher_is_better

MOST_COMMON = "most common answer"
TRAIN_MEDIAN = "train median"
# The two opponents of every verdict; the median is a third, stronger one for absolute errors,
# reported beside them.
BASELINES = (MOST_COMMON, WRONG_MOLECULE)
TAKEN_AWAY = (SAME_SIZE, *WITHOUT, SCATTERED, *ZEROED, *ZEROED_ALONE)


@dataclass(frozen=True)
class Verdict:
    """Whether the model beats its opponents on one task, and whether it reads the molecule.

    ``beaten``: interval against interval. ``depends``: what was taken away → clearly "worse",
    clearly "better" or "no clear change", by the paired interval of the change.
    """

    task: str
    metric: str
    beaten: dict[str, bool]
    depends: dict[str, str]
    sentence: str
    reading: str

    @property
    def beats_both(self) -> bool:
        """Return whether both baselines are beaten with non-overlapping 95 % intervals."""
        return all(self.beaten[name] for name in BASELINES)


def verdict_on(task: str, numeric: bool, scores: Mapping[str, Scores]) -> Verdict:
    """Return the verdict on `task` from the scores of the model and of its opponents (by name).

    An opponent is beaten when the model's 95 % interval lies wholly on the better side of the
    opponent's; a change is clear when its paired 95 % interval excludes zero.
    """
    metric = primary_metric(task, numeric)
    mine = scores[MODEL].metrics.get(metric)
    relations = {
        name: _relation(mine, scores[name].metrics.get(metric), metric)
        for name in (*BASELINES, TRAIN_MEDIAN)
        if name in scores
    }
    changes = {
        name: change
        for name in (*TAKEN_AWAY, *ALONE)
        if name in scores and (change := scores[name].change) is not None
    }
    depends = {name: dependence(change, metric) for name, change in changes.items()}
    return Verdict(
        task,
        metric,
        {name: relation == "beats" for name, relation in relations.items()},
        depends,
        _sentence(task, metric, mine, relations, scores),
        _reading(task, metric, depends, changes),
    )


def _relation(mine: Estimate | None, other: Estimate | None, metric: str) -> str:
    """Return how the model stands to an opponent: beats, overlaps, loses or unknown."""
    if mine is None or other is None:
        return "unknown"
    better, worse = mine.above(other), mine.below(other)
    if not higher_is_better(metric):
        better, worse = worse, better
    return "beats" if better else "loses" if worse else "overlaps"


def dependence(change: Estimate, metric: str) -> str:
    """Return what a change of the primary score says: "worse", "better" or "no clear change"."""
    if not change.clear:
        return "no clear change"
    return "better" if (change.value > 0) == higher_is_better(metric) else "worse"


_PHRASES = {
    "beats": "beats {}",
    "overlaps": "does NOT clearly beat {} (the intervals overlap)",
    "loses": "is WORSE than {}",
    "unknown": "cannot be compared with {} (nothing to score)",
}


def _sentence(
    task: str,
    metric: str,
    mine: Estimate | None,
    relations: Mapping[str, str],
    scores: Mapping[str, Scores],
) -> str:
    parts = [
        _PHRASES[relation].format(f"the {name} baseline, {_cell(scores[name].metrics.get(metric))}")
        for name, relation in relations.items()
    ]
    both = all(relations[name] == "beats" for name in BASELINES)
    head = "beats both baselines" if both else "does NOT beat both baselines"
    return f"{task}: {head}. {metric_name(metric)} {_cell(mine)}: the model {'; '.join(parts)}."


def _cell(estimate: Estimate | None) -> str:
    return "–" if estimate is None else str(estimate)


def _reading(
    task: str, metric: str, depends: Mapping[str, str], changes: Mapping[str, Estimate]
) -> str:
    """Return a sentence on what the answers depend on; "" where nothing was taken away."""
    if SAME_SIZE not in depends:
        return ""
    reads = depends[SAME_SIZE] == "worse"
    head = "reads the molecule" if reads else "does NOT clearly read the molecule"
    change = signed(changes[SAME_SIZE])
    text = f"{task}: {head}. Another one of its size changes {metric_name(metric)} by {change}"
    for word in ("worse", "no clear change", "better"):
        names = [
            f"{name} ({signed(changes[name])})"
            for name in TAKEN_AWAY[1:]
            if depends.get(name) == word
        ]
        if names:
            text += f"; {'clearly ' * (word != 'no clear change')}{word}: {', '.join(names)}"
    return text + "."


def signed(change: Estimate) -> str:
    """Return a change with its sign and interval, three digits behind the point.

    >>> signed(Estimate(-0.0143, -0.0341, 0.0047))
    '−0.014 [−0.034, +0.005]'
    """
    numbers = (f"{value:+.3f}".replace("-", "−") for value in astuple(change))
    return "{} [{}, {}]".format(*numbers)
