"""A training recipe: one YAML file per stage, every key known and every value of the right type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import Enum
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic.dataclasses import dataclass

from collamo.errors import UsageError, suggest
from collamo.schema import CONFIG, Number, Whole, checked, read_yaml
from collamo.training.answer_weights import AnswerWeight

Stage = Literal["language_model", "align", "tune"]


@dataclass(frozen=True, config=CONFIG)
class LoraRecipe:
    """Low-rank adapters of the language model in stage `tune`.

    The paper does not state its values; these are the ones of its predecessor LLaMo.
    """

    rank: Whole = 8
    """Rank r of each update."""
    alpha: Whole = 32
    """The update is scaled by alpha / rank."""
    dropout: Number = 0.05
    """Dropout in front of each update."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear layers of the language model that get one, by the last part of their name."""


@dataclass(frozen=True, config=CONFIG)
class TaskRecipe:
    """Which questions are trained on."""

    names: tuple[str, ...] | None = None
    """Tasks to use, such as motif_count or caption; null: all the prepared data has."""
    shares: dict[str, Number] = field(default_factory=dict)
    """Task → share of its questions, drawn anew for each molecule in each epoch, that may be asked;
    1 where a task is not named. Our way to keep long answers from drowning short ones."""
    longest_answer: Whole | None = None
    """Characters of the longest answer that is trained on; null: any. Ours: attention takes the
    square of a dialogue's length, and a batch is as long as the longest in it."""
    per_molecule: Whole = 4
    """Questions drawn anew for each molecule in each epoch and asked in one dialogue (our choice:
    the molecule is encoded once for all of them, and not learned by heart through its hundred)."""


@dataclass(frozen=True, config=CONFIG)
class RelationRates:
    """Learning rates of Φ2d and Φ3d, as multiples of the projector's.

    Ours. An entry of Φ2d is a logit by itself, and Adam moves it at each step by the learning rate
    at most, whatever the gradient: by 0.4 in all of the demo's stage 1, by 0.16 in stage 2. A logit
    of 0.4 makes an atom half as important again, and no more.
    """

    hop_bias: Number = 1.0
    """Of the table Φ2d. The demo has 30: 12 logits are within reach in stage 1."""
    radial: Number = 1.0
    """Of Φ3d's Gaussians and head. The demo has 5: as a product of both it moves further."""


