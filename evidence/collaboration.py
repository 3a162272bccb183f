"""Do the views gain from each other? With and without Co-Proj, read with all views and with one."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from evidence.claim import Claim, Finding, Metrics, Run, Workplace
from evidence.ledger import Ledger
from evidence.views import SEEDS, VIEWS, largest_size, measure, percent, probed, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from evidence.views import Probed

#: Whether the projector collaborates; what stands against it is ours, see `ProjectorConfig`.
PROJECTORS = {"Co-Proj": True, "a projector a view": False}


def runs(size: str) -> list[Run]:
    """Return both projectors with each seed."""
    return [
        {"projector": projector, "seed": seed}
        for seed, projector in product(range(SEEDS[size]), PROJECTORS)
    ]


def measure_projector(run: Run, place: Workplace) -> Metrics:
    """Train one projector; skills as in `evidence.views.measure`."""
    collaboration = PROJECTORS[str(run["projector"])]
    return measure(run, place, {"projector_config.collaboration": collaboration})


def report(ledger: Ledger) -> Finding:
    """Compare the two, and what each keeps when it is asked with one view."""
    size = largest_size(ledger)
    found = {name: probed(ledger, size=size, projector=name) for name in PROJECTORS}
    variants = {name: each for name, each in found.items() if each is not None}
    sentences = [_kept(name, each) for name, each in variants.items()]
    if len(variants) == 2:
        sentences.insert(0, _gain(*variants.values()))
    verdict = " ".join(sentences)
    return Finding(table(variants, ledger, size), verdict, lambda axes: _draw(axes, variants))


def _gain(with_it: Probed, without: Probed) -> str:
    shared = sorted(set(with_it.seeds) & set(without.seeds))
    gain = with_it.of(shared).better(without.of(shared), "all views")
    word = "gains" if gain.low > 0 else "loses" if gain.high < 0 else "makes no clear difference,"
    numbers = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    return f"With all views Co-Proj {word} {numbers} of skill ({len(shared)} seeds)."


def _kept(name: str, runs: Probed) -> str:
    parts = [f"{percent(runs.kept(view))} with {view}" for view in list(VIEWS)[1:]]
    return f"Trained on all views, {name} keeps {', '.join(parts)}."


def _draw(axes: Axes, variants: dict[str, Probed]) -> None:
    """Draw the skill with each set of views, a group of points a projector."""
    for i, (name, runs) in enumerate(variants.items()):
        for place, view in enumerate(VIEWS):
            values = runs.skills(view)
            places = np.full(len(values), place + 0.2 * (i - 0.5))
            label = name if place == 0 else None
            axes.plot(places, values, "o", color=f"C{i}", alpha=0.7, label=label)
    axes.set_xticks(range(len(VIEWS)), list(VIEWS))
    axes.set_ylabel("skill, a point a seed")
    axes.legend(frameon=False)


CLAIM = Claim(
    name="collaboration",
    title="The views gain from each other",
    paper="Table 5: with Co-Proj the model beats one that projects each view alone. Table 7: "
    "trained on all views and asked with 1D alone, it keeps about 70 % of its score.",
    runs=runs,
    measure=measure_projector,
    report=report,
)
