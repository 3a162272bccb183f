"""Open what training wrote: a full checkpoint, or a peft adapter on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.model.modeling import CollamoForConditionalGeneration
from collamo.model.processing import CollamoProcessor

if TYPE_CHECKING:  # at run time inside the function: peft may be what is importing transformers
    from peft import PeftModel


def load_checkpoint(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[CollamoForConditionalGeneration | PeftModel, CollamoProcessor]:
    """Open a checkpoint folder, ready to answer (evaluation mode).

    Parameters
    ----------
    path
        Folder with config.json and model.safetensors, or with adapter_config.json and
        adapter_model.safetensors; the adapter names its base, relative to the working directory
        or to the folder itself. Pickled weights are never opened.
    dtype, device
        Of the weights; None keeps what was saved, on the CPU.

    Returns
    -------
    (model, CollamoProcessor)
        The model is a `PeftModel` for an adapter.

    Raises
    ------
    MissingDependencyError
        If the folder, its weights or the adapter's base are not there.
    UsageError
        If the folder holds something else.

    Examples
    --------
    >>> model, processor = load_checkpoint("runs/stage2/final")  # doctest: +SKIP
    """
    folder = Path(path)
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise MissingDependencyError(
            f"checkpoint folder '{path}' {problem}; `collamo train configs/stage1.yaml` makes "
            "demo/stage1/final, configs/stage2.yaml goes on from it"
        )
    if (folder / "adapter_config.json").is_file():
        model, processor = _open_adapter(folder, dtype)
    else:
        model, processor = _open_full(folder, dtype)
    return model.to(device or "cpu").eval(), processor


def _open_full(folder: Path, dtype) -> tuple[CollamoForConditionalGeneration, CollamoProcessor]:
    kind = _read_json(folder / "config.json").get("model_type")
    if kind != "collamo":
        raise UsageError(
            f"'{folder}' holds a model of type {kind!r}, not a CoLLaMo checkpoint; "
            "build one from a language model by `collamo train configs/stage1.yaml`"
        )
    _need_weights(folder, "model")
    model = CollamoForConditionalGeneration.from_pretrained(
        folder, use_safetensors=True, dtype="auto" if dtype is None else dtype
    )
    return model, _open_processor(folder)


def _open_adapter(folder: Path, dtype) -> tuple[PeftModel, CollamoProcessor]:
    from peft import PeftModel

    _need_weights(folder, "adapter_model")
    name = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    candidates = [Path(name), folder / name] if name else []
    base = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if base is None:
        raise MissingDependencyError(
            f"adapter '{folder}' was trained on '{name}', which is not there; put that checkpoint "
            "back, or correct base_model_name_or_path in adapter_config.json"
        )
    model, processor = _open_full(base, dtype)
    if (folder / "processor_config.json").is_file():
        processor = _open_processor(folder)
    return PeftModel.from_pretrained(model, folder, use_safetensors=True), processor


def _open_processor(folder: Path) -> CollamoProcessor:
    try:
        return CollamoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CollamoError(
            f"the processor in '{folder}' cannot be opened: {reason}; save it beside the model"
        ) from error


def _need_weights(folder: Path, stem: str) -> None:
    if not any(folder.glob(f"{stem}*.safetensors")):
        raise MissingDependencyError(
            f"'{folder}' has no {stem}.safetensors; pickled weights (.bin, .pt) are not opened, "
            "save the checkpoint again as safetensors"
        )


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingDependencyError(
            f"'{file.parent}' has no {file.name}; it is not a checkpoint"
        ) from error
    except json.JSONDecodeError as error:
        raise CollamoError(f"'{file}' is not valid JSON: {error}; save it again") from error
