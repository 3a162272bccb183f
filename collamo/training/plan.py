"""What a recipe will take, from its configuration alone: parameters, memory, tokens a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from collamo.errors import MissingDependencyError, UsageError, suggest
from collamo.model.build import published_encoders
from collamo.model.configuration import LLAMA2_7B, CollamoConfig
from collamo.model.gguf_file import gguf_config, gguf_file
from collamo.model.modeling import CollamoForConditionalGeneration
from collamo.model.transformers_versions import checkpoints_activations
from collamo.schema import shipped
from collamo.training.freezing import (
    align_parts,
    assert_trained,
    freeze_all_but,
)
from collamo.training.lora import add_lora, expected_with_lora
from collamo.training.memory import (
    ATOMS,
    SELFIES,
    Part,
    PlannedBatch,
    activation_bytes,
    count,
)
from collamo.training.recipe import Recipe, load_recipe, split_overrides
from collamo.training.roofline import Step, step_work

# Our guess: a question with its answer and the template around them has 40 to 60 tokens.
QUESTION = 64  # tokens
#: Beside the tensors: the CUDA context with its libraries, and a tenth lost between blocks.
CONTEXT, FRAGMENTATION = 2**30, 1.1
#: Files of configs/accelerate whose memory is known.
STRATEGIES = ("ddp", "fsdp2")


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe; see `plan`."""

    title: str
    parts: tuple[Part, ...]
    batch: PlannedBatch
    activations: int
    accumulation: int
    notes: tuple[str, ...]
    step: Step | None = None
    """The work of a step in half precision; None in float32, whose peaks are others."""
    layers: int = 1
    """Of the language model."""
    gpus: int = 1
    strategy: str = "ddp"
    passing: float = 0.0
    """Bytes that are there for the time of a layer, or of sending: see `spread`."""

    @property
    def total(self) -> Part:
        """The parts added up."""
        total = Part("total")
        for part in self.parts:
            for field in ("parameters", "trained", "weights", "gradients", "optimizer"):
                setattr(total, field, getattr(total, field) + getattr(part, field))
        return total

    @property
    def needed(self) -> float:
        """Bytes of a GPU, with what is lost on it."""
        total = self.total
        held = total.weights + total.gradients + total.optimizer + self.activations + self.passing
        return FRAGMENTATION * held + CONTEXT


