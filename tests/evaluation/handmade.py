"""Questions made by hand, without any prepared data."""

from collamo.data.tasks import TaskExample


def count(molecule, value, target="hydroxyl group"):
    question = f"How many {target}s?"
    return TaskExample(molecule, "motif_count", target, question, str(value), value)


def logp(molecule, value, target="logp"):
    question = f"What is the {target}?"
    return TaskExample(molecule, "property_2d", target, question, f"{value:.2f}", value)
