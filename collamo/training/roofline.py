"""What a step of training computes and moves, and the least time that takes on a GPU.

FLOPs are those of the products of matrices, a multiplication and an addition each, that the step
needs; what gradient checkpointing computes again is not counted (MFU, not HFU: PaLM, Chowdhery et
al. 2022, appendix B). N weights of a part, each used for n tokens, take

============================= ======= =============================================
forward                       2 N n
backward to what comes before 2 N n   only where something before it is trained
backward to the weights       2 N n   only where they are trained
============================= ======= =============================================

so 6 N n where a part trains, 4 N n in a frozen language model behind a projector that trains, and
2 N n in frozen encoders. An embedding is looked up; the output layer's tokens are the scored ones.
Attention adds 6 L a Σ T² over prompts of T tokens: two products of T²/2 pairs, causal, in L layers
of a channels, forward and twice backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from collamo.training.freezing import ENCODERS, FACTS_HEAD, PROJECTOR, part_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from collamo.model.configuration import CollamoConfig
    from collamo.training.memory import PlannedBatch

#: Bytes of the optimizer a trained number: AdamW reads weight, gradient and two moments and writes
#: all but the gradient (28), the norm of the gradients reads it (4), clipping reads and writes (8).
OPTIMIZER_BYTES = 40
# Guesses of ours, not measured. Of the peak, what products of some thousand rows reach; and what
# the host takes to launch a layer forward and backward: some 80 operators of 7 µs in one of a
# language model, of CoAttention what docs/performance.md measured, three branches a layer.
REACHED, LANGUAGE_LAYER, PROJECTOR_LAYER, FROZEN_LAYER = 0.7, 0.6e-3, 3 * 0.76e-3, 0.25e-3  # s


@dataclass(frozen=True)
class Peak:
    """A GPU's best: dense bfloat16 with float32 sums [FLOP/s], memory and, one way, link [B/s]."""

    flops: float
    memory: float
    link: float