@dataclass(frozen=True, config=CONFIG)
class Recipe:
    """One training stage."""

    stage: Stage
    """language_model: the small LLaMA on plain text; align: projector (and encoders), language
    model frozen; tune: projector and LoRA, encoders frozen."""
    data: str
    """Folder written by `collamo prepare`: a path, or a URL such as s3://bucket/data, which is
    fetched to the disk first (COLLAMO_CACHE)."""
    output: str
    """Folder for checkpoints, logs and `final/`."""
    llm: str | None = None
    """Causal language model to build on in `align`: a folder, a name transformers knows, a GGUF
    file, or smollm2."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights in `align`, the projector's included; null: as the language model's files have
    it."""
    attn_implementation: str | None = None
    """Attention inside the language model in `align` and `tune`, such as sdpa; null:
    flash_attention_2 where flash-attn is installed and the weights are of half precision, else
    transformers' choice."""
    quantization: Literal["4bit"] | None = None
    """4bit: the language model's linear layers in NF4 (bitsandbytes), from `align` on; stage `tune`
    then leaves an adapter and nothing merged."""
    unimol: str | None = None
    """Published Uni-Mol weights for the 3D encoder in `align`: a file, or what `collamo convert`
    wrote. null: the encoder starts from nothing."""
    gin: str | None = None
    """Published GIN weights, such as MoleculeSTM's, for the 2D encoder in `align`; as `unimol`."""
    init_from: str | None = None
    """Checkpoint to start from: what `align` wrote, for `tune`."""
    molecules_as: Literal["soft_tokens", "smiles"] = "soft_tokens"
    """What stands for a molecule in a prompt. smiles, in `tune`: its SMILES as text, LoRA alone
    trains, and a language model (`llm`) is all it begins with. Ours: the baseline that shows what
    encoders and projector are worth."""
    model: dict[str, Any] = field(default_factory=dict)
    """Overrides of the model's configuration (of the small LLaMA's and its tokenizer's, for
    language_model)."""
    train_encoders: bool = True
    """Whether `align` also trains the GIN and Uni-Mol. Ours: they start untrained, without
    downloaded weights. The SELFIES embedding trains in either case: nobody publishes one."""
    encoded: bool = True
    """Whether encoders that do not train are skipped where `data` has their outputs (`collamo
    prepare --encode`). Outputs of other weights than the model's are an error; false runs them."""
    facts_weight: Number = 0.0
    """Weight of an auxiliary loss in `align`: a linear head reads the computed facts of a molecule
    off its soft tokens, and is dropped at the end. Ours, for encoders that start untrained; 0: no
    such loss."""
    answer_weight: AnswerWeight = "length"
    """How much an answer of n tokens weighs in the loss of `align` and `tune`. length: n, Trainer's
    mean over tokens, where a caption of 60 weighs as much as 30 counts; root: √n; one: 1. Ours,
    where long and short answers are to be learned together."""
    projector_learning_rate: Number | None = None
    """Learning rate of the projector where it is not that of the rest; null:
    training.learning_rate. Ours: fresh LoRA weights bear ten times the rate of a projector that is
    already aligned."""
    relation_rates: RelationRates = field(default_factory=RelationRates)
    """Learning rates of Φ2d and Φ3d in the projector."""
    tasks: TaskRecipe = field(default_factory=TaskRecipe)
    """Which questions are trained on."""
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    """Adapters in stage `tune`."""
    kernels: bool = True
    """False: every operation of collamo_kernels by its definition in plain PyTorch, to compare."""
    group_by_length: bool = True
    """Batch questions of similar length together: less padding, the same examples."""
    block: Whole = 256
    """Tokens per training block in stage language_model (our choice: longer than our captions)."""
    dialogues: Whole = 4
    """Dialogues per molecule in stage language_model: some of its facts, then questions about them
    in the chat template, at the very place the soft tokens will take. Our choice: a model that has
    never looked anything up in its context cannot be aligned frozen. 0: plain lines alone."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of transformers.TrainingArguments."""


# Set by the recipe itself or needed as they are: naming one under `training` would be ignored or
# do harm.
_RESERVED = {
    "output_dir": "set `output`",
    "resume_from_checkpoint": "use --resume",
    "remove_unused_columns": "molecules would be dropped",
    "logging_nan_inf_filter": "a NaN loss would be logged as 0",
    "train_sampling_strategy": "set `group_by_length`",
    "ignore_data_skip": "a resumed run would see the data twice",
    "enable_jit_checkpoint": "SIGTERM always leaves a sealed checkpoint",
    "use_liger_kernel": "it patches model types that it knows and CoLLaMo is none: nothing would "
    "change and nobody say so (logits of tokens that are not scored are left out already)",
    "deepspeed": "pass it to accelerate launch",
}
# Names that older versions of transformers knew, and what to write today.
_RENAMED = {
    "warmup_ratio": "warmup_steps (a fraction below 1 is a share of all steps)",
    "no_cuda": "use_cpu",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
}


# What the alignment is built from; the tuning starts from its result and knows none of it.
_BUILDING = (
    *("llm", "unimol", "gin", "model", "dtype", "quantization"),
    *("train_encoders", "facts_weight"),
)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command-line options that say what the alignment is built from, and the others.

    Each comes out as ``--name=value``.

    >>> split_overrides(["--llm", "my/llm", "--max_steps=5"])
    (['--llm=my/llm'], ['--max_steps=5'])
    """
    pairs = [(name, f"--{name}={value}") for name, value in _pairs(overrides)]
    building = [option for name, option in pairs if name.partition(".")[0] in _BUILDING]
    return building, [option for _, option in pairs if option not in building]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at `path` and apply command-line `overrides` (``["--training.learning_rate",
    "1e-4"]``).

    An override is dotted, or the last part alone where only one key is called so.

    Raises
    ------
    UsageError
        For a missing or unreadable file, an unknown key at any depth (with a suggestion) or a
        wrong value.

    Examples
    --------
    >>> recipe = load_recipe("configs/stage1.yaml", ["--learning_rate", "1e-4"])
    >>> recipe.training["learning_rate"]
    0.0001
    """
    values = read_yaml(Path(path), "recipe")
    for name, text in _pairs(overrides):
        _assign(values, _resolve(name), _yaml_value(text, f"--{name}"))
    return parse_recipe(values, str(path))


