"""The three stages: which parameters train in each, on what, and what is left behind.

=============== ============================================ ==========================
stage           trained                                      written
=============== ============================================ ==========================
language_model  the whole small LLaMA                        ``final`` (LLM, tokenizer)
align           projector, SELFIES embedding, and the other  ``final`` (full checkpoint)
                encoders if the recipe says so; a head for
                the facts, dropped at the end
tune            projector and LoRA in the language model     ``adapter``, ``final`` (merged;
                                                             not beside 4 bits)
=============== ============================================ ==========================
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import set_seed

from collamo.errors import CollamoError, UsageError, suggest
from collamo.model.checksums import write_checksums
from collamo.training.examples import (
    Document,
    QuestionCollator,
    QuestionDataset,
    TextBlocks,
    dialogue_documents,
    dialogues,
    plain_documents,
    stack,
)
from collamo.training.facts import FactsHead
from collamo.training.manifest import find_last_valid_checkpoint
from collamo.training.recipe import LoraRecipe, Recipe
from collamo.training.trainer import (
    PROJECTOR,
    data_seed,
    make_trainer,
    only_one,
    prepare_output,
    training_arguments,
)
from collamo_kernels import use_backend

logger = logging.getLogger(__name__)

FACTS_HEAD = "facts_head"
ENCODERS = ("selfies_encoder", "graph_encoder", "conformer_encoder")
LANGUAGE_MODEL = ("language_model", "lm_head")


def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Run `recipe` and return the folder of what it made (``<output>/final``).

    With `resume` training goes on from the newest whole checkpoint of the output folder. Damaged
    ones are passed over, with a warning that names them; where there is none, or only one that was
    never finished, training starts anew.

    Raises
    ------
    UsageError
        For an output folder that already holds checkpoints, unless `resume`, or that another
        training is writing to.
    CollamoError
        When the loss or a gradient is NaN or infinite, the wrong parameters would be trained,
        weights cannot be written, or every finished checkpoint to resume from is damaged.
    """
    output = Path(recipe.output)
    prepare_output(output, resume)
    with only_one(output):
        return _train(recipe, output, resume)


def _train(recipe: Recipe, output: Path, resume: bool) -> Path:
    checkpoint = find_last_valid_checkpoint(output) if resume else None
    logger.info(
        "stage %s: %s", recipe.stage, f"from {checkpoint}" if checkpoint else "from the start"
    )
    # Before the model is built: its new weights are drawn from torch's generator.
    set_seed(training_arguments(recipe).seed)
    run = {"language_model": _train_language_model, "align": _align, "tune": _tune}[recipe.stage]
    with use_backend(None if recipe.kernels else "reference"):
        try:
            return run(recipe, output, str(checkpoint) if checkpoint else None)
        except SafetensorError as error:
            raise CollamoError(
                f"weights in {output} cannot be read or written: {error}; make room, or put the "
                "checkpoint back, and go on with --resume"
            ) from error


def _align(recipe: Recipe, output: Path, checkpoint: str | None) -> Path:
    model, processor, data = _start(recipe)
    parts = align_parts(recipe)
    if recipe.facts_weight:
        # Part of the model while it trains, so that checkpoints hold it and resuming finds it.
        model.facts_head = _facts_head(model, data)
    freeze_all_but(model, parts)
    expected = {name for name, _ in model.named_parameters() if part_of(name) in parts}
    _fit(recipe, model, processor, data, expected, checkpoint)
    if recipe.facts_weight:
        del model.facts_head
    return _save(model, processor, output / "final")


def align_parts(recipe: Recipe) -> tuple[str, ...]:
    """Return the parts of CoLLaMo that stage `align` trains."""
    encoders = ENCODERS if recipe.train_encoders else ("selfies_encoder",)
    return (PROJECTOR, FACTS_HEAD, *encoders)


def _facts_head(model, data) -> FactsHead:
    sizes = model.config.projector_config.num_query_tokens, model.config.text_config.hidden_size
    return FactsHead(*sizes, (data.facts(row) for row in data.molecules("train")))


