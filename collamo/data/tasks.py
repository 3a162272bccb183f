"""Questions with known answers about a molecule. All wording lives here."""

from __future__ import annotations

from dataclasses import dataclass

TASKS = ("motif_count", "property_2d", "property_3d", "caption", "iupac_name", "measured")


@dataclass(frozen=True)
class TaskExample:
    """One question about one molecule.

    Attributes
    ----------
    molecule
        The row number of the molecule in its source (`PreparedData.features` takes it).
    task
        One of `TASKS`.
    target
        What exactly is asked: ``"hydroxyl group"``, ``"logp"``, ``"homo"`` …
    question, answer
        Text. The unit is asked for in the question; the answer is the bare number.
    value
        The answer as a number, before rounding; None where the answer is text.
    unit
        Of `value`; None where it has none.
    """

    molecule: int
    task: str
    target: str
    question: str
    answer: str
    value: float | None = None
    unit: str | None = None