def parse_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return the checked `Recipe` of a nested mapping; `where` names its source in errors."""
    recipe = checked(Recipe, values, where)
    training = {
        name: _training_value(name, value, where) for name, value in recipe.training.items()
    }
    recipe = dataclasses.replace(recipe, training=training)
    _check_stage(recipe, where)
    return recipe


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return (name, value) of ``--name value`` and ``--name=value``; dashes in a name are
    underscores."""
    pairs, rest = [], list(arguments)
    while rest:
        head = rest.pop(0)
        if not head.startswith("--"):
            raise UsageError(f"unexpected argument {head!r}; overrides look like --key value")
        name, equals, value = head[2:].partition("=")
        if not equals:
            if not rest:
                raise UsageError(f"--{name} needs a value")
            value = rest.pop(0)
        pairs.append((name.replace("-", "_"), value))
    return pairs


def _known_keys() -> dict[str, list[str]]:
    """Return every key of a recipe outside `model`, by section ("" is the top level)."""
    from transformers import TrainingArguments

    sections = {
        "": Recipe,
        "tasks": TaskRecipe,
        "lora": LoraRecipe,
        "relation_rates": RelationRates,
        "training": TrainingArguments,
    }
    return {name: [f.name for f in dataclasses.fields(cls)] for name, cls in sections.items()}


def _resolve(name: str) -> list[str]:
    """Return the path of an override's key; a short name must mean one key only."""
    known = _known_keys()
    section, _, rest = name.partition(".")
    if rest:
        if section != "model" and rest not in known.get(section, ()):
            dotted = [f"{s}.{k}" for s, keys in known.items() if s for k in keys]
            raise UsageError(f"unknown option --{name}{suggest(name, dotted)}")
        return name.split(".")
    if name in known[""]:
        return [name]
    homes = [section for section, keys in known.items() if name in keys]
    if len(homes) > 1:
        choices = " or ".join(f"--{home}.{name}" for home in homes)
        raise UsageError(f"--{name} could be {choices}; write which")
    if not homes:
        every = {key for keys in known.values() for key in keys}
        raise UsageError(f"unknown option --{name}{suggest(name, every)}")
    return [homes[0], name]


