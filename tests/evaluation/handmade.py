"""Questions made by hand, without any prepared data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    molecule: int
    task: str
    target: str
    question: str
    answer: str
    value: float | None = None
    unit: str | None = None


def count(molecule, value, target="hydroxyl group"):
    return Example(molecule, "motif_count", target, f"How many {target}s?", str(value), value)


def logp(molecule, value, target="logp"):
    return Example(molecule, "property_2d", target, f"What is the {target}?", f"{value:.2f}", value)
