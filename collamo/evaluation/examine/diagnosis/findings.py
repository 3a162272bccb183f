"""A diagnosis in sentences: each states a number, and whether it is as it should be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from collamo.evaluation.examine.diagnosis.measures import (
    THRESHOLDS,
    Gaussians,
    LayerAttention,
    Phi,
)
from collamo.model.configuration import MODALITIES


@dataclass(frozen=True)
class Finding:
    """A sentence with its number, and whether it is as it should be."""

    ok: bool
    sentence: str


def findings(
    phi: Sequence[Phi], gaussians: Sequence[Gaussians], layers: Sequence[LayerAttention]
) -> Iterator[Finding]:
    """Yield a finding for everything that was measured."""
    if not phi:
        yield Finding(True, "The model has no Φ: attention over atoms knows no relation.")
    for view, label in (("2d", "Φ2d (bonds)"), ("3d", "Φ3d (distances)")):
        heads = [spread for bias in phi for spread in getattr(bias, f"phi{view}") or []]
        if heads:
            yield _spread_finding(label, heads, getattr(phi[0], f"start{view}"))
    for basis in gaussians:
        yield from _gaussian_findings(basis)
    for m in MODALITIES:
        values = [value for layer in layers if (value := layer.entropy[m]) is not None]
        if values:
            yield Finding(
                max(values) <= THRESHOLDS["uniform"],
                f"{m}: a token spreads its attention over {_range(values)} of what is possible "
                f"(1 = evenly over all tokens; above {THRESHOLDS['uniform']} it looks at nothing "
                "in particular).",
            )
    alike = [layer.likeness for layer in layers if layer.likeness is not None]
    if alike:
        yield Finding(
            max(alike) <= THRESHOLDS["alike"],
            f"2D and 3D attend {_range(alike)} alike (1 = the same; above {THRESHOLDS['alike']} "
            "the two branches are one).",
        )
    if layers and layers[-1].shares:
        yield from _soft_findings(layers[-1])


def _spread_finding(label: str, heads: Sequence[float], start: float) -> Finding:
    flat = sum(not spread > THRESHOLDS["flat"] for spread in heads)
    word = "is flat" if flat == len(heads) else "is partly flat" if flat else "varies"
    return Finding(
        flat < len(heads) / 2,
        f"{label} {word}: {flat} of {len(heads)} heads are flat; over pairs of atoms they vary by "
        f"{_range(heads)} logits (flat: at most {THRESHOLDS['flat']}; untrained ones vary by "
        f"{start:.2f}). Whether the answers use it, only “{label.split()[0]} zeroed” tells.",
    )


def _gaussian_findings(basis: Gaussians) -> Iterator[Finding]:
    if not basis.finite:
        yield Finding(False, f"Gaussians of {basis.where}: a centre or width is NaN or infinite.")
        return
    yield Finding(
        basis.narrow == 0,
        f"Gaussians of {basis.where}: the narrowest is {basis.smallest_sigma:.3f} Å wide, "
        f"{basis.narrow} of {basis.count} are narrower than {THRESHOLDS['narrow']} Å (where the "
        "paper's NaN come from).",
    )
    if math.isfinite(basis.dead):
        yield Finding(
            basis.dead <= THRESHOLDS["mostly_dead"],
            f"Gaussians of {basis.where}: {basis.dead:.0%} are dead (their value varies by at most "
            f"{THRESHOLDS['dead']:.0%} of the peak over all distances seen).",
        )


def _soft_findings(layer: LayerAttention) -> Iterator[Finding]:
    mean = np.mean(layer.shares, axis=0)
    ignored = [
        m for m, share in zip(MODALITIES, mean, strict=False) if share < THRESHOLDS["ignored"]
    ]
    parts = ", ".join(
        f"{share:.0%} {name}" for name, share in zip((*MODALITIES, "nothing"), mean, strict=True)
    )
    verdict = f"; ignored: {', '.join(ignored)}" if ignored else ""
    yield Finding(not ignored, f"Soft tokens of the last layer look at {parts}{verdict}.")
    if layer.soft_likeness is not None:
        yield Finding(
            layer.soft_likeness <= THRESHOLDS["alike"],
            f"Two soft tokens look at the same things to {layer.soft_likeness:.2f} (cosine; above "
            f"{THRESHOLDS['alike']} they are one).",
        )


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}–{high:.2f}"
