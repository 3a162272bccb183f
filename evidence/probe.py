"""Encoders, projector and a linear head that reads numbers off the soft tokens: no language model.

The shortest way to what the molecule's side of the model knows, at minutes a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from collamo.chem.features import MoleculeFeatures
from collamo.data.batch import MoleculeBatch, batch_molecules
from collamo.model.configuration import MODALITIES, CollamoConfig
from collamo.model.modeling import CollamoModel
from collamo.model.tiny import tiny_llama_config
from collamo.training.parameter_groups import decaying, set_rates

LEARNING_RATE = 2e-3  # and what follows: as in configs/stage1.yaml
WEIGHT_DECAY = 0.05
WARMUP = 0.1
CLIP = 1.0
#: Φ2d's and Φ3d's rates in multiples, with sinks: the relation_rates of configs/stage1.yaml.
FASTER = {"hop_bias": 30.0, "radial": 5.0}
CHUNK = 1000  # molecules that are evaluated, or put into tensors, at a time


@dataclass(frozen=True)
class Molecules:
    """Molecules with their numbers `values` [M,F], and which molecule a conformer is of."""

    features: Sequence[MoleculeFeatures]
    values: np.ndarray
    units: Sequence[object]


@dataclass(frozen=True)
class Budget:
    """How long a probe trains."""

    steps: int
    batch: int


def predictions(
    train: Molecules,
    test: Molecules,
    overrides: Mapping[str, Any],
    budget: Budget,
    seed: int,
    device: str,
) -> np.ndarray:
    """Train on graphs and conformers of `train` (`train_probe`) and return what is read off those
    of `test` [M,F]."""
    probe = train_probe(train, overrides, budget, seed, device)
    return probe.read(test.features)


@dataclass(frozen=True)
class Probe:
    """A trained probe: `mean` and `spread` take its standardised numbers back to their units.

    Without a `vocabulary` of SELFIES tokens it reads no 1D.
    """

    net: nn.ModuleDict
    mean: np.ndarray
    spread: np.ndarray
    vocabulary: Mapping[str, int]
    device: str

    def read(
        self, molecules: Sequence[MoleculeFeatures], modalities: Sequence[str] = MODALITIES
    ) -> np.ndarray:
        """Return what it reads off molecules of which `modalities` may be seen, [M,F]."""
        self.net.eval()
        parts = [molecules[i : i + CHUNK] for i in range(0, len(molecules), CHUNK)]
        with torch.no_grad():
            read = [
                _read(
                    self.net, _tensors(part, self.vocabulary, modalities, self.device), self.device
                )
                for part in parts
            ]
        return torch.cat(read).cpu().double().numpy() * self.spread + self.mean


def train_probe(
    train: Molecules,
    overrides: Mapping[str, Any],
    budget: Budget,
    seed: int,
    device: str,
    vocabulary: Mapping[str, int] | None = None,
) -> Probe:
    """Train a probe with this seed.

    The numbers are standardised over the training molecules and learned by their absolute error. A
    seed sets weights and order; the molecules stay. On a GPU products are bfloat16.
    """
    vocabulary = vocabulary or {}
    torch.manual_seed(seed)
    config = CollamoConfig.from_overrides("tiny", overrides, tiny_llama_config(64))
    model = CollamoModel(config)
    width = config.projector_config.num_query_tokens * config.text_config.hidden_size
    net = nn.ModuleDict({"model": model, "head": nn.Linear(width, train.values.shape[1])})
    net.to(device)
    mean, spread = train.values.mean(0), train.values.std(0)
    target = torch.tensor((train.values - mean) / spread, dtype=torch.float32, device=device)
    batch = _tensors(train.features, vocabulary, MODALITIES, device)
    optimizer = _optimizer(net, faster=config.projector_config.sinks)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(budget.steps))
    order = np.random.default_rng(seed)
    net.train()
    for _ in range(budget.steps):
        rows = torch.tensor(order.choice(len(target), budget.batch, replace=False), device=device)
        loss = (_read(net, _rows(batch, rows), device) - target[rows]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        schedule.step()
    return Probe(net, mean, spread, vocabulary, device)


def _read(net: nn.ModuleDict, molecules: MoleculeBatch, device: str) -> Tensor:
    """[B,F] standardised numbers."""
    with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
        model = cast("CollamoModel", net["model"])
        soft = model.get_molecule_features(molecules)  # [B,1,b,D]
    return net["head"](soft.flatten(1).float())


def _optimizer(net: nn.Module, faster: bool) -> torch.optim.Optimizer:
    """AdamW; matrices decay, and Φ2d and Φ3d may have rates of their own."""
    trained = {n: p for n, p in net.named_parameters() if "language_model" not in n}
    matrices = decaying(name for name, parameter in trained.items() if parameter.dim() > 1)
    groups = [
        {"params": [trained[name] for name in matrices], "weight_decay": WEIGHT_DECAY},
        {
            "params": [trained[name] for name in trained if name not in matrices],
            "weight_decay": 0.0,
        },
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    if faster:
        set_rates(optimizer, net, {name: rate * LEARNING_RATE for name, rate in FASTER.items()})
    return optimizer


def _cosine(steps: int):
    def factor(step: int) -> float:
        warm = max(1, int(WARMUP * steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm)))

    return factor


def _tensors(
    features: Sequence[MoleculeFeatures],
    vocabulary: Mapping[str, int],
    modalities: Sequence[str],
    device: str,
) -> MoleculeBatch:
    """Put molecules into one batch, a molecule a prompt; without a vocabulary SELFIES stay out."""
    read = [m for m in modalities if m != "1d" or vocabulary]
    parts = [features[i : i + CHUNK] for i in range(0, len(features), CHUNK)]
    batches = [batch_molecules([[each] for each in part], vocabulary, read) for part in parts]
    return MoleculeBatch.cat(batches).to(device)


def _rows(batch: MoleculeBatch, rows: Tensor) -> MoleculeBatch:
    return MoleculeBatch(**{name: x[rows] for name, x in batch.tensors().items()})