def _tune(recipe: Recipe, output: Path, checkpoint: str | None) -> Path:
    model, processor, data = _start(recipe)
    expected = expected_with_lora(model, recipe.lora)
    adapted = add_lora(model, recipe.lora)
    _fit(recipe, adapted, processor, data, expected, checkpoint)
    # "auto" would ask the hub whether the vocabulary has grown.
    adapted.save_pretrained(str(output / "adapter"), save_embedding_layers=False)
    write_checksums(output / "adapter")
    processor.save_pretrained(str(output / "adapter"))
    if is_quantized(model):
        logger.info("a language model of 4 bits is not merged; `collamo merge` says what can be")
        return output / "adapter"
    return _save(adapted.merge_and_unload(), processor, output / "final")


def _start(recipe: Recipe):
    """Return (model, processor, data) a multimodal stage begins with."""
    from collamo.data.prepared import PreparedData
    from collamo.model import build_model, load_checkpoint

    data = PreparedData.open(recipe.data)
    if recipe.init_from:
        model, processor = load_checkpoint(
            recipe.init_from, attn_implementation=recipe.attn_implementation
        )
    else:
        model, processor = build_model(
            recipe.llm,
            recipe.model,
            unimol=recipe.unimol,
            gin=recipe.gin,
            selfies_tokens=data.manifest.selfies_vocabulary,
            dtype=getattr(torch, recipe.dtype) if recipe.dtype else None,
            attn_implementation=recipe.attn_implementation,
            quantization=recipe.quantization,
        )
    if is_quantized(model):
        # Trainer refuses to train it, not knowing that what is quantized stays frozen.
        model.is_quantized = False
    return model, processor, data


def is_quantized(model) -> bool:
    """Return whether the language model is held in 4 bits."""
    return getattr(model.config, "quantization_config", None) is not None


def _fit(recipe, model, processor, data, expected: Iterable[str], checkpoint: str | None) -> None:
    """Train the parameters named in `expected`, and nothing else."""
    from collamo.model.precompute import use_encoder_outputs

    assert_trained(model, expected, recipe.stage)
    if recipe.encoded:
        use_encoder_outputs(model, data)
    _widen_trained(model, recipe)
    seed = data_seed(training_arguments(recipe))
    tasks = {"names": recipe.tasks.names, "seed": seed}
    trainer = make_trainer(
        recipe,
        model,
        processor,
        train=QuestionDataset(
            data,
            "train",
            per_molecule=recipe.tasks.per_molecule,
            shares=recipe.tasks.shares,
            facts=recipe.facts_weight > 0,
            **tasks,
        ),
        # One question per molecule: the same ones at every evaluation, and few enough to be quick.
        validation=_validation(
            recipe, lambda: QuestionDataset(data, "validation", per_molecule=1, **tasks)
        ),
        collator=QuestionCollator(processor),
        frozen=frozen_modules(model, recipe),
    )
    trainer.train(resume_from_checkpoint=checkpoint)


def _widen_trained(model: nn.Module, recipe: Recipe) -> None:
    """Keep what trains in float32 where the rest is of half precision.

    A step of 5e-5 is less than bfloat16 can add to a weight of 0.02: it would round to nothing.
    """
    half = [p for p in model.parameters() if p.requires_grad and p.dtype.itemsize < 4]
    if not half:
        return
    if not (recipe.training.get("bf16") or recipe.training.get("fp16")):
        raise UsageError("a model of half precision trains with `training.bf16: true` (or fp16)")
    for parameter in half:
        parameter.data = parameter.data.float()


def _validation(recipe: Recipe, make):
    return make() if recipe.training.get("eval_strategy", "no") != "no" else None


def _save(model, processor, folder: Path) -> Path:
    model.save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    return folder


def _train_language_model(recipe: Recipe, output: Path, checkpoint: str | None) -> Path:
    from collamo.data.prepared import PreparedData

    data = PreparedData.open(recipe.data)
    model, tokenizer = tiny_language_model(list(data.text("train")), recipe.model)
    seed = data_seed(training_arguments(recipe))

    def blocks(split: str) -> TextBlocks:
        documents = corpus(data, split, tokenizer, recipe.dialogues, seed)
        return TextBlocks(documents, block=recipe.block, seed=seed)

    trainer = make_trainer(
        recipe,
        model,
        tokenizer,
        train=blocks("train"),
        validation=_validation(recipe, lambda: blocks("validation")),
        collator=stack,
    )
    assert_trained(model, {name for name, _ in model.named_parameters()}, recipe.stage)
    trainer.train(resume_from_checkpoint=checkpoint)
    final = _save(model, tokenizer, output / "final")
    write_checksums(final)
    return final