def _assign(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UsageError(f"--{'.'.join(path)}: {key} has no parts")
    values[path[-1]] = value


def _yaml_value(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{where}: cannot read the value {text!r}") from None


def _training_value(name: str, value: Any, where: str) -> Any:
    from transformers import TrainingArguments

    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    if name in _RESERVED:
        raise UsageError(f"{where}: training.{name} cannot be set: {_RESERVED[name]}")
    if name in _RENAMED and name not in known:
        raise UsageError(f"{where}: training.{name} is now called {_RENAMED[name]}")
    if name not in known:
        raise UsageError(f"{where}: unknown key 'training.{name}'{suggest(name, known)}")
    return _checked_field(
        value, get_type_hints(TrainingArguments)[name], f"{where}: training.{name}"
    )


def _checked_field(value: Any, hint: Any, place: str) -> Any:
    """Return the value of a field of TrainingArguments; that of an enumeration as text."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        # The hint is `SchedulerType | str`: any text would pass, and fail hours later.
        if isinstance(choice, type) and issubclass(choice, Enum):
            # YAML 1.1 reads a bare `no` as false, and "no" is what save_strategy calls never.
            return checked(choice, "no" if value is False else value, place).value
    strict = {int: Whole, float: Number}
    return checked(reduce(or_, (strict.get(choice, choice) for choice in choices)), value, place)


def _check_stage(recipe: Recipe, where: str) -> None:
    """Refuse combinations that would be ignored silently."""
    if recipe.stage == "align" and not (recipe.llm or recipe.init_from):
        raise UsageError(f"{where}: stage align needs `llm`, the language model to build on")
    smiles = recipe.molecules_as == "smiles"
    if smiles and recipe.stage != "tune":
        raise UsageError(
            f"{where}: molecules_as: smiles belongs to stage tune; the projector has no part in it"
        )
    if smiles and not (recipe.llm or recipe.init_from):
        raise UsageError(f"{where}: molecules_as: smiles needs `llm`, the language model to tune")
    if recipe.stage == "tune" and not (recipe.init_from or smiles):
        raise UsageError(f"{where}: stage tune needs `init_from`, what stage align wrote")
    if recipe.stage == "language_model" and (recipe.llm or recipe.init_from):
        raise UsageError(
            f"{where}: stage language_model trains from nothing; drop llm and init_from"
        )
    if recipe.answer_weight != "length" and recipe.stage == "language_model":
        raise UsageError(f"{where}: stage language_model has no answers; drop answer_weight")
    if recipe.attn_implementation and recipe.stage == "language_model":
        raise UsageError(f"{where}: attn_implementation is read in align and tune; drop it")
    for name in ("unimol", "gin", "dtype", "quantization"):
        begins = recipe.stage == "align" or (smiles and name == "dtype")
        if getattr(recipe, name) and (recipe.init_from or not begins):
            raise UsageError(
                f"{where}: {name} is read where stage align begins with a language model; drop it"
            )
    if recipe.init_from and recipe.llm:
        raise UsageError(f"{where}: init_from already holds a language model; drop llm")
    if recipe.init_from and recipe.model:
        raise UsageError(f"{where}: init_from already fixes the model; drop model")
    positive = {
        "tasks.per_molecule": recipe.tasks.per_molecule,
        "tasks.longest_answer": 1 if (longest := recipe.tasks.longest_answer) is None else longest,
        "lora.rank": recipe.lora.rank,
        "block": recipe.block,
    }
    if recipe.facts_weight < 0:
        raise UsageError(f"{where}: facts_weight must be at least 0, got {recipe.facts_weight}")
    if recipe.facts_weight and recipe.stage != "align":
        raise UsageError(f"{where}: facts_weight belongs to stage align; drop it")
    _check_projector_rates(recipe, where)
    for task, share in recipe.tasks.shares.items():
        if not 0 < share <= 1:
            raise UsageError(
                f"{where}: tasks.shares.{task} must be above 0 and at most 1, got {share}; "
                "leave a task out with tasks.names"
            )
    if recipe.dialogues < 0:
        raise UsageError(f"{where}: dialogues must be at least 0, got {recipe.dialogues}")
    for name, number in positive.items():
        if number < 1:
            raise UsageError(f"{where}: {name} must be at least 1, got {number}")
    if not 0 <= recipe.lora.dropout < 1:
        raise UsageError(f"{where}: lora.dropout must lie in [0, 1), got {recipe.lora.dropout}")


def _check_projector_rates(recipe: Recipe, where: str) -> None:
    rates = {
        "projector_learning_rate": recipe.projector_learning_rate,
        "relation_rates.hop_bias": recipe.relation_rates.hop_bias,
        "relation_rates.radial": recipe.relation_rates.radial,
    }
    for name, rate in rates.items():
        if rate is not None and rate <= 0:
            raise UsageError(f"{where}: {name} must be above 0, got {rate}")
    own = recipe.projector_learning_rate is not None or recipe.relation_rates != RelationRates()
    if own and recipe.stage == "language_model":
        raise UsageError(f"{where}: stage language_model has no projector; drop its learning rates")
    if own and recipe.molecules_as == "smiles":
        raise UsageError(f"{where}: molecules_as: smiles trains no projector; drop its rates")
