"""Does the projector's attention work? Flat biases, dead Gaussians, views that attend alike.

The paper warns of biases that collapse and of widths σ that end in NaN. What is measured here and
where a number becomes a warning are our choices; the thresholds stand in `THRESHOLDS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from collamo.chem.features import MoleculeFeatures
from collamo.evaluation.examine.diagnosis.findings import Finding, findings
from collamo.evaluation.examine.diagnosis.measures import (
    THRESHOLDS,
    Curve,
    Gaussians,
    LayerAttention,
    Phi,
    attention_to_atoms,
    biases_of,
    curve,
    fresh_spread,
    gaussians_of,
    layer_attention,
    pair_distances,
    phi_spread,
)
from collamo.evaluation.examine.diagnosis.observation import (
    observe,
    projector_in_use,
    relations_of,
)
from collamo.model.configuration import MODALITIES
from collamo.model.projector import RelationBias

if TYPE_CHECKING:
    from collamo.model import CollamoForConditionalGeneration, CollamoProcessor

SAMPLE = 64  # molecules looked at


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

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with the thresholds; NaN and infinity become None."""
        plain = {name: value for name, value in asdict(self).items() if name != "atoms"}
        return {"thresholds": THRESHOLDS, **_finite(plain)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@torch.inference_mode()
def diagnose(
    model: CollamoForConditionalGeneration,
    processor: CollamoProcessor,
    features: Sequence[MoleculeFeatures],
    seed: int = 0,
) -> Diagnosis:
    """Look into the projector while it reads `SAMPLE` molecules of `features`, drawn with `seed`.

    Parameters
    ----------
    model, processor
        As `collamo.model.load_checkpoint` returns them.
    features
        At least one. Each is read by itself, so that there is no padding.
    """
    order = np.random.default_rng(seed).permutation(len(features))[:SAMPLE].tolist()
    training = model.training
    model.eval()
    try:
        read = processor.feature_extractor.batch
        molecules = [read([[features[index]]], MODALITIES).to(model.device) for index in order]
        projector = projector_in_use(model, molecules[0])
        observations = [observe(model, projector, molecule) for molecule in molecules]
        relations = [relations_of(molecule) for molecule in molecules]
    finally:
        model.train(training)
    biases = list(biases_of(projector))
    distances = pair_distances(relations)
    start2d, start3d = fresh_spread(partial(_fresh_bias, model), relations, seed)
    phi = [
        replace(phi_spread(bias, relations), start2d=start2d, start3d=start3d) for bias in biases
    ]
    gaussians = [
        gaussians_of(bias.where, bias.radial, distances)
        for bias in biases
        if bias.radial is not None
    ]
    layers = [layer_attention(number, observations) for number in range(len(projector.layers))]
    return Diagnosis(
        len(observations),
        phi,
        gaussians,
        layers,
        list(findings(phi, gaussians, layers)),
        [curve(bias, relations, distances) for bias in biases],
        {index: attention_to_atoms(each) for index, each in zip(order, observations, strict=True)},
    )


def _fresh_bias(model: CollamoForConditionalGeneration) -> RelationBias:
    """Return a Φ as the model's was before training."""
    bias = RelationBias(model.config.projector_config)
    bias.apply(model._init_weights)
    return bias.to(model.device)
