"""What `relations` and `conformers` vary: the relations that attention has, and its softmax."""

from __future__ import annotations

from itertools import product

from evidence.claim import Run

#: The relations that attention over atoms has; every other is compared with the last.
RELATIONS = ("Φ2d + Φ3d", "Φ2d", "Φ3d", "neither")
#: The paper's softmax; ours, with sinks and learning rates of their own for the relations.
ATTENTIONS = ("softmax", "sinks")
_SEEDS = {"tiny": 1, "cpu": 3, "gpu": 5}


def relation_runs(size: str) -> list[Run]:
    """Return every set of relations with each attention and seed; both and neither come first."""
    both, *single, neither = RELATIONS
    return [
        {"attention": attention, "relations": relations, "seed": seed}
        for pair in ((both, neither), single)
        for seed, attention, relations in product(range(_SEEDS[size]), ATTENTIONS, pair)
    ]


def relation_overrides(run: Run) -> dict[str, object]:
    """Return the configuration of a run: 2D and 3D are read, and no view is hidden."""
    return {
        "modalities": ["2d", "3d"],
        "projector_config.modality_dropout": 0.0,
        "projector_config.phi2d": "Φ2d" in str(run["relations"]),
        "projector_config.phi3d": "Φ3d" in str(run["relations"]),
        "projector_config.sinks": run["attention"] == "sinks",
    }
