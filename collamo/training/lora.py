"""Low-rank adapters in the language model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel

from collamo.errors import UsageError, suggest
from collamo.training.freezing import PROJECTOR, part_of
from collamo.training.recipe import LoraRecipe


def add_lora(model: nn.Module, lora: LoraRecipe, projector: bool = True) -> PeftModel:
    """Return `model` frozen but for new LoRA weights in the language model, and its projector.

    Without `projector` that is frozen as well.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if is_quantized(model):  # norms and embeddings in float32; checkpointing is Trainer's
        prepare_model_for_kbit_training(model.get_submodule("model.language_model"), False)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # A list would match by the end of the name, in the projector and the encoders too.
        target_modules=rf".*\blanguage_model\..*\b({'|'.join(map(re.escape, lora.targets))})",
        modules_to_save=[PROJECTOR] if projector else None,
    )
    return get_peft_model(model, config)


def expected_with_lora(model: nn.Module, lora: LoraRecipe, projector: bool = True) -> set[str]:
    """Return what must train after `add_lora`: two matrices per target, and the projector."""
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and part_of(name) == "language_model"
    ]
    leaves = {name.rpartition(".")[2] for name in linears}
    for target in lora.targets:
        if target not in leaves:
            raise UsageError(
                f"lora.targets: the language model has no linear layer {target!r}"
                f"{suggest(target, leaves)}; it has {', '.join(sorted(leaves))}"
            )
    names = {
        f"{name}.lora_{side}.default.weight"
        for name in linears
        if name.rpartition(".")[2] in lora.targets
        for side in "AB"
    }
    kept = f"{PROJECTOR}.modules_to_save.default."
    names |= {
        name.replace(f"{PROJECTOR}.", kept, 1)
        for name, _ in model.named_parameters()
        if projector and part_of(name) == PROJECTOR
    }
    return {f"base_model.model.{name}" for name in names}


def is_quantized(model) -> bool:
    """Return whether the language model is held in 4 bits."""
    return getattr(model.config, "quantization_config", None) is not None
