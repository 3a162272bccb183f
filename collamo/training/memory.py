"""How much memory training takes: weights with what belongs to them, and activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from collamo.model.configuration import CollamoConfig
from collamo.training.freezing import part_of
from collamo.training.recipe import LoraRecipe

# Our guess: a molecule of PubChem has 27 atoms on average.
ATOMS = SELFIES = 32
#: Of a number in NF4, its scales quantized once more: 4 bits, a byte per 64, 4 bytes per 64 · 256.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass
class Part:
    """Numbers of one part, and the bytes that its weights and their training hold."""

    name: str
    parameters: int = 0
    trained: int = 0
    weights: float = 0
    gradients: int = 0
    optimizer: int = 0


@dataclass(frozen=True)
class PlannedBatch:
    """What one forward pass reads: `rows` prompts of `tokens` each, of which `scored` in all.

    `soft` tokens of a molecule, and the `branches` tokens it has in 1D, 2D and 3D together.
    """

    rows: int
    tokens: int
    scored: int
    soft: int
    branches: int = 2 * ATOMS + SELFIES


def count(model: nn.Module, dtype: torch.dtype, four_bits: bool, stage: str) -> tuple[Part, ...]:
    """Return the parts of a model in their order, with what training them holds.

    `dtype` is that of frozen weights. With `four_bits` the linear layers of the language model are
    in NF4 (`NF4_BYTES` a number), and in stage `tune` the rest of it in float32.
    """
    parts: dict[str, Part] = {}
    for name, parameter in model.named_parameters():
        name_of_part = "lora" if ".lora_" in name else part_of(name)
        part = parts.setdefault(name_of_part, Part(name_of_part))
        numbers, quantizable = parameter.numel(), name_of_part == "language_model"
        part.parameters += numbers
        if parameter.requires_grad:
            part.trained += numbers
            part.weights += 4 * numbers
            part.gradients += 4 * numbers
            part.optimizer += 8 * numbers
        elif four_bits and quantizable and parameter.dim() == 2 and "embed" not in name:
            part.weights += NF4_BYTES * numbers
        elif four_bits and quantizable and stage == "tune":
            part.weights += 4 * numbers
        else:
            part.weights += dtype.itemsize * numbers
    return tuple(parts.values())


def activation_bytes(
    config: CollamoConfig,
    batch: PlannedBatch,
    trained: int,
    half: bool = True,
    lora: LoraRecipe | None = None,
    checkpointing: bool = False,
) -> int:
    """Estimate the bytes that the forward pass keeps for the backward pass.

    With e bytes a number (2 under autocast, else 4), width h, a query and b key-value channels, I
    channels inside the MLP, a token keeps in every layer of the language model::

        8 h                  the inputs of two norms, float32
        e (2 a + 2 b + 3 I)  queries and output, keys and values of the attention; gate, up, product
        (4 + e) h            per LoRA target that reads the stream

    and beside the layers 4 h for the last norm. With `checkpointing` every layer keeps its input
    alone (e h), and one layer the rest. A scored token keeps its logits in e and in 4 bytes. In
    each of the projector's layers a token of a branch or a query keeps 15 e C + 2 e F. Of `trained`
    weights autocast keeps a copy in half precision. Encoders are counted as frozen.
    """
    text, projector = config.text_config, config.projector_config
    e, h = (2 if half else 4), text.hidden_size
    head = getattr(text, "head_dim", None) or h // text.num_attention_heads
    queries = head * text.num_attention_heads
    keys = head * getattr(text, "num_key_value_heads", text.num_attention_heads)
    layer = 8 * h + e * (2 * queries + 2 * keys + 3 * text.intermediate_size)
    if lora is not None:
        layer += (4 + e) * h * len(lora.targets)
    layers = text.num_hidden_layers * (e * h if checkpointing else layer)
    of_token = layers + 4 * h + (layer if checkpointing else 0)
    of_scored = (e + 4) * text.vocab_size
    sides = 15 * projector.hidden_size + 2 * projector.intermediate_size
    copies = e * trained if half else 0
    of_molecule = e * projector.num_layers * (batch.soft + batch.branches) * sides
    of_prompt = batch.tokens * of_token + of_molecule
    return copies + batch.rows * of_prompt + batch.scored * of_scored