def plan_file(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Return the plan of the recipe at `path` with `overrides`, options of `collamo train`.

    Those that say what the model is built from (``--llm``, ``--unimol``, ``--gin`` …) reach the
    recipe that builds it, also where `path` goes on from its result.

    Raises
    ------
    UsageError
        As `load_recipe`; where the checkpoint that `path` goes on from is there, and so fixes what
        it was built from; and as `plan`.
    MissingDependencyError
        As `plan`.
    """
    path = shipped(Path(path))
    building, others = split_overrides(overrides)
    recipe = load_recipe(path, others)
    if recipe.init_from is None:
        return plan(load_recipe(path, overrides), path)
    if building and _is_there(recipe.init_from):
        raise UsageError(
            f"'{recipe.init_from}' is there already and fixes what it was built from; drop "
            f"{', '.join(option.partition('=')[0] for option in building)}"
        )
    return plan(recipe, path, building)


def plan(recipe: Recipe, path: str | Path | None = None, building: Sequence[str] = ()) -> Plan:
    """Build the model of `recipe` on the meta device and count; no weights are needed.

    Sizes of the language model come from the preset for LLaMA-2-7B-chat, else from the config.json
    in its folder; those of published encoders from their files, where these are here. Where
    `init_from` is not there yet, the recipe that will write it is looked for beside `path` and read
    with the options `building`. Weights take the bytes of their dtype, trained ones 4 (see
    `train`), gradients 4 and AdamW's two moments 8; `activation_bytes` has its own formula.

    Raises
    ------
    UsageError
        For stage `language_model`, which fits anywhere.
    MissingDependencyError
        If the configuration of the language model is not there.
    """
    if recipe.stage == "language_model":
        raise UsageError("stage language_model trains half a million parameters: they fit anywhere")
    first = _first(recipe, None if path is None else Path(path), building)
    config, dtype, missing = _configuration(first, recipe)
    four_bits = first.quantization == "4bit" or hasattr(config, "quantization_config")
    model: nn.Module = skeleton(config)
    if recipe.stage == "align":
        freeze_all_but(model, align_parts(recipe))
    else:
        projector = recipe.molecules_as == "soft_tokens"
        expected = expected_with_lora(model, recipe.lora, projector)
        model = add_lora(model, recipe.lora, projector)
        assert_trained(model, expected, recipe.stage)
    # Not TrainingArguments itself: without a GPU it refuses bf16. Its default is 8.
    training = recipe.training
    batch = _batch(recipe, config, training.get("per_device_train_batch_size", 8))
    parts = count(model, dtype, four_bits, recipe.stage)
    trained = sum(part.trained for part in parts)
    half = dtype.itemsize < 4 or bool(training.get("bf16") or training.get("fp16"))
    checkpointing = checkpoints_activations(recipe.training)
    activations = activation_bytes(
        config,
        batch,
        trained=trained,
        half=half,
        lora=recipe.lora if recipe.stage == "tune" else None,
        checkpointing=checkpointing,
    )
    accumulation = training.get("gradient_accumulation_steps", 1)
    work = step_work(
        model,
        config,
        batch,
        accumulation=accumulation,
        held=sum(part.weights for part in parts),
        trained=trained,
        activations=activations,
        checkpointing=checkpointing,
    )
    return Plan(
        title=f"stage {recipe.stage} on {first.llm or first.init_from}",
        parts=parts,
        batch=batch,
        activations=activations,
        accumulation=accumulation,
        notes=(*_notes(recipe, first), *missing),
        step=work if half else None,
        layers=config.text_config.num_hidden_layers,
    )


def spread(plan: Plan, gpus: int, strategy: str) -> Plan:
    """Return the plan of each of `gpus` GPUs.

    ========  ===================================  =============================================
    strategy  held by each                         beside it, for a while
    ========  ===================================  =============================================
    ddp       everything                           gradients once more, in the buckets sent
    fsdp2     1/gpus of weights, gradients and     two of the language model's layers, its output
              AdamW's moments                      layer, and all of projector and encoders, whole,
                                                   with their gradients
    ========  ===================================  =============================================

    Raises
    ------
    UsageError
        For another strategy, or fewer than one GPU.
    """
    if strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise UsageError(
            f"--strategy {strategy!r} is none of {known}{suggest(strategy, STRATEGIES)}"
        )
    if gpus < 1:
        raise UsageError(f"--gpus must be at least 1, got {gpus}")
    if gpus == 1:
        return plan
    if strategy == "ddp":
        return replace(plan, gpus=gpus, passing=plan.total.gradients)
    parts = tuple(
        replace(
            part,
            weights=part.weights / gpus,
            gradients=part.gradients // gpus,
            optimizer=part.optimizer // gpus,
        )
        for part in plan.parts
    )
    passing = 0.0
    for part in plan.parts:
        share = 2 / plan.layers if part.name in ("language_model", "lora") else 1
        passing += share * (part.weights + part.gradients)
    return replace(plan, gpus=gpus, strategy=strategy, parts=parts, passing=passing)


def skeleton(config: CollamoConfig) -> CollamoForConditionalGeneration:
    """Return the model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return CollamoForConditionalGeneration(config)


def _is_there(checkpoint: str) -> bool:
    return (Path(checkpoint) / "config.json").is_file()


def _first(recipe: Recipe, path: Path | None, building: Sequence[str]) -> Recipe:
    """Return the recipe that loads the language model: this one, or one that comes before it."""
    checkpoint = recipe.init_from
    if checkpoint is None or _is_there(checkpoint):
        return recipe
    for other in [] if path is None else sorted(path.parent.glob("*.yaml")):
        before = load_recipe(other)
        if before.stage == "align" and Path(before.output) / "final" == Path(checkpoint):
            return _first(load_recipe(other, building), other, building)
    raise MissingDependencyError(
        f"'{recipe.init_from}' is not there, nor a recipe beside this one that will write it; "
        "train stage align first, or set init_from"
    )


def _configuration(
    first: Recipe, recipe: Recipe
) -> tuple[CollamoConfig, torch.dtype, tuple[str, ...]]:
    """Return the configuration of the model, the dtype of what is frozen in it, and a note on each
    encoder whose file is not here."""
    if first.init_from is not None:
        config = CollamoConfig.from_pretrained(first.init_from)
        saved = config.dtype or torch.float32
        return config, getattr(torch, saved) if isinstance(saved, str) else saved, ()
    assert first.llm is not None  # `parse_recipe` refuses a recipe without either
    text = _text_config(first.llm)
    preset = "llama2-7b" if text is None or text.hidden_size >= 4096 else "tiny"
    config = CollamoConfig.from_overrides(preset, first.model, text_config=text)
    config.text_config.vocab_size += text is None  # a row for <mol>, which LLaMA-2 has none for
    manifest = Path(recipe.data) / "manifest.json"
    if manifest.is_file():
        from collamo.data.prepared import PreparedData

        tokens = PreparedData.open(recipe.data).manifest.selfies_vocabulary
        config.selfies_config.vocab_size = len(tokens) + 2  # padding and the unknown
    weights = {name: getattr(first, name) for name in ("unimol", "gin")}
    here = {name: x for name, x in weights.items() if x is None or Path(x).exists()}
    for part, encoder in published_encoders(
        here.get("unimol"), here.get("gin"), first.model
    ).items():
        setattr(config, part, encoder.config)
    missing = tuple(
        f"{name} '{x}' is not here; planned with the sizes of the preset"
        for name, x in weights.items()
        if name not in here
    )
    dtype = getattr(text, "dtype", None) or (torch.float16 if text is None else torch.float32)
    return config, getattr(torch, first.dtype) if first.dtype else dtype, missing


def _text_config(llm: str) -> PreTrainedConfig | None:
    """Return the language model's configuration, None for the preset's own."""
    file = gguf_file(llm)
    if file is not None:
        return gguf_config(file)
    if Path(llm).is_dir():
        return AutoConfig.from_pretrained(llm)
    if Path(llm).name == Path(LLAMA2_7B).name:
        return None
    try:
        return AutoConfig.from_pretrained(llm, local_files_only=True)
    except OSError as error:
        raise MissingDependencyError(
            f"the sizes of '{llm}' are not known here: give a folder with its config.json (--llm)"
        ) from error


def _batch(recipe: Recipe, config: CollamoConfig, rows: int) -> PlannedBatch:
    soft = config.projector_config.num_query_tokens
    questions = recipe.tasks.per_molecule
    return PlannedBatch(rows, soft + QUESTION * questions, rows * questions * QUESTION // 4, soft)


def _notes(recipe: Recipe, first: Recipe) -> tuple[str, ...]:
    notes = [
        f"tokens: {QUESTION} for a question with its answer, a fourth of them scored, "
        f"{ATOMS} atoms and {SELFIES} SELFIES tokens a molecule; our guess, not counted in the data"
    ]
    if first is not recipe:
        notes.append(
            f"'{recipe.init_from}' is not there yet; planned from the recipe that makes it"
        )
    if recipe.stage == "align" and recipe.train_encoders:
        notes.append("the encoders train too; what their layers keep is not in the activations")
    if recipe.facts_weight:
        notes.append("the facts' head, a linear map, is left out")
    optimizer = str(recipe.training.get("optim", "adamw_torch_fused"))
    if not optimizer.startswith("adamw_torch") or "8bit" in optimizer or "4bit" in optimizer:
        notes.append(f"the optimizer is counted as AdamW with two float32 moments, not {optimizer}")
    return tuple(notes)
