"""Does the projector's attention work? Flat biases, dead Gaussians, views that attend alike.

The paper warns of biases that collapse and of widths σ that end in NaN. What is measured here and
where a number becomes a warning are our choices; the thresholds stand in `THRESHOLDS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from collamo.data.batch import MoleculeBatch
from collamo.model.configuration import MODALITIES
from collamo.model.projector import CoProjector
from collamo_kernels import Relations
from collamo_kernels.coattention.reference import hop_term, radial_term

SAMPLE = 64  # molecules looked at
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


@dataclass(frozen=True)
class Phi:
    """One pair of biases: standard deviation of Φ2d and Φ3d over the pairs of atoms [logits], per
    head; None where the model has none, or no molecule has the relation."""

    where: str
    phi2d: list[float] | None
    phi3d: list[float] | None


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
    1 spreads evenly, 0 looks at one token. `likeness`: of the 2D and the 3D branch, 1 −
    JSD(2D, 3D)/ln 2 of an atom's attention to the atoms: 1 is the same, 0 nothing in common.
    `shares`: of the soft tokens' attention that goes to each modality (and to the zero key),
    `[soft token][modality]`. `soft_entropy` as `entropy`; `soft_likeness`: mean cosine between the
    attention of two soft tokens. None where no molecule of the sample has what is needed.
    """

    layer: int
    entropy: dict[str, float | None]
    likeness: float | None
    shares: list[list[float]]
    soft_entropy: float | None
    soft_likeness: float | None


@dataclass(frozen=True)
class Finding:
    """A sentence with its number, and whether it is as it should be."""

    ok: bool
    sentence: str


