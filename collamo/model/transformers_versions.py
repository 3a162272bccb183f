"""Where the supported versions of transformers differ: 5.17 is the oldest of them.

vLLM pins transformers below 5.20 and a fresh installation gets the newest; the model serves both.
One difference has to stand elsewhere: `CollamoProcessor` overrides the public
`apply_chat_template`, because the private hook for further inputs drops them in 5.17.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import transformers
from transformers.modeling_outputs import BaseModelOutputWithPast

#: The keys and values of earlier tokens, as argument and as output of a language model: "cache"
#: from 5.24 on, "past_key_values" before.
CACHE = next(
    field.name
    for field in fields(BaseModelOutputWithPast)
    if field.name in ("cache", "past_key_values")
)


def checkpoints_activations(training: Mapping[str, Any]) -> bool:
    """Return whether these training arguments compute layers again in the backward pass.

    The option is called "gradient_checkpointing", and from 5.23 on "activation_checkpointing" too.
    """
    names = ("gradient_checkpointing", "activation_checkpointing")
    return any(training.get(name) for name in names)


def gguf_options() -> dict[str, Any]:
    """Return the keyword arguments with which `from_pretrained` unpacks the blocks of a GGUF file.

    5.17 always does; 5.24 would compute with the blocks where the package kernels is installed, and
    nothing could be trained.
    """
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def save_options(dequantized: bool) -> dict[str, bool]:
    """Return the keyword arguments with which `save_pretrained` writes a model.

    5.17 would try to quantize again what was dequantized from 4 bits.
    """
    return {"save_original_format": not dequantized}
