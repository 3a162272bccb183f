"""Fold LoRA into the language model, for serving."""

from __future__ import annotations

import tempfile
from pathlib import Path

from collamo.errors import UsageError
from collamo.model.checkpoints import load_checkpoint
from collamo.model.transformers_versions import save_options


def merge(adapter: str | Path, out: str | Path, dequantize: bool = False) -> Path:
    """Write a whole model that answers as its base with the adapter does.

    W + (α/r)·B·A in the place of W, in W's dtype; the projector that was trained beside it. What is
    written needs neither peft nor the base: safetensors, configuration and processor, opened by
    `load_checkpoint` or transformers' ``AutoModelForMultimodalLM`` and ``AutoProcessor``.

    Parameters
    ----------
    adapter
        Folder that stage `tune` wrote, ``<output>/adapter``.
    out
        Folder to write; it appears once it is whole.
    dequantize
        Turn a base of 4 bits into one of the dtype it computes in first. It answers as the adapter
        does up to the rounding of that dtype.

    Raises
    ------
    UsageError
        If `out` exists and is not empty, `adapter` holds no adapter, or its base is held in 4 bits
        and `dequantize` is not set (or the other way round).
    MissingDependencyError
        If the adapter, its base or bitsandbytes is not there.

    Examples
    --------
    >>> merge("runs/llama2_7b/stage2/adapter", "served")  # doctest: +SKIP
    """
    from peft import PeftModel

    adapter, out = Path(adapter), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"'{out}' exists; nothing is overwritten, give another folder")
    if (adapter / "config.json").is_file() and not (adapter / "adapter_config.json").is_file():
        raise UsageError(f"'{adapter}' holds no adapter: it is a whole model already")
    model, processor = load_checkpoint(adapter, dequantize=dequantize)
    if getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(
            f"the base of '{adapter}' is held in 4 bits: most of what LoRA learned would be "
            "rounded away; with dequantize a model of half precision is written instead"
        )
    assert isinstance(model, PeftModel)  # the folder holds an adapter
    merged = model.merge_and_unload(safe_merge=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as partial:
        whole = Path(partial) / out.name
        merged.save_pretrained(whole, **save_options(dequantized=dequantize))
        processor.save_pretrained(whole)
        whole.replace(out)
    return out