@dataclass(frozen=True)
class Curve:
    """The biases themselves, per head: Φ2d at 0, 1, … bonds, Φ3d at `distances` [Å]."""

    where: str
    phi2d: list[list[float]] | None
    phi3d: list[list[float]] | None
    distances: list[float]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; `atoms` (for pictures) is left out of the JSON.

    ``atoms``: place in the sample → modality → attention of the last layer's soft tokens to each
    atom [N], mean over tokens and heads, scaled to mean 1.
    """

    molecules: int
    phi: list[Phi]
    gaussians: list[Gaussians]
    layers: list[LayerAttention]
    findings: list[Finding]
    curves: list[Curve]
    atoms: dict[int, dict[str, np.ndarray]] = field(repr=False)

    def to_json(self) -> dict:
        """Return plain JSON values, with the thresholds; NaN and infinity become None."""
        plain = {name: value for name, value in asdict(self).items() if name != "atoms"}
        return {"thresholds": THRESHOLDS, **_finite(plain)}


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class _Seen:
    """What one molecule showed: attention weights by layer, and which modalities it has."""

    has: set[str]
    lengths: dict[str, int]
    branches: list[dict[str, Tensor]]  # [layer][modality], [H,T,T]
    gathered: list[Tensor]  # [layer], [H,b,T] or [H,b,T+1]


@torch.inference_mode()
def diagnose(model, processor, features: Sequence, seed: int = 0) -> Diagnosis:
    """Look into the projector while it reads `SAMPLE` molecules of `features`, drawn with `seed`.

    Parameters
    ----------
    model, processor
        As `collamo.model.load_checkpoint` returns them.
    features
        `MoleculeFeatures`, at least one; read one at a time, so that there is no padding.
    """
    order = np.random.default_rng(seed).permutation(len(features))[:SAMPLE].tolist()
    training = model.training
    model.eval()
    try:
        inputs = [_inputs(model, processor, features[index]) for index in order]
        projector = _projector(model, inputs[0])
        seen = [_look(model, projector, one) for one in inputs]
        relations = [one.relations() for one in inputs]
    finally:
        model.train(training)
    biases = list(_biases(projector))
    distances = _distances(relations)
    phi = [_phi(where, relations, *of) for where, *of in biases]
    gaussians = [_gaussians(where, of, distances) for where, _, of in biases if of is not None]
    layers = [_layer(number, seen) for number in range(len(projector.layers))]
    return Diagnosis(
        len(seen),
        phi,
        gaussians,
        layers,
        list(_findings(phi, gaussians, layers)),
        [_curve(where, *of, relations, distances) for where, *of in biases],
        {index: _atoms(one) for index, one in zip(order, seen, strict=True)},
    )


def _inputs(model, processor, features) -> MoleculeBatch:
    return processor.feature_extractor.batch([[features]], MODALITIES).to(model.device)


def _projector(model, inputs: MoleculeBatch) -> CoProjector:
    """Return the projector that is used: a model with an adapter holds the one before it too."""
    used: list[CoProjector] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: used.append(module))
        for module in model.modules()
        if isinstance(module, CoProjector)
    ]
    model.get_molecule_features(inputs)
    for hook in hooks:
        hook.remove()
    return used[0]


def _look(model, projector: CoProjector, inputs: MoleculeBatch) -> _Seen:
    present = zip(MODALITIES, inputs.present.flatten().tolist(), strict=True)
    found = _Seen({m for m, there in present if there and m in model.config.modalities}, {}, [], [])
    with _watched(projector, found):
        model.get_molecule_features(inputs)
    return found


@contextmanager
def _watched(projector: CoProjector, found: _Seen) -> Iterator[None]:
    """Keep the attention weights of every layer in `found` while the projector runs."""

    def branch(layer: int, modality: str):
        def hook(module, args, kwargs, _):
            # `forward`, not a call: the hook would see itself.
            weights = module.forward(*args, **kwargs, need_weights=True)[1]  # [H, T·T], packed
            length = len(args[0])
            found.branches[layer][modality] = weights.float().unflatten(-1, (length, length))
            found.lengths[modality] = length

        return hook

    def gather(module, args, _):
        found.gathered.append(module.weights(*args)[0].float())

    hooks = []
    for number, layer in enumerate(projector.layers):
        found.branches.append({})
        hooks += [
            block.attention.register_forward_hook(branch(number, m), with_kwargs=True)
            for m, block in layer.branches.items()
        ]
        hooks.append(layer.gather.attention.register_forward_hook(gather))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _biases(projector: CoProjector) -> Iterator[tuple[str, Tensor | None, torch.nn.Module | None]]:
    """Yield (where, table of Φ2d, module of Φ3d) of every Φ; nothing for a model without."""
    if projector.relation_bias is not None:
        yield "all layers", projector.relation_bias.hop_bias, projector.relation_bias.radial
    for number, layer in enumerate(projector.layers, 1):
        for modality, block in layer.branches.items():
            own = block.attention.hop_bias, block.attention.radial
            if own != (None, None):
                yield f"layer {number}, {modality}", *own


def _off_diagonal(relations: Relations) -> Tensor:
    return ~torch.eye(relations.hops.shape[-1], dtype=torch.bool, device=relations.hops.device)


def _distances(relations: Sequence[Relations]) -> Tensor:
    """Return the distances [Å] of all pairs of different atoms that have coordinates."""
    found = [
        torch.cdist(r.coordinates[0].double(), r.coordinates[0].double())[_off_diagonal(r)].float()
        for r in relations
        if bool(r.has_3d[0])
    ]
    return torch.cat(found) if found else torch.zeros(0)


def _phi(where: str, relations: Sequence[Relations], hop_bias, radial) -> Phi:
    terms = {"2d": [], "3d": []}
    for r in relations:
        if hop_bias is not None:
            terms["2d"].append(hop_term(r, hop_bias)[0][:, _off_diagonal(r)])
        if radial is not None and bool(r.has_3d[0]):
            terms["3d"].append(radial_term(r, radial)[0][:, _off_diagonal(r)])
    return Phi(where, *(_spread(values) for values in terms.values()))


def _spread(values: Sequence[Tensor]) -> list[float] | None:
    """Return the standard deviation per head of ``[H, pairs]``s together; None without a pair."""
    pairs = torch.cat(list(values), 1) if values else torch.zeros(0, 0)
    return pairs.double().std(1, correction=0).tolist() if pairs.numel() else None


def _gaussians(where: str, radial, distances: Tensor) -> Gaussians:
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


def _curve(where, hop_bias, radial, relations, distances) -> Curve:
    hops = [r.hops[r.hops < 254].max() for r in relations if bool((r.hops < 254).any())]
    longest = int(max(hops)) if hops else 0
    table = None
    if hop_bias is not None:
        columns = torch.arange(longest + 1).clamp(max=hop_bias.shape[1] - 2)
        table = hop_bias[:, columns.to(hop_bias.device)].float().tolist()
    at = torch.linspace(0, float(distances.max()) if len(distances) else 10.0, 121)
    values = None
    if radial is not None:
        values = radial(at.to(radial.mu.device)).float().T.tolist()
    return Curve(where, table, values, at.tolist())


def _entropy(weights: Tensor) -> Tensor:
    """``[…, T] → […]``: −Σ w ln w / ln T, 0 to 1."""
    return torch.special.entr(weights).sum(-1) / math.log(weights.shape[-1])


def _likeness(one: Tensor, other: Tensor) -> Tensor:
    """``[…, T] → […]``: 1 − JSD/ln 2, with JSD = S((p+q)/2) − (S(p) + S(q))/2."""
    entropy = [torch.special.entr(w).sum(-1) for w in ((one + other) / 2, one, other)]
    return 1 - (entropy[0] - (entropy[1] + entropy[2]) / 2) / math.log(2)


def _mean(values: Sequence[Tensor]) -> float | None:
    return float(torch.stack([v.double().mean() for v in values]).mean()) if values else None


def _layer(number: int, seen: Sequence[_Seen]) -> LayerAttention:
    entropy = {
        m: _mean(
            [
                _entropy(one.branches[number][m])
                for one in seen
                if m in one.has and one.lengths[m] > 1
            ]
        )
        for m in MODALITIES
    }
    both = [one.branches[number] for one in seen if {"2d", "3d"} <= one.has]
    soft = [_soft(one, number) for one in seen if one.has]
    shares = [_shares(one, number) for one in seen if one.has == set(MODALITIES)]
    shares = shares or [_shares(one, number) for one in seen if one.has]
    pairs = [_cosines(weights.mean(0)) for weights in soft if weights.shape[1] > 1]
    return LayerAttention(
        number + 1,
        entropy,
        _mean([_likeness(b["2d"], b["3d"]) for b in both]),
        torch.stack(shares).mean(0).tolist() if shares else [],
        _mean([_entropy(weights) for weights in soft if weights.shape[-1] > 1]),
        _mean(pairs),
    )


def _soft(one: _Seen, layer: int) -> Tensor:
    """``[H,b,T]``: the soft tokens' attention to the real tokens there are, scaled to sum 1."""
    reached = one.gathered[layer][..., _places(one)]
    return reached / reached.sum(-1, keepdim=True).clamp(min=1e-30)