#: NVIDIA's data sheets, SXM modules where there are any, without sparsity; NVLink 3 and 4 in one
#: direction, else PCIe 4 x16.
PEAKS = {
    "rtx4090": Peak(165.2e12, 1.008e12, 32e9),
    "a10": Peak(125e12, 0.6e12, 32e9),
    "l40s": Peak(362e12, 0.864e12, 32e9),
    "a100-40gb": Peak(312e12, 1.555e12, 300e9),
    "a100-80gb": Peak(312e12, 2.039e12, 300e9),
    "h100": Peak(989.4e12, 3.35e12, 450e9),
    "h200": Peak(989.4e12, 4.8e12, 450e9),
}
# How torch names these; an H100 for PCIe, or NVL, is another GPU.
_NAMES = {
    "RTX 4090": "rtx4090",
    "NVIDIA A10": "a10",
    "L40S": "l40s",
    "A100-SXM4-40GB": "a100-40gb",
    "A100-SXM4-80GB": "a100-80gb",
    "H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}


def peak_of(device_name: str) -> Peak | None:
    """Return the peak of a GPU as torch names it, None where it is not known.

    >>> peak_of("NVIDIA H200").flops, peak_of("NVIDIA A100-PCIE-40GB")
    (989400000000000.0, None)
    """
    keys = (key for name, key in _NAMES.items() if device_name.endswith(name))
    key = next(keys, None)
    return None if key is None else PEAKS[key]


@dataclass(frozen=True)
class Rates:
    """FLOPs of a model's training: a text token, a scored one, a pair of T², an atom."""

    token: float
    scored: float
    pair: float
    atom: float

    def flops(self, tokens: float, scored: float, pairs: float, atoms: float) -> float:
        """Return the FLOPs of a step: `pairs` is Σ T² over its prompts.

        An atom is one token in each branch of encoders and projector.
        """
        return self.token * tokens + self.scored * scored + self.pair * pairs + self.atom * atoms


def rates(model: nn.Module, text: PreTrainedConfig) -> Rates:
    """Return what training `model` costs; its weights may be on the meta device.

    `text` is the configuration of its language model.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    per: dict[str, float] = {"token": 0, "scored": 0, "atom": 0}
    trains_table = False
    for name, weight in model.named_parameters():
        part = part_of(name)
        of_molecule = part in (PROJECTOR, FACTS_HEAD, *ENCODERS)
        # peft keeps the part that it trains a copy of, unused.
        if weight.dim() < 2 or "original_module" in name:
            continue
        if id(weight) in tables and part != "lm_head":
            trains_table |= weight.requires_grad and not of_molecule
            continue
        factor = 6 if weight.requires_grad else 2 if part in ENCODERS else 4
        use = "atom" if of_molecule else "scored" if part == "lm_head" else "token"
        per[use] += factor * weight.numel()
    if not per["scored"]:  # tied to the embedding, and no parameter of its own
        per["scored"] = (6 if trains_table else 4) * text.hidden_size * text.vocab_size
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    pair = 6 * text.num_hidden_layers * head * text.num_attention_heads
    return Rates(per["token"], per["scored"], pair, per["atom"])


@dataclass(frozen=True)
class Step:
    """The work of one step of one process: FLOPs that it needs, those that gradient checkpointing
    adds, bytes of weights with activations, of the optimizer and of gradients, host [s]."""

    flops: float
    again: float
    memory: float
    optimizer: float
    gradients: float
    host: float

    def seconds(self, peak: Peak, gpus: int = 1) -> dict[str, float]:
        """Return the time each part alone takes, by name; `least_time` says how they add up."""
        reduced = 2 * (gpus - 1) / gpus * self.gradients / peak.link
        return {
            "products of matrices": (self.flops + self.again) / (REACHED * peak.flops),
            "weights and activations": self.memory / peak.memory,
            "launches by the host": self.host,
            "optimizer": self.optimizer / peak.memory,
            "gradients between GPUs": reduced,
        }


def least_time(seconds: dict[str, float]) -> tuple[float, str]:
    """Return the time of a step [s], and the name of what limits it.

    Products, memory and host go on side by side: the longest counts. The update begins when all
    gradients are there, and theirs come last, from the projector: these two are added.
    """
    names = ("products of matrices", "weights and activations", "launches by the host")
    limit = max(names, key=lambda name: seconds[name])
    return seconds[limit] + seconds["optimizer"] + seconds["gradients between GPUs"], limit


def step_work(
    model: nn.Module,
    config: CollamoConfig,
    batch: PlannedBatch,
    *,
    accumulation: int,
    held: float,
    trained: int,
    activations: float,
    checkpointing: bool,
) -> Step:
    """Return the work of a planned step.

    Parameters
    ----------
    held
        Bytes of all weights: each is read forward and backward.
    trained
        Numbers that are trained, their gradients float32.
    activations
        Bytes that the forward pass keeps: written once, read once.
    """
    text, projector = config.text_config, config.projector_config
    cost = rates(model, text)
    rows, tokens = batch.rows, batch.rows * batch.tokens
    atoms = rows * batch.branches / 3
    flops = cost.flops(tokens, batch.scored, rows * batch.tokens**2, atoms)
    again = cost.token * tokens / 2 if checkpointing else 0  # a forward pass more, of 2 N in 4 N
    layers = text.num_hidden_layers * (1.5 if checkpointing else 1)
    frozen = config.gin_config.num_layers + config.unimol_config.num_layers
    host = layers * LANGUAGE_LAYER + projector.num_layers * PROJECTOR_LAYER + frozen * FROZEN_LAYER
    return Step(
        flops=accumulation * flops,
        again=accumulation * again,
        memory=accumulation * (2 * held + 2 * activations),
        optimizer=OPTIMIZER_BYTES * trained,
        gradients=4 * trained,
        host=accumulation * host,
    )
