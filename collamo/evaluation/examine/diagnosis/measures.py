"""The numbers of a diagnosis: the spread of Φ, Gaussians that live, where attention goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from collamo.evaluation.examine.diagnosis.observation import (
    MoleculeRelations,
    Observation,
    branches_of,
    layers_of,
)
from collamo.model.configuration import MODALITIES
from collamo.model.projector import CoProjector, RelationBias
from collamo_kernels import GaussianRadial
from collamo_kernels.coattention.reference import hop_term, radial_term

#: Ours. A Φ that varies by 0.1 changes an attention weight by a tenth. A Gaussian narrower than
#: 0.02 Å (twice Transformer-M's floor) is hit by few pairs, and its gradient grows as 1/σ. The rest
#: are shares of 1.
THRESHOLDS = {
    "flat": 0.1,  # logits: standard deviation of a head's Φ over pairs of atoms, at most
    "narrow": 0.02,  # Å: width s of a Gaussian, below
    "dead": 0.01,  # of its peak: range of a Gaussian's value over all distances, at most
    "mostly_dead": 0.5,  # share of dead Gaussians, above
    "uniform": 0.98,  # normalised entropy of attention, above
    "alike": 0.95,  # likeness of two attentions, above
    "ignored": 0.05,  # share of the soft tokens' attention, below
}

FRESH = 8  # untrained biases that are drawn to compare with


@dataclass(frozen=True)
class Phi:
    """One pair of biases: standard deviation of Φ2d and Φ3d over the pairs of atoms [logits], per
    head; None where the model has none, or no molecule has the relation.

    `start2d` and `start3d`: the same of biases that were never trained, mean over heads and
    `FRESH` of them."""

    where: str
    phi2d: list[float] | None
    phi3d: list[float] | None
    start2d: float | None = None
    start3d: float | None = None


@dataclass(frozen=True)
class Gaussians:
    """The basis of one Φ3d: widths s = |σ| + floor [Å], and which Gaussians do something.

    `dead`: share whose value, relative to its peak, varies by at most ``THRESHOLDS["dead"]`` over
    the distances of all pairs of atoms in the sample: out of reach, between the distances, or so
    wide that it is constant. `finite` is False where a centre or width is NaN or infinite.
    """

    where: str
    count: int
    smallest_sigma: float
    narrow: int
    dead: float
    finite: bool


@dataclass(frozen=True)
class LayerAttention:
    """The attention of one layer, means over molecules, heads and tokens.

    `entropy` by modality: of the attention of a branch to itself, divided by ln(number of tokens):
    1 spreads evenly, 0 looks at one token. `to_sink`: the share of that attention which the sink
    takes, 0 where there is none; the rest is scaled to sum 1. `likeness`: of the 2D and the 3D
    branch, 1 − JSD(2D, 3D)/ln 2 of an atom's attention to the atoms: 1 is the same, 0 nothing in
    common.
    `shares`: of the soft tokens' attention that goes to each modality (and to the zero key),
    `[soft token][modality]`. `soft_entropy` as `entropy`; `soft_likeness`: mean cosine between the
    attention of two soft tokens. None where no molecule of the sample has what is needed.
    """

    layer: int
    entropy: dict[str, float | None]
    to_sink: dict[str, float | None]
    likeness: float | None
    shares: list[list[float]]
    soft_entropy: float | None
    soft_likeness: float | None


@dataclass(frozen=True)
class Curve:
    """The biases themselves, per head: Φ2d at 0, 1, … bonds, Φ3d at `distances` [Å]; `sinks`: a
    constant counts, against the sink."""

    where: str
    phi2d: list[list[float]] | None
    phi3d: list[list[float]] | None
    distances: list[float]
    sinks: bool


class Bias(NamedTuple):
    """What attention reads of one Φ: the table of Φ2d and the module of Φ3d; either may be None."""

    where: str
    hop_bias: Tensor | None
    radial: GaussianRadial | None
    sinks: bool


def biases_of(projector: CoProjector) -> Iterator[Bias]:
    """Yield every Φ of the projector; nothing for a model without."""
    owners = {"all layers": projector.relation_bias}
    for number, layer in enumerate(layers_of(projector), 1):
        for modality, block in branches_of(layer).items():
            owners[f"layer {number}, {modality}"] = block.relation_bias
    for where, owner in owners.items():
        if owner is not None:
            yield Bias(where, owner.hop_table(), owner.radial, owner.sinks)


def fresh_spread(
    fresh: Callable[[], RelationBias], molecules: Sequence[MoleculeRelations], seed: int
) -> tuple[float | None, float | None]:
    """Return the `Phi.start2d` and `Phi.start3d` of biases that `fresh` draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        owners = [fresh() for _ in range(FRESH)]
    spreads = [
        phi_spread(Bias("", owner.hop_table(), owner.radial, owner.sinks), molecules)
        for owner in owners
    ]
    means = [
        [np.mean(heads) for heads in found if heads is not None]
        for found in ([s.phi2d for s in spreads], [s.phi3d for s in spreads])
    ]
    phi2d, phi3d = (float(np.mean(found)) if found else None for found in means)
    return phi2d, phi3d


