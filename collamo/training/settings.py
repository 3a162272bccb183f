"""What a checkpoint was trained with, so that a resume under other settings is no accident."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from collamo.data.fetched import local_data
from collamo.data.manifest import MANIFEST
from collamo.errors import CollamoError, UsageError, suggest
from collamo.files import file_sha256
from collamo.training.recipe import Recipe

#: Of every checkpoint, sealed with it.
SETTINGS = "settings.json"
Settings = dict[str, Any]

# Fields of TrainingArguments that change what is seen, kept or waited for, and no weight.
_HARMLESS_PREFIXES = ("logging_", "log_", "save_", "eval_", "hub_", "trackio_", "include_")
_HARMLESS = {
    *("output_dir", "report_to", "run_name", "project", "disable_tqdm", "push_to_hub"),
    *("per_device_eval_batch_size", "prediction_loss_only", "batch_eval_metrics"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *(
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "torch_empty_cache_steps",
    ),
    *("skip_memory_metrics", "ddp_timeout", "label_names", "remove_unused_columns"),
    *("local_rank", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "debug"),
}


def trained_settings(recipe: Recipe, arguments: TrainingArguments) -> Settings:
    """Return every setting that decides what is learned, by its dotted name in the recipe.

    ``data`` is the SHA-256 of the prepared data's manifest, which has those of all its files: where
    the folder lies does not matter. ``world_size`` is the number of processes.
    """
    values = dataclasses.asdict(dataclasses.replace(recipe, training={}))
    del values["output"], values["training"]
    values["data"] = file_sha256(local_data(recipe.data) / MANIFEST)
    values["world_size"] = arguments.world_size
    values["training"] = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(arguments)
        if field.init and not _harmless(field.name)
    }
    # As they come back from the file.
    return json.loads(json.dumps(dict(_flat(values)), default=_plain))


def write_settings(settings: Settings, checkpoint: Path) -> None:
    """Write ``settings.json`` into a checkpoint's folder."""
    (checkpoint / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def check_settings(settings: Settings, checkpoint: Path, *, allowed: Collection[str] = ()) -> None:
    """Refuse to go on from `checkpoint` with other settings than it was trained with.

    A setting that only one of two versions of transformers knows is not compared.

    Parameters
    ----------
    allowed
        Names of settings that may have changed: from here on the new values hold.

    Raises
    ------
    UsageError
        That names each changed setting with both values, or an `allowed` that is no setting; and
        for a checkpoint of weights alone, whose optimizer would begin anew.
    """
    if not any(checkpoint.glob("optimizer*")):
        raise UsageError(
            f"{checkpoint} holds weights without their optimizer (training.save_only_model): "
            "training cannot go on from it; set another --output to begin anew"
        )
    for name in allowed:
        if name not in settings:
            raise UsageError(f"--allow-changed: unknown setting '{name}'{suggest(name, settings)}")
    before = _read(checkpoint / SETTINGS)
    changed = [
        name
        for name in sorted(before.keys() & settings.keys())
        if before[name] != settings[name] and name not in allowed
    ]
    if changed:
        differences = "; ".join(
            f"{name} was {_short(before[name])} and is {_short(settings[name])}" for name in changed
        )
        options = " ".join(f"--allow-changed {name}" for name in changed)
        raise UsageError(
            f"{checkpoint} was trained with other settings: {differences}; put them back, set "
            f"another --output to begin anew, or go on with {options}"
        )


def _read(path: Path) -> Settings:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise CollamoError(
            f"'{path}' cannot be read: what the checkpoint was trained with is unknown; delete the "
            "checkpoint to go on from the one before, or set another --output"
        ) from None


def _harmless(name: str) -> bool:
    return name in _HARMLESS or name.startswith(_HARMLESS_PREFIXES)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:20]}…"
