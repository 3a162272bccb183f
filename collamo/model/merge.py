"""What engines serve: LoRA folded into the language model, and the language model by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from collamo.errors import UsageError
from collamo.files import replacing_folder
from collamo.model.checkpoints import load_checkpoint
from collamo.model.checksums import write_checksums
from collamo.model.modeling import CollamoForConditionalGeneration
from collamo.model.transformers_versions import save_options


def merge(
    adapter: str | Path,
    out: str | Path | None = None,
    dequantize: bool = False,
    language_model: str | Path | None = None,
) -> list[Path]:
    """Write a whole model that answers as its base with the adapter does.

    W + (α/r)·B·A in the place of W, in W's dtype; the projector that was trained beside it. What is
    written needs neither peft nor the base: safetensors, configuration and processor, opened by
    `load_checkpoint` or transformers' ``AutoModelForMultimodalLM`` and ``AutoProcessor``.

    Parameters
    ----------
    adapter
        Folder that stage `tune` wrote, ``<output>/adapter``. With `language_model` alone a whole
        model will do.
    out
        Folder to write; it appears once it is whole. None: not written.
    dequantize
        Turn a base of 4 bits into one of the dtype it computes in first. It answers as the adapter
        does up to the rounding of that dtype.
    language_model
        Folder for the language model by itself, LoRA folded in, with its tokenizer: a plain causal
        LM that any engine opens. `collamo.load(…, language_model=False)` makes its prompts.

    Returns
    -------
    list[Path]
        The folders that were written.

    Raises
    ------
    UsageError
        If a folder to write exists and is not empty or none is given, `adapter` holds no adapter,
        or its base is held in 4 bits and `dequantize` is not set (or the other way round).
    MissingDependencyError
        If the adapter, its base or bitsandbytes is not there.

    Examples
    --------
    >>> merge("runs/llama2_7b/stage2/adapter", "served")  # doctest: +SKIP
    """
    adapter = Path(adapter)
    folders = [Path(folder) for folder in (out, language_model) if folder is not None]
    _check_folders(folders)
    whole = (adapter / "config.json").is_file() and not (adapter / "adapter_config.json").is_file()
    if whole and out is not None:
        raise UsageError(f"'{adapter}' holds no adapter: it is a whole model already")
    model, processor = load_checkpoint(adapter, dequantize=dequantize)
    if getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(
            f"the base of '{adapter}' is held in 4 bits: most of what LoRA learned would be "
            "rounded away; with dequantize a model of half precision is written instead"
        )
    merged = model
    if not isinstance(model, CollamoForConditionalGeneration):
        merged = model.merge_and_unload(safe_merge=True)
    assert isinstance(merged, CollamoForConditionalGeneration)
    options: dict[str, Any] = save_options(dequantized=dequantize)

    def save_whole(folder: Path) -> None:
        merged.save_pretrained(folder, **options)
        processor.save_pretrained(folder)

    def save_language_model(folder: Path) -> None:
        causal_lm(merged).save_pretrained(folder, **options)
        processor.tokenizer.save_pretrained(folder)
        write_checksums(folder)

    if out is not None:
        _written(Path(out), save_whole)
    if language_model is not None:
        _written(Path(language_model), save_language_model)
    return folders


def causal_lm(model: CollamoForConditionalGeneration) -> PreTrainedModel:
    """Return the language model of `model` as transformers' own class, sharing its weights."""
    config = model.config.text_config
    body = model.model.language_model
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(config, dtype=body.dtype)
    setattr(causal, causal.base_model_prefix, body)
    causal.set_output_embeddings(model.lm_head)
    causal.generation_config = model.generation_config
    return causal


def _check_folders(folders: list[Path]) -> None:
    if not folders:
        raise UsageError("there is nothing to write; give OUT, --language-model or both")
    if len({folder.absolute() for folder in folders}) < len(folders):
        raise UsageError(f"both models would be written to '{folders[0]}'; give two folders")
    for out in folders:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UsageError(f"'{out}' exists; nothing is overwritten, give another folder")


def _written(out: Path, save: Callable[[Path], None]) -> None:
    """Let `save` fill a folder beside `out`, which takes its name once it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(out) as part:
        save(part)
