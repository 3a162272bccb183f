"""The three stages: which parameters train in each, on what, and what is left behind.

=============== ============================================ ==========================
stage           trained                                      written
=============== ============================================ ==========================
language_model  the whole small LLaMA                        ``final`` (LLM, tokenizer)
align           projector, SELFIES embedding, and the other  ``final`` (full checkpoint)
                encoders if the recipe says so; a head for
                the facts, dropped at the end
tune            projector and LoRA in the language model;    ``adapter`` where it began with a
                LoRA alone where SMILES stand for molecules  checkpoint, ``final`` (merged; not
                                                             beside 4 bits)
=============== ============================================ ==========================
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import set_seed

from collamo.data.prepared import PreparedData
from collamo.errors import CollamoError, UsageError
from collamo.files import naming, replacing_folder
from collamo.model import (
    CollamoForConditionalGeneration,
    CollamoProcessor,
    build_model,
    load_checkpoint,
)
from collamo.model.checksums import write_checksums
from collamo.model.precompute import use_encoder_outputs
from collamo.training.facts_head import FactsHead
from collamo.training.freezing import (
    FACTS_HEAD,
    align_parts,
    assert_trained,
    freeze_all_but,
    frozen_modules,
    part_of,
)
from collamo.training.language_model import train_language_model
from collamo.training.lora import add_lora, expected_with_lora, is_quantized
from collamo.training.manifest import find_last_valid_checkpoint
from collamo.training.output import only_one, prepare_output, save
from collamo.training.processes import from_first, is_first, wait_for_all
from collamo.training.questions import QuestionCollator, QuestionDataset
from collamo.training.recipe import Recipe
from collamo.training.settings import check_settings, trained_settings
from collamo.training.sharding import whole_weights
from collamo.training.trainer import (
    StageTrainer,
    data_seed,
    evaluates,
    make_trainer,
    training_arguments,
)
from collamo_kernels import use_backend

if TYPE_CHECKING:
    from peft import PeftModel

    #: An adapter that was not merged can be trained on, too.
    Model = CollamoForConditionalGeneration | PeftModel

logger = logging.getLogger(__name__)


def train(recipe: Recipe, *, resume: bool = False, allow_changed: Collection[str] = ()) -> Path:
    """Run `recipe` and return the folder of what it made (``<output>/final``).

    With `resume` training goes on from the newest whole checkpoint of the output folder. Damaged
    ones are passed over, with a warning that names them; where there is none, or only one that was
    never finished, training starts anew.

    Settings that decide what is learned must be those the checkpoint was trained with, but for the
    ones named in `allow_changed` (such as ``training.learning_rate``), whose new values hold from
    there on.

    Raises
    ------
    UsageError
        For an output folder that already holds checkpoints, unless `resume`, or that another
        training is writing to, or for a checkpoint that was trained with other settings.
    TerminatedError
        After a SIGTERM, with the checkpoint of the last whole step written.
    CollamoError
        When the loss or a gradient is NaN or infinite, the wrong parameters would be trained,
        weights cannot be written, or every finished checkpoint to resume from is damaged.
    """
    if allow_changed and not resume:
        raise UsageError("--allow-changed says what may differ when training goes on; add --resume")
    output = Path(recipe.output)
    arguments = training_arguments(recipe)  # connects the processes of this training
    from_first(lambda: prepare_output(output, resume))
    with only_one(output):
        checkpoint = from_first(lambda: find_last_valid_checkpoint(output)) if resume else None
        if checkpoint is not None:
            settings = trained_settings(recipe, arguments)
            check_settings(settings, checkpoint, allowed=allow_changed)
        return _train(recipe, output, checkpoint)


def _train(recipe: Recipe, output: Path, checkpoint: Path | None) -> Path:
    logger.info(
        "stage %s: %s", recipe.stage, f"from {checkpoint}" if checkpoint else "from the start"
    )
    # Before the model is built: its new weights are drawn from torch's generator.
    set_seed(training_arguments(recipe).seed)
    run = {"language_model": train_language_model, "align": _align, "tune": _tune}[recipe.stage]
    with use_backend(None if recipe.kernels else "reference"):
        try:
            with naming(output):  # a checkpoint has many writers, and few of them name their file
                return run(recipe, output, str(checkpoint) if checkpoint else None)
        except SafetensorError as error:
            raise CollamoError(
                f"weights in {output} cannot be read or written: {error}; make room, or put the "
                "checkpoint back, and go on with --resume"
            ) from error


def _align(recipe: Recipe, output: Path, checkpoint: str | None) -> Path:
    model, processor, data = _start(recipe)
    parts = align_parts(recipe)
    head = _facts_head(model, data) if recipe.facts_weight else None
    if head is not None:
        # Part of the model while it trains, so that checkpoints hold it and resuming finds it.
        head.join(model)
    freeze_all_but(model, parts)
    expected = {name for name, _ in model.named_parameters() if part_of(name) in parts}
    trainer = _fit(recipe, model, processor, data, expected, checkpoint)
    if trainer.is_fsdp_enabled:
        model = cast("Model", _in_one_piece(trainer, lambda: _start(recipe)[0]))
    elif head is not None:
        head.leave(model)
    return save(model, processor, output / "final")


def _facts_head(model: Model, data: PreparedData) -> FactsHead:
    sizes = model.config.projector_config.num_query_tokens, model.config.text_config.hidden_size
    return FactsHead(*sizes, data.facts_of("train"))


def _tune(recipe: Recipe, output: Path, checkpoint: str | None) -> Path:
    model, processor, data = _start(recipe)
    if recipe.molecules_as == "smiles":
        model.config.molecules_as = processor.molecules_as = "smiles"
    projector = processor.molecules_as == "soft_tokens"
    expected = expected_with_lora(model, recipe.lora, projector)
    adapted = add_lora(model, recipe.lora, projector)
    trainer = _fit(recipe, adapted, processor, data, expected, checkpoint)
    if trainer.is_fsdp_enabled:

        def adapt() -> nn.Module:
            fresh, _, _ = _start(recipe)
            fresh.config.molecules_as = processor.molecules_as
            return add_lora(fresh, recipe.lora, projector)

        adapted = cast("PeftModel", _in_one_piece(trainer, adapt))
    if recipe.init_from:  # else there is no checkpoint that an adapter could name as its base
        _save_adapter(adapted, processor, output / "adapter")
    if is_quantized(model):
        logger.info("a language model of 4 bits is not merged; `collamo merge` says what can be")
        return output / "adapter"
    # The others may hold a part of each weight: they have nothing to merge.
    merged = adapted.merge_and_unload() if is_first() else adapted
    return save(merged, processor, output / "final")


def _save_adapter(adapted: PeftModel, processor: CollamoProcessor, folder: Path) -> None:
    if is_first():
        with replacing_folder(folder) as part:
            # "auto" would ask the hub whether the vocabulary has grown.
            adapted.save_pretrained(str(part), save_embedding_layers=False)
            write_checksums(part)
            processor.save_pretrained(str(part))
    wait_for_all()


def _start(recipe: Recipe) -> tuple[Model, CollamoProcessor, PreparedData]:
    """Return (model, processor, data) a multimodal stage begins with."""
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
        model.is_quantized = False  # type: ignore[assignment]  # torch: any value may be set
    return model, processor, data


def _fit(
    recipe: Recipe,
    model: nn.Module,
    processor: CollamoProcessor,
    data: PreparedData,
    expected: Iterable[str],
    checkpoint: str | None,
) -> StageTrainer:
    """Train the parameters named in `expected`, and nothing else."""
    assert_trained(model, expected, recipe.stage)
    if recipe.encoded:
        use_encoder_outputs(model, data)
    _widen_trained(model, recipe)
    seed = data_seed(training_arguments(recipe))
    names = recipe.tasks.names
    train = QuestionDataset(
        data,
        "train",
        names=names,
        seed=seed,
        per_molecule=recipe.tasks.per_molecule,
        shares=recipe.tasks.shares,
        longest_answer=recipe.tasks.longest_answer,
        facts=recipe.facts_weight > 0,
    )
    # One question per molecule: the same ones at every evaluation, and few enough to be quick.
    validation = (
        QuestionDataset(data, "validation", names=names, seed=seed, per_molecule=1)
        if evaluates(recipe)
        else None
    )
    trainer = make_trainer(
        recipe,
        model,
        processor,
        train=train,
        validation=validation,
        collator=QuestionCollator(processor),
        frozen=frozen_modules(model, recipe),
    )
    trainer.fit(checkpoint)
    return trainer


def _in_one_piece(trainer: StageTrainer, build: Callable[[], nn.Module]) -> nn.Module:
    """Return what `build` does with the trained weights of all GPUs in it, in the first process.

    Frozen weights are those it was begun with. The other processes write nothing: they keep theirs.
    """
    weights = whole_weights(trainer.model)
    if not is_first():
        return trainer.model
    set_seed(trainer.args.seed)  # as before the model that was trained was built
    model = build()
    model.load_state_dict(
        {name: x for name, x in weights.items() if part_of(name) != FACTS_HEAD}, strict=False
    )
    return model


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
    for module in model.modules():  # batch norm refuses averages of another dtype than its weights
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            for buffer in module.buffers(recurse=False):
                if buffer.is_floating_point():
                    buffer.data = buffer.data.float()