def pair_distances(molecules: Sequence[MoleculeRelations]) -> Tensor:
    """Return the distances [Å] of all pairs of different atoms that have coordinates."""
    distances = [
        torch.cdist(m.coordinates.double(), m.coordinates.double())[m.off_diagonal].float()
        for m in molecules
        if m.has_3d
    ]
    return torch.cat(distances) if distances else torch.zeros(0)


def phi_spread(bias: Bias, molecules: Sequence[MoleculeRelations]) -> Phi:
    """Return how much a Φ varies over the pairs of different atoms."""
    phi2d, phi3d = [], []
    for molecule in molecules:
        hops = hop_term(molecule.relations, bias.hop_bias)
        if hops is not None:
            phi2d.append(hops[0][:, molecule.off_diagonal])
        distances = radial_term(molecule.relations, bias.radial) if molecule.has_3d else None
        if distances is not None:
            phi3d.append(distances[0][:, molecule.off_diagonal])
    return Phi(bias.where, _spread(phi2d), _spread(phi3d))


def _spread(values: Sequence[Tensor]) -> list[float] | None:
    """Return the standard deviation per head of ``[H, pairs]``s together; None without a pair."""
    pairs = torch.cat(list(values), 1) if values else torch.zeros(0, 0)
    return pairs.double().std(1, correction=0).tolist() if pairs.numel() else None


def gaussians_of(where: str, radial: GaussianRadial, distances: Tensor) -> Gaussians:
    """Return the state of the Gaussians of a Φ3d over the distances of the sample."""
    widths = radial.widths().double()
    finite = bool(widths.isfinite().all() and radial.mu.isfinite().all())
    if len(distances) == 0:
        dead = math.nan
    else:
        u = radial.affine(distances.to(widths.device))
        psi = radial.gaussians(u.unique())
        if radial.normalized:
            psi = psi * (math.sqrt(2 * math.pi) * radial.widths())
        # NaN is dead too: no comparison with it is true.
        alive = (psi.amax(0) - psi.amin(0)) > THRESHOLDS["dead"]
        dead = 1 - float(alive.double().mean())
    narrow = int((widths < THRESHOLDS["narrow"]).sum())
    return Gaussians(where, len(widths), float(widths.min()), narrow, dead, finite)


def curve(bias: Bias, molecules: Sequence[MoleculeRelations], distances: Tensor) -> Curve:
    """Return a Φ as a function of the number of bonds and of the distance, as far as they reach."""
    hop_bias, radial = bias.hop_bias, bias.radial
    longest = max(
        (int(hops.max()) for m in molecules if len(hops := m.hops[m.hops < 254])), default=0
    )
    table = None
    if hop_bias is not None:
        columns = torch.arange(longest + 1).clamp(max=hop_bias.shape[1] - 2)
        table = hop_bias[:, columns.to(hop_bias.device)].float().tolist()
    places = torch.linspace(0, float(distances.max()) if len(distances) else 10.0, 121)
    values = None
    if radial is not None:
        values = radial(places.to(radial.mu.device)).float().T.tolist()
    return Curve(bias.where, table, values, places.tolist(), bias.sinks)