def corpus(data, split: str, tokenizer, per_molecule: int, seed: int) -> list[Document]:
    """Return the text of a split: captions as they stand, the other questions inside dialogues.

    Without dialogues every question with its answer is a line of plain text.
    """
    if not per_molecule:
        return plain_documents(data.text(split), tokenizer)
    tasks = list(data.tasks(split))
    captions = [f"{e.question} {e.answer}" for e in tasks if e.task == "caption"]
    questions = (e for e in tasks if e.task != "caption")
    chats = dialogues(questions, per_molecule=per_molecule, seed=seed)
    return [*plain_documents(captions, tokenizer), *dialogue_documents(chats, tokenizer)]


def tiny_language_model(texts: Sequence[str], overrides: Mapping[str, Any]):
    """Return an untrained small LLaMA and the tokenizer trained on `texts`.

    `overrides` are fields of LlamaConfig and ``vocab_size``, the upper limit of the tokenizer's.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from collamo.model import tiny_llama_config, train_tokenizer

    known = {field.name for field in dataclasses.fields(LlamaConfig)}
    for key in overrides:
        if key not in known:  # LlamaConfig itself takes any key without a word
            raise UsageError(f"unknown key 'model.{key}'{suggest(key, known)}")
    sizes = dict(overrides)
    limit = {"vocab_size": sizes.pop("vocab_size")} if "vocab_size" in sizes else {}
    tokenizer = train_tokenizer(texts, **limit)
    try:
        config = tiny_llama_config(len(tokenizer), **sizes)
    except (ValueError, TypeError) as error:
        raise UsageError(f"model: {' '.join(str(error).split())}") from None
    return LlamaForCausalLM(config), tokenizer


def part_of(name: str) -> str:
    """Return which part of CoLLaMo a parameter belongs to, "" for none.

    >>> part_of("model.mol_projector.layers.0.norm.weight")
    'mol_projector'
    """
    parts = (PROJECTOR, FACTS_HEAD, *ENCODERS, *LANGUAGE_MODEL)
    return next((piece for piece in name.split(".") if piece in parts), "")


def freeze_all_but(model: nn.Module, parts: Iterable[str]) -> None:
    """Let only the parameters of `parts` receive gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)


def add_lora(model: nn.Module, lora: LoraRecipe):
    """Return `model` frozen but for its projector and new LoRA weights in the language model."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if is_quantized(model):  # norms and embeddings in float32; checkpointing is Trainer's
        prepare_model_for_kbit_training(model.model.language_model, False)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # A list would match by the end of the name, in the projector and the encoders too.
        target_modules=rf".*\blanguage_model\..*\b({'|'.join(map(re.escape, lora.targets))})",
        modules_to_save=[PROJECTOR],
    )
    return get_peft_model(model, config)


def expected_with_lora(model: nn.Module, lora: LoraRecipe) -> set[str]:
    """Return what must train after `add_lora`: the projector, and two matrices per target."""
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
        if part_of(name) == PROJECTOR
    }
    return {f"base_model.model.{name}" for name in names}


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


def frozen_modules(model: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """Return the encoders, and the language model, of which nothing is trained.

    The language model is left alone under gradient checkpointing, which transformers applies in
    training mode only.
    """
    parts = ENCODERS if checkpoints_activations(recipe) else (*ENCODERS, "language_model")
    return [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in parts
        and not any(p.requires_grad for p in module.parameters())
    ]


def checkpoints_activations(recipe: Recipe) -> bool:
    """Return whether layers are computed again in the backward pass."""
    # activation_checkpointing is the same option's name from transformers 5.23 on.
    names = ("gradient_checkpointing", "activation_checkpointing")
    return any(recipe.training.get(name) for name in names)
