"""What a claim is made of: its runs, how one is measured, what follows from all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from evidence.ledger import Ledger

#: From a test's seconds over two idle CPU cores to a quarter of an hour of an H200.
SIZES = ("tiny", "cpu", "gpu")

#: What identifies a run: its settings, with "seed".
Run = Mapping[str, str | int | float]
#: What a run gave; "details" holds small arrays that intervals need.
Metrics = Mapping[str, "str | int | float | Mapping[str, np.ndarray]"]


@dataclass(frozen=True)
class Workplace:
    """Where a run works: `size` of `SIZES`, the torch `device`, and a folder of prepared data."""

    size: str
    device: str
    data: Path


@dataclass(frozen=True)
class Finding:
    """What the rows of a claim say.

    Attributes
    ----------
    table
        Markdown, without a heading.
    verdict
        A sentence or two; of a claim that was not shown too.
    draw
        Draws the plot into matplotlib axes; None where there is nothing to draw.
    summary
        The verdict in fewer words, for the README; "" where it is short enough.
    """

    table: str
    verdict: str
    draw: Callable[[Axes], None] | None = None
    summary: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes
    ----------
    name
        Of its folder under ``results/``.
    title
        Heading of its section.
    paper
        What the paper claims, and where.
    runs
        Size → every run, in the order in which they are worth doing: a deadline cuts the end.
    measure
        Does a run.
    report
        Reads the rows, of which there is at least one.
    """

    name: str
    title: str
    paper: str
    runs: Callable[[str], Sequence[Run]]
    measure: Callable[[Run, Workplace], Metrics]
    report: Callable[[Ledger], Finding]