def entropy(weights: Tensor) -> Tensor:
    """``[…, T] → […]``: −Σ w ln w / ln T, 0 to 1."""
    return torch.special.entr(weights).sum(-1) / math.log(weights.shape[-1])


def likeness(one: Tensor, other: Tensor) -> Tensor:
    """``[…, T] → […]``: 1 − JSD/ln 2, with JSD = S((p+q)/2) − (S(p) + S(q))/2."""
    entropy = [torch.special.entr(w).sum(-1) for w in ((one + other) / 2, one, other)]
    return 1 - (entropy[0] - (entropy[1] + entropy[2]) / 2) / math.log(2)


def _mean(values: Sequence[Tensor]) -> float | None:
    return float(torch.stack([v.double().mean() for v in values]).mean()) if values else None


def layer_attention(number: int, observations: Sequence[Observation]) -> LayerAttention:
    """Return what the attention of a layer (counted from 0) did, over all molecules."""
    spreads = {
        m: _mean(
            [
                entropy(to_tokens(seen.branches[number][m]))
                for seen in observations
                if m in seen.present and seen.lengths[m] > 1
            ]
        )
        for m in MODALITIES
    }
    to_sink = {
        m: _mean(
            [1 - seen.branches[number][m].sum(-1) for seen in observations if m in seen.present]
        )
        for m in MODALITIES
    }
    both = [seen.branches[number] for seen in observations if {"2d", "3d"} <= seen.present]
    soft = [soft_attention(seen, number) for seen in observations if seen.present]
    shares = [shares_of(seen, number) for seen in observations if seen.present == set(MODALITIES)]
    shares = shares or [shares_of(seen, number) for seen in observations if seen.present]
    pairs = [cosines(weights.mean(0)) for weights in soft if weights.shape[1] > 1]
    return LayerAttention(
        number + 1,
        spreads,
        to_sink,
        _mean([likeness(to_tokens(b["2d"]), to_tokens(b["3d"])) for b in both]),
        torch.stack(shares).mean(0).tolist() if shares else [],
        _mean([entropy(weights) for weights in soft if weights.shape[-1] > 1]),
        _mean(pairs),
    )


def soft_attention(seen: Observation, layer: int) -> Tensor:
    """``[H,b,T]``: the soft tokens' attention to the real tokens there are, scaled to sum 1."""
    return to_tokens(seen.gathered[layer][..., _places(seen)])


def to_tokens(weights: Tensor) -> Tensor:
    """``[…, T]`` scaled to sum 1: without the share of a sink, or of what is left out."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def _places(seen: Observation) -> list[int]:
    places: list[int] = []
    start = 0
    for m in MODALITIES:
        places += range(start, start + seen.lengths[m]) if m in seen.present else []
        start += seen.lengths[m]
    return places


def shares_of(seen: Observation, layer: int) -> Tensor:
    """``[b,4]``: mean over heads of the attention to 1D, 2D, 3D and to nothing (the zero key)."""
    lengths = [seen.lengths[m] for m in MODALITIES]
    weights = seen.gathered[layer].mean(0)  # [b, T]
    parts = weights.split([*lengths, weights.shape[-1] - sum(lengths)], -1)
    return torch.stack([part.sum(-1) for part in parts], -1)


def cosines(weights: Tensor) -> Tensor:
    """``[b,T] → []``: mean cosine between two different rows."""
    unit = torch.nn.functional.normalize(weights, dim=-1)
    count = len(unit)
    return ((unit @ unit.T).sum() - count) / (count * (count - 1))


def attention_to_atoms(seen: Observation) -> dict[str, np.ndarray]:
    """Return modality → [N]: what the last layer's soft tokens look at, scaled to mean 1."""
    weights, start = seen.gathered[-1].mean((0, 1)), 0
    atoms = {}
    for m in MODALITIES:
        part = weights[start : start + seen.lengths[m]]
        start += seen.lengths[m]
        if m in seen.present and m != "1d" and float(part.sum()) > 0:
            atoms[m] = (part / part.mean()).double().cpu().numpy()
    return atoms