def _places(one: _Seen) -> list[int]:
    places, start = [], 0
    for m in MODALITIES:
        places += range(start, start + one.lengths[m]) if m in one.has else []
        start += one.lengths[m]
    return places


def _shares(one: _Seen, layer: int) -> Tensor:
    """``[b,4]``: mean over heads of the attention to 1D, 2D, 3D and to nothing (the zero key)."""
    lengths = [one.lengths[m] for m in MODALITIES]
    weights = one.gathered[layer].mean(0)  # [b, T]
    parts = weights.split([*lengths, weights.shape[-1] - sum(lengths)], -1)
    return torch.stack([part.sum(-1) for part in parts], -1)


def _cosines(weights: Tensor) -> Tensor:
    """``[b,T] → []``: mean cosine between two different rows."""
    unit = torch.nn.functional.normalize(weights, dim=-1)
    count = len(unit)
    return ((unit @ unit.T).sum() - count) / (count * (count - 1))


def _atoms(one: _Seen) -> dict[str, np.ndarray]:
    """Return modality → [N]: what the last layer's soft tokens look at, scaled to mean 1."""
    weights, found, start = one.gathered[-1].mean((0, 1)), {}, 0
    for m in MODALITIES:
        part = weights[start : start + one.lengths[m]]
        start += one.lengths[m]
        if m in one.has and m != "1d" and float(part.sum()) > 0:
            found[m] = (part / part.mean()).double().cpu().numpy()
    return found


def _findings(phi, gaussians, layers) -> Iterator[Finding]:
    limit = THRESHOLDS
    if not phi:
        yield Finding(True, "The model has no Φ: attention over atoms knows no relation.")
    for name, label in (("phi2d", "Φ2d (bonds)"), ("phi3d", "Φ3d (distances)")):
        heads = [spread for one in phi for spread in getattr(one, name) or []]
        if heads:
            yield _spread_finding(label, heads)
    for one in gaussians:
        yield from _gaussian_findings(one)
    for m in MODALITIES:
        values = [layer.entropy[m] for layer in layers if layer.entropy[m] is not None]
        if values:
            yield Finding(
                max(values) <= limit["uniform"],
                f"{m}: a token spreads its attention over {_range(values)} of what is possible "
                f"(1 = evenly over all tokens; above {limit['uniform']} it looks at nothing in "
                "particular).",
            )
    alike = [layer.likeness for layer in layers if layer.likeness is not None]
    if alike:
        yield Finding(
            max(alike) <= limit["alike"],
            f"2D and 3D attend {_range(alike)} alike (1 = the same; above {limit['alike']} the two "
            "branches are one).",
        )
    if layers and layers[-1].shares:
        yield from _soft_findings(layers[-1])


def _spread_finding(label: str, heads: Sequence[float]) -> Finding:
    flat = sum(not spread > THRESHOLDS["flat"] for spread in heads)
    start = "; it starts at 0.02" if label.startswith("Φ2d") else ""
    word = "has collapsed" if flat == len(heads) else "is partly flat" if flat else "is alive"
    return Finding(
        flat < len(heads) / 2,
        f"{label} {word}: {flat} of {len(heads)} heads are flat; over pairs of atoms they vary by "
        f"{_range(heads)} logits (flat: at most {THRESHOLDS['flat']}{start}).",
    )


def _gaussian_findings(one: Gaussians) -> Iterator[Finding]:
    if not one.finite:
        yield Finding(False, f"Gaussians of {one.where}: a centre or width is NaN or infinite.")
        return
    yield Finding(
        one.narrow == 0,
        f"Gaussians of {one.where}: the narrowest is {one.smallest_sigma:.3f} Å wide, {one.narrow} "
        f"of {one.count} are narrower than {THRESHOLDS['narrow']} Å (where the paper's NaN come "
        "from).",
    )
    if math.isfinite(one.dead):
        yield Finding(
            one.dead <= THRESHOLDS["mostly_dead"],
            f"Gaussians of {one.where}: {one.dead:.0%} are dead (their value varies by at most "
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
