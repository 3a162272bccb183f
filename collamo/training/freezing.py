"""Which parts of the model train, and which are left as they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import nn

from collamo.errors import CollamoError
from collamo.model.transformers_versions import checkpoints_activations
from collamo.training.recipe import Recipe

logger = logging.getLogger(__name__)

PROJECTOR = "mol_projector"
FACTS_HEAD = "facts_head"
ENCODERS = ("selfies_encoder", "graph_encoder", "conformer_encoder")
LANGUAGE_MODEL = ("language_model", "lm_head")


def part_of(name: str) -> str:
    """Return which part of CoLLaMo a parameter belongs to, "" for none.

    >>> part_of("model.mol_projector.layers.0.norm.weight")
    'mol_projector'
    """
    parts = (PROJECTOR, FACTS_HEAD, *ENCODERS, *LANGUAGE_MODEL)
    return next((piece for piece in name.split(".") if piece in parts), "")


def align_parts(recipe: Recipe) -> tuple[str, ...]:
    """Return the parts of CoLLaMo that stage `align` trains."""
    encoders = ENCODERS if recipe.train_encoders else ("selfies_encoder",)
    return (PROJECTOR, FACTS_HEAD, *encoders)


def freeze_all_but(model: nn.Module, parts: Iterable[str]) -> None:
    """Let only the parameters of `parts` receive gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)


def frozen_modules(model: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """Return the encoders, and the language model, of which nothing is trained.

    The language model is left alone under gradient checkpointing, which transformers applies in
    training mode only.
    """
    parts = ENCODERS if checkpoints_activations(recipe.training) else (*ENCODERS, "language_model")
    return [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in parts
        and not any(p.requires_grad for p in module.parameters())
    ]


def assert_trained(model: nn.Module, expected: Iterable[str], stage: str) -> None:
    """Raise CollamoError unless exactly the parameters named in `expected` receive gradients.

    PEFT leaves a parameter it cannot match frozen without a word, and adapts a layer nobody meant:
    hours of training would be lost.
    """
    expected = set(expected)
    trained = {name: size(p) for name, p in model.named_parameters() if p.requires_grad}
    unexpected, missing = sorted(trained.keys() - expected), sorted(expected - trained.keys())
    if unexpected or missing:
        problems = [
            f"{len(names)} {what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            for what, names in (("unexpected", unexpected), ("missing", missing))
            if names
        ]
        raise CollamoError(f"stage {stage} would train the wrong parameters: {'; '.join(problems)}")
    every = sum(map(size, model.parameters()))
    parts = dict.fromkeys(part_of(name) for name in trained)
    logger.info(
        "stage %s trains %s of %s parameters: %s",
        stage,
        f"{sum(trained.values()):,}",
        f"{every:,}",
        ", ".join(filter(None, parts)) or "all of it",
    )


def size(parameter: nn.Parameter) -> int:
    """Return how many numbers a parameter stands for; two of 4 bits share a byte."""
    quantized = getattr(parameter, "quant_state", None)
    return parameter.numel() if quantized is None else quantized.shape.numel()
