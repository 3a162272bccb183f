"""What a recipe will take, from its configuration alone: parameters, memory, tokens a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from collamo.errors import MissingDependencyError, UsageError
from collamo.model.build import published_encoders
from collamo.model.configuration import LLAMA2_7B, CollamoConfig
from collamo.model.modeling import CollamoForConditionalGeneration
from collamo.training import stages
from collamo.training.recipe import LoraRecipe, Recipe, load_recipe, split_overrides

# Our guesses of what data holds: a molecule of PubChem has 27 atoms on average, and a question with
# its answer and the template around them 40 to 60 tokens.
ATOMS = SELFIES = 32
QUESTION = 64  # tokens
#: Of a number in NF4, its scales quantized once more: 4 bits, a byte per 64, 4 bytes per 64 · 256.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
#: Beside the tensors: the CUDA context with its libraries, and a tenth lost between blocks.
CONTEXT, FRAGMENTATION = 2**30, 1.1


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
class Batch:
    """What one forward pass reads: `rows` prompts of `tokens` each, of which `scored` in all.

    `soft` tokens of a molecule, and the `branches` tokens it has in 1D, 2D and 3D together.
    """

    rows: int
    tokens: int
    scored: int
    soft: int
    branches: int = 2 * ATOMS + SELFIES


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe; see `plan`."""

    title: str
    parts: tuple[Part, ...]
    batch: Batch
    activations: int
    accumulation: int
    notes: tuple[str, ...]

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
        held = total.weights + total.gradients + total.optimizer + self.activations
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
    building, others = split_overrides(overrides)
    recipe = load_recipe(path, others)
    if recipe.init_from is None:
        return plan(load_recipe(path, overrides), path)
    if building and _is_there(recipe):
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
    model = skeleton(config)
    if recipe.stage == "align":
        stages.freeze_all_but(model, stages.align_parts(recipe))
    else:
        expected = stages.expected_with_lora(model, recipe.lora)
        model = stages.add_lora(model, recipe.lora)
        stages.assert_trained(model, expected, recipe.stage)
    # Not TrainingArguments itself: without a GPU it refuses bf16. Its default is 8.
    training = recipe.training
    batch = _batch(recipe, config, training.get("per_device_train_batch_size", 8))
    parts = count(model, dtype, four_bits, recipe.stage)
    return Plan(
        title=f"stage {recipe.stage} on {first.llm or first.init_from}",
        parts=parts,
        batch=batch,
        activations=activation_bytes(
            config,
            batch,
            trained=sum(part.trained for part in parts),
            half=dtype.itemsize < 4 or bool(training.get("bf16") or training.get("fp16")),
            lora=recipe.lora if recipe.stage == "tune" else None,
            checkpointing=stages.checkpoints_activations(recipe),
        ),
        accumulation=training.get("gradient_accumulation_steps", 1),
        notes=(*_notes(recipe, first), *missing),
    )


def skeleton(config: CollamoConfig) -> CollamoForConditionalGeneration:
    """Return the model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return CollamoForConditionalGeneration(config)


def count(model: nn.Module, dtype: torch.dtype, four_bits: bool, stage: str) -> tuple[Part, ...]:
    """Return the parts of a model in their order, with what training them holds.

    `dtype` is that of frozen weights. With `four_bits` the linear layers of the language model are
    in NF4 (`NF4_BYTES` a number), and in stage `tune` the rest of it in float32.
    """
    parts: dict[str, Part] = {}
    for name, parameter in model.named_parameters():
        name_of_part = "lora" if ".lora_" in name else stages.part_of(name)
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
    batch: Batch,
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


def _is_there(recipe: Recipe) -> bool:
    return (Path(recipe.init_from) / "config.json").is_file()


def _first(recipe: Recipe, path: Path | None, building: Sequence[str]) -> Recipe:
    """Return the recipe that loads the language model: this one, or one that comes before it."""
    if recipe.init_from is None or _is_there(recipe):
        return recipe
    for other in sorted(path.parent.glob("*.yaml")) if path else ():
        if path.samefile(other):
            continue
        before = load_recipe(other)
        if before.stage == "align" and Path(before.output) / "final" == Path(recipe.init_from):
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
        return config, config.dtype or torch.float32, ()
    text = _text_config(first.llm)
    preset = "llama2-7b" if text is None or text.hidden_size >= 4096 else "tiny"
    config = CollamoConfig.from_overrides(preset, first.model, text_config=text)
    config.text_config.vocab_size += text is None  # a row for <mol>, which LLaMA-2 has none for
    manifest = Path(recipe.data) / "manifest.json"
    if manifest.is_file():
        from collamo.data.prepared import PreparedData

        tokens = PreparedData.open(recipe.data).manifest.selfies_vocabulary
        config.selfies_config.vocab_size = len(tokens) + 2  # padding and the unknown
    given = {name: getattr(first, name) for name in ("unimol", "gin")}
    here = {name: x for name, x in given.items() if x is None or Path(x).exists()}
    for part, encoder in published_encoders(
        here.get("unimol"), here.get("gin"), first.model
    ).items():
        setattr(config, part, encoder.config)
    missing = tuple(
        f"{name} '{x}' is not here; planned with the sizes of the preset"
        for name, x in given.items()
        if name not in here
    )
    dtype = getattr(text, "dtype", None) or (torch.float16 if text is None else torch.float32)
    return config, getattr(torch, first.dtype) if first.dtype else dtype, missing


def _text_config(llm: str) -> PreTrainedConfig | None:
    """Return the language model's configuration, None for the preset's own."""
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


def _batch(recipe: Recipe, config: CollamoConfig, rows: int) -> Batch:
    soft = config.projector_config.num_query_tokens
    questions = recipe.tasks.per_molecule
    return Batch(rows, soft + QUESTION * questions, rows * questions * QUESTION // 4, soft)


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
