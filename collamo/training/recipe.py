"""A training recipe: one YAML file per stage, every key known and every value of the right type."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from collamo.errors import UsageError, suggest

Stage = Literal["language_model", "align", "tune"]


@dataclass(frozen=True)
class LoraRecipe:
    """Low-rank adapters of the language model in stage `tune`.

    The paper does not state its values; these are the ones of its predecessor LLaMo.
    """

    rank: int = 8
    """Rank r of each update."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    dropout: float = 0.05
    """Dropout in front of each update."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear layers of the language model that get one, by the last part of their name."""


@dataclass(frozen=True)
class TaskRecipe:
    """Which questions are trained on."""

    names: tuple[str, ...] | None = None
    """Tasks to use, such as motif_count or caption; null: all the prepared data has."""
    shares: dict[str, float] = field(default_factory=dict)
    """Task → share of its questions, drawn anew for each molecule in each epoch, that may be asked;
    1 where a task is not named. Our way to keep long answers from drowning short ones."""
    per_molecule: int = 4
    """Questions drawn anew for each molecule in each epoch and asked in one dialogue (our choice:
    the molecule is encoded once for all of them, and not learned by heart through its hundred)."""


@dataclass(frozen=True)
class Recipe:
    """One training stage."""

    stage: Stage
    """language_model: the small LLaMA on plain text; align: projector (and encoders), language
    model frozen; tune: projector and LoRA, encoders frozen."""
    data: str
    """Folder written by `collamo prepare`."""
    output: str
    """Folder for checkpoints, logs and `final/`."""
    llm: str | None = None
    """Causal language model to build on in `align`: a folder or a name transformers knows."""
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
    model: dict[str, Any] = field(default_factory=dict)
    """Overrides of the model's configuration (of the small LLaMA's and its tokenizer's, for
    language_model)."""
    train_encoders: bool = True
    """Whether `align` also trains the GIN and Uni-Mol. Ours: they start untrained, without
    downloaded weights. The SELFIES embedding trains in either case: nobody publishes one."""
    encoded: bool = True
    """Whether encoders that do not train are skipped where `data` has their outputs (`collamo
    prepare --encode`). Outputs of other weights than the model's are an error; false runs them."""
    facts_weight: float = 0.0
    """Weight of an auxiliary loss in `align`: a linear head reads the computed facts of a molecule
    off its soft tokens, and is dropped at the end. Ours, for encoders that start untrained; 0: no
    such loss."""
    projector_learning_rate: float | None = None
    """Learning rate of the projector where it is not that of the rest; null:
    training.learning_rate. Ours: fresh LoRA weights bear ten times the rate of a projector that is
    already aligned."""
    tasks: TaskRecipe = field(default_factory=TaskRecipe)
    """Which questions are trained on."""
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    """Adapters in stage `tune`."""
    kernels: bool = True
    """False: every operation of collamo_kernels by its definition in plain PyTorch, to compare."""
    group_by_length: bool = True
    """Batch questions of similar length together: less padding, the same examples."""
    block: int = 256
    """Tokens per training block in stage language_model (our choice: longer than our captions)."""
    dialogues: int = 4
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
    >>> load_recipe("configs/stage1.yaml", ["--learning_rate", "1e-4"]).training["learning_rate"]
    # doctest: +SKIP 0.0001
    """
    values = read_yaml(Path(path))
    for name, text in _pairs(overrides):
        _assign(values, _resolve(name), _yaml_value(text, f"--{name}"))
    return parse_recipe(values, str(path))


def parse_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return the checked `Recipe` of a nested mapping; `where` names its source in errors."""
    recipe = _build(Recipe, values, where)
    training = {
        name: _training_value(name, value, where) for name, value in recipe.training.items()
    }
    recipe = dataclasses.replace(recipe, training=training)
    _check_stage(recipe, where)
    return recipe


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the `key: value` lines of a recipe; UsageError where it has none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UsageError(f"recipe {path} does not exist{suggest(str(path), siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        advice = "; indent with spaces, not tabs" if "'\\t'" in str(error) else ""
        reason = " ".join(str(error).split())
        raise UsageError(f"recipe {path} is not YAML: {reason}{advice}") from None
    if not isinstance(values, dict):
        raise UsageError(f"recipe {path} holds no `key: value` lines")
    return values


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

    sections = {"": Recipe, "tasks": TaskRecipe, "lora": LoraRecipe, "training": TrainingArguments}
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


def _build(cls: type, values: Any, where: str) -> Any:
    """Return the dataclass `cls` from a mapping, every key known and every value of its type."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected `key: value` lines, got {values!r}")
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise UsageError(f"{where}: unknown key {key!r}{suggest(str(key), hints)}")
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise UsageError(f"{where}: missing key {', '.join(map(repr, missing))}")
    return cls(**{k: coerce(v, hints[k], f"{where}: {k}") for k, v in values.items()})


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the type `hint`, or raise UsageError naming `where`.

    Never guesses: a number is not text, 1.5 is no integer, "yes" no truth value. ``1e-4`` is a
    number though YAML 1.1 calls it text.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise UsageError(
                f"{where}: {value!r} is none of {choices}{suggest(str(value), arguments)}"
            )
        return value
    if origin in (tuple, list):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UsageError(f"{where}: expected a list, got {value!r}")
        return origin(coerce(item, arguments[0], where) for item in value)
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: expected `key: value` lines, got {value!r}")
        of = arguments[1] if arguments else Any
        return {key: coerce(item, of, f"{where}: {key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    return _coerce_scalar(value, hint, where)


def _coerce_union(value: Any, choices: Sequence[Any], where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    enums = [c for c in choices if isinstance(c, type) and issubclass(c, Enum)]
    problems = []
    # TrainingArguments says `SchedulerType | str`: any text would pass, and fail hours later.
    for choice in enums or choices:
        if choice is not type(None):
            try:
                return coerce(value, choice, where)
            except UsageError as error:
                problems.append(error)
    raise problems[0]


def _coerce_scalar(value: Any, hint: type, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        # YAML 1.1 reads a bare `no` as false, and "no" is what save_strategy calls never.
        value = "no" if value is False else value
        try:
            return hint(value).value
        except ValueError:
            known = [member.value for member in hint]
            raise UsageError(
                f"{where}: {value!r} is none of {', '.join(known)}{suggest(str(value), known)}"
            ) from None
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif type(value) is hint or hint not in (int, float, bool, str):
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise UsageError(f"{where}: expected {names[hint]}, got {value!r}")


def _training_value(name: str, value: Any, where: str) -> Any:
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    if name in _RESERVED:
        raise UsageError(f"{where}: training.{name} cannot be set: {_RESERVED[name]}")
    if name in _RENAMED and name not in known:
        raise UsageError(f"{where}: training.{name} is now called {_RENAMED[name]}")
    if name not in known:
        raise UsageError(f"{where}: unknown key 'training.{name}'{suggest(name, known)}")
    return coerce(value, hints[name], f"{where}: training.{name}")


def _check_stage(recipe: Recipe, where: str) -> None:
    """Refuse combinations that would be ignored silently."""
    if recipe.stage == "align" and not (recipe.llm or recipe.init_from):
        raise UsageError(f"{where}: stage align needs `llm`, the language model to build on")
    if recipe.stage == "tune" and not recipe.init_from:
        raise UsageError(f"{where}: stage tune needs `init_from`, what stage align wrote")
    if recipe.stage == "language_model" and (recipe.llm or recipe.init_from):
        raise UsageError(
            f"{where}: stage language_model trains from nothing; drop llm and init_from"
        )
    if recipe.attn_implementation and recipe.stage == "language_model":
        raise UsageError(f"{where}: attn_implementation is read in align and tune; drop it")
    for name in ("unimol", "gin", "dtype", "quantization"):
        if getattr(recipe, name) and (recipe.stage != "align" or recipe.init_from):
            raise UsageError(
                f"{where}: {name} is read where stage align begins with a language model; drop it"
            )
    if recipe.init_from and recipe.llm:
        raise UsageError(f"{where}: init_from already holds a language model; drop llm")
    if recipe.init_from and recipe.model:
        raise UsageError(f"{where}: init_from already fixes the model; drop model")
    positive = {
        "tasks.per_molecule": recipe.tasks.per_molecule,
        "lora.rank": recipe.lora.rank,
        "block": recipe.block,
    }
    if recipe.facts_weight < 0:
        raise UsageError(f"{where}: facts_weight must be at least 0, got {recipe.facts_weight}")
    if recipe.facts_weight and recipe.stage != "align":
        raise UsageError(f"{where}: facts_weight belongs to stage align; drop it")
    rate = recipe.projector_learning_rate
    if rate is not None and recipe.stage == "language_model":
        raise UsageError(f"{where}: stage language_model has no projector; drop its learning rate")
    if rate is not None and rate <= 0:
        raise UsageError(f"{where}: projector_learning_rate must be above 0, got {rate}")
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
