"""Open what training wrote: whole models, and adapters with their base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.model.checksums import verify_checksums
from collamo.model.configuration import CollamoConfig
from collamo.model.language_model import (
    attention_error,
    need_bitsandbytes,
    take_flash_attention,
)
from collamo.model.modeling import (
    MOLECULE_PARTS,
    CollamoForConditionalGeneration,
    CollamoPreTrainedModel,
)
from collamo.model.molecule_parts import MoleculeParts
from collamo.model.processor import CollamoProcessor
from collamo.model.weight_files import read_json

if TYPE_CHECKING:  # at run time inside the function: peft may be what is importing transformers
    from peft import PeftModel

Model = TypeVar("Model", bound=CollamoPreTrainedModel)


def load_checkpoint(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str | None = None,
    dequantize: bool = False,
) -> tuple[CollamoForConditionalGeneration | PeftModel, CollamoProcessor]:
    """Open a checkpoint folder, ready to answer (evaluation mode).

    Parameters
    ----------
    path
        Folder with config.json and model.safetensors, or with adapter_config.json and
        adapter_model.safetensors; the adapter names its base, relative to the working directory
        or to the folder itself. Pickled weights are never opened.
    dtype, device
        Of the weights; None keeps the dtype they were saved in, and the CPU.
    attn_implementation
        Attention inside the language model, see `collamo.build_model`.
    dequantize
        Turn a language model of 4 bits into one of the dtype it computes in.

    Returns
    -------
    (model, CollamoProcessor)
        The model is a `PeftModel` for an adapter.

    Raises
    ------
    MissingDependencyError
        If the folder, its weights or the adapter's base are not there, or bitsandbytes is not for
        one of 4 bits.
    UsageError
        If the folder holds something else, or nothing to dequantize.
    CollamoError
        For damaged weights: truncated, with another SHA-256 than ``SHA256SUMS`` records,
        or not those that config.json describes.

    Examples
    --------
    >>> model, processor = load_checkpoint("runs/stage2/final")  # doctest: +SKIP
    """
    base, adapter = _base_of(_existing(path))
    model: CollamoForConditionalGeneration | PeftModel
    model = _open_full(base, dtype, attn_implementation, dequantize)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, use_safetensors=True)
    processor = _processor_of(base, adapter)
    model.to(device or "cpu")  # type: ignore[arg-type]  # transformers' wrapper loses its self
    return model.eval(), processor


def load_molecule_parts(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[MoleculeParts, CollamoProcessor]:
    """Open encoders, projector and table of tokens of a checkpoint, without its language model.

    Parameters and errors are those of `load_checkpoint`; the checkpoint may hold its language model
    in 4 bits where bitsandbytes is not installed. Of an adapter, its projector takes the place of
    the base's; one that has LoRA outside the language model's layers is a UsageError.
    """
    folder = _existing(path)
    base, adapter = _base_of(folder)
    _check_kind(base)
    _need_weights(base, "model")
    config = CollamoConfig.from_pretrained(base)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config  # of the language model's layers
    model = _from_pretrained(MoleculeParts, base, config=config, dtype=dtype or "auto")
    for part in MOLECULE_PARTS:  # as in _open_full
        getattr(model, part).to(model.dtype)
    if adapter is not None:
        model.take_adapter(adapter)
    model.to(device or "cpu")  # type: ignore[arg-type]  # transformers' wrapper loses its self
    return model.eval(), _processor_of(base, adapter)


def _existing(path: str | Path) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    problem = "is a file, not a folder" if folder.exists() else "does not exist"
    raise MissingDependencyError(
        f"checkpoint folder '{path}' {problem}; `collamo train configs/stage1.yaml` makes "
        "demo/stage1/final, configs/stage2.yaml goes on from it"
    )


def _check_kind(folder: Path) -> dict[str, Any]:
    """Return what config.json says, of a CoLLaMo checkpoint."""
    verify_checksums(folder, weights=False)  # before any of it is read
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "collamo":
        raise UsageError(
            f"'{folder}' holds a model of type {kind!r}, not a CoLLaMo checkpoint; "
            "build one from a language model by `collamo train configs/stage1.yaml`"
        )
    return config


def _open_full(
    folder: Path,
    dtype: torch.dtype | str | None,
    attn_implementation: str | None,
    dequantize: bool,
) -> CollamoForConditionalGeneration:
    config = _check_kind(folder)
    _need_weights(folder, "model")
    if "quantization_config" in config:
        need_bitsandbytes(f"'{folder}' was saved in 4 bits, which")
    elif dequantize:
        raise UsageError(f"'{folder}' is not quantized; there is nothing to dequantize")
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    model = _from_pretrained(CollamoForConditionalGeneration, folder, **options)
    if attn_implementation is None:
        take_flash_attention(model)
    if dequantize:
        model = model.dequantize()
    for part in MOLECULE_PARTS:  # beside 4 bits transformers leaves some in the file's dtype
        getattr(model.model, part).to(model.dtype if dtype in (None, "auto") else dtype)
    return model


def _from_pretrained(kind: type[Model], folder: Path, **options: Any) -> Model:
    """Open weights as a `kind` of model; what is wrong with them is an error of ours."""
    attention = options.get("attn_implementation")
    try:
        model, loading = kind.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, **options
        )
    except SafetensorError as error:
        raise CollamoError(
            f"the weights in '{folder}' are truncated or damaged: {error}; copy or save the "
            "checkpoint again"
        ) from error
    except FileNotFoundError as error:
        raise MissingDependencyError(
            f"'{folder}' is incomplete: {error}; copy or save the checkpoint again"
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise CollamoError(
            f"the weights in '{folder}' have other sizes than its config.json says (listed above); "
            "copy or save the checkpoint again"
        ) from error
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise CollamoError(f"'{folder / 'config.json'}' is no configuration: {reason}") from error
    except (ImportError, ValueError) as error:
        if attention is None:
            raise
        raise attention_error(attention, error) from error
    if missing := sorted(loading["missing_keys"]):
        raise CollamoError(
            f"the weights in '{folder}' lack {len(missing)} tensors that its config.json "
            f"describes, such as {missing[0]}; copy or save the checkpoint again"
        )
    return model


def _base_of(folder: Path) -> tuple[Path, Path | None]:
    """Return the folder of the whole model, and that of an adapter around it."""
    if not (folder / "adapter_config.json").is_file():
        return folder, None
    _need_weights(folder, "adapter_model")
    verify_checksums(folder)
    name = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    candidates = [Path(name), folder / name] if name else []
    base = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if base is None:
        raise MissingDependencyError(
            f"adapter '{folder}' was trained on '{name}', which is not there; put that checkpoint "
            "back, or correct base_model_name_or_path in adapter_config.json"
        )
    return base, folder


def _processor_of(base: Path, adapter: Path | None) -> CollamoProcessor:
    if adapter is not None and (adapter / "processor_config.json").is_file():
        return _open_processor(adapter)
    return _open_processor(base)


_PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json", "tokenizer.json")


def _open_processor(folder: Path) -> CollamoProcessor:
    try:
        return CollamoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        lost = [name for name in _PROCESSOR_FILES if not (folder / name).is_file()]
        reason = f"it has no {lost[0]}" if lost else str(error).strip().splitlines()[0]
        raise CollamoError(
            f"the processor in '{folder}' cannot be opened: {reason}; save it beside the model"
        ) from error


def _need_weights(folder: Path, stem: str) -> None:
    if not any(folder.glob(f"{stem}*.safetensors")):
        raise MissingDependencyError(
            f"'{folder}' has no {stem}.safetensors; pickled weights (.bin, .pt) are not opened, "
            "save the checkpoint again as safetensors"
        )
