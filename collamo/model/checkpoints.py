"""Open weights: what training wrote, and the published encoders Uni-Mol and GIN."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from collamo.errors import CollamoError, MissingDependencyError, UsageError, suggest
from collamo.files import file_sha256
from collamo.model.checksums import verify_checksums
from collamo.model.configuration import GinConfig, UniMolConfig
from collamo.model.encoders import GinEncoder, UniMolEncoder
from collamo.model.language_model import (
    attention_error,
    need_bitsandbytes,
    take_flash_attention,
)
from collamo.model.modeling import MOLECULE_PARTS, CollamoForConditionalGeneration
from collamo.model.processor import CollamoProcessor
from collamo.model.weight_files import checked_weights, read_weights, write_weights

if TYPE_CHECKING:  # at run time inside the function: peft may be what is importing transformers
    from peft import PeftModel

logger = logging.getLogger(__name__)

Weights = str | Path | Mapping[str, Tensor]


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
        Of the weights; None keeps what was saved, on the CPU.
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
        For damaged weights: other bytes than ``SHA256SUMS`` beside them says, truncated, or others
        than config.json describes.

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
        model, processor = _open_adapter(folder, dtype, attn_implementation, dequantize)
    else:
        model, processor = _open_full(folder, dtype, attn_implementation, dequantize)
    return model.to(device or "cpu").eval(), processor


def _open_full(
    folder: Path, dtype, attn_implementation: str | None, dequantize: bool
) -> tuple[CollamoForConditionalGeneration, CollamoProcessor]:
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "collamo":
        raise UsageError(
            f"'{folder}' holds a model of type {kind!r}, not a CoLLaMo checkpoint; "
            "build one from a language model by `collamo train configs/stage1.yaml`"
        )
    _need_weights(folder, "model")
    if "quantization_config" in config:
        need_bitsandbytes(f"'{folder}' was saved in 4 bits, which")
    elif dequantize:
        raise UsageError(f"'{folder}' is not quantized; there is nothing to dequantize")
    options = {"use_safetensors": True, "dtype": "auto" if dtype is None else dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        model, found = CollamoForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, **options
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
        if attn_implementation is None:
            raise
        raise attention_error(attn_implementation, error) from error
    if missing := sorted(found["missing_keys"]):
        raise CollamoError(
            f"the weights in '{folder}' do not fit its config.json, which wants {len(missing)} "
            f"tensors more, such as {missing[0]}; copy or save the checkpoint again"
        )
    if attn_implementation is None:
        take_flash_attention(model)
    if dequantize:
        model = model.dequantize()
    for part in MOLECULE_PARTS:  # beside 4 bits transformers leaves some in the file's dtype
        getattr(model.model, part).to(model.dtype if dtype in (None, "auto") else dtype)
    return model, _open_processor(folder)


def _open_adapter(
    folder: Path, dtype, attn_implementation: str | None, dequantize: bool
) -> tuple[PeftModel, CollamoProcessor]:
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
    verify_checksums(folder)
    model, processor = _open_full(base, dtype, attn_implementation, dequantize)
    if (folder / "processor_config.json").is_file():
        processor = _open_processor(folder)
    return PeftModel.from_pretrained(model, folder, use_safetensors=True), processor


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


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingDependencyError(
            f"'{file.parent}' has no {file.name}; it is not a checkpoint"
        ) from error
    except json.JSONDecodeError as error:
        raise CollamoError(f"'{file}' is not valid JSON: {error}; save it again") from error


# --- published encoders ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """How the files of one published encoder name their tensors.

    `sizes` says which dimension of which tensors (by pattern) shows a field of the configuration;
    the majority decides, so that one tensor that is missing or of another shape is reported as
    such, and not every other. `anchors` show what stands before all names, such as
    ``molecule_node_model.``; `heads` are of pre-training, and not part of the encoder.
    """

    title: str
    option: str
    module: type[nn.Module]
    config: type
    anchors: tuple[str, ...]
    layers: str
    sizes: dict[str, tuple[tuple[str, int], ...]]
    heads: str
    #: Our names → the file's, as pairs of a pattern and what replaces it.
    renamed: tuple[tuple[str, str], ...] = ()

    def official(self, name: str) -> str:
        """Return what the published files call our parameter `name`."""
        for pattern, theirs in self.renamed:
            name = re.sub(pattern, theirs, name)
        return name


_LAYER = r"encoder\.layers\.\d+\."
_UNIMOL = _Layout(
    title="Uni-Mol",
    option="--unimol",
    module=UniMolEncoder,
    config=UniMolConfig,
    anchors=("gbf.means.weight", "gbf_proj.linear1.weight", "encoder.emb_layer_norm.weight"),
    layers=r"encoder\.layers\.(\d+)\.",
    sizes={
        "vocab_size": ((r"embed_tokens\.weight", 0),),
        "hidden_size": (
            (r"embed_tokens\.weight", 1),
            (r"encoder\.(emb|final)_layer_norm\.(weight|bias)", 0),
            (_LAYER + r"(self_attn|final)_layer_norm\.(weight|bias)", 0),
        ),
        "intermediate_size": ((_LAYER + r"fc1\.(weight|bias)", 0), (_LAYER + r"fc2\.weight", 1)),
        "num_heads": ((r"gbf_proj\.linear2\.(weight|bias)", 0),),
        "num_gaussians": (
            (r"gbf\.(means|stds)\.weight", 1),
            (r"gbf_proj\.linear1\.(weight|bias)", 0),
        ),
    },
    heads=r"lm_head|pair2coord_proj|dist_head|classification_heads|encoder\.final_head_layer_norm",
)
_OGB_GIN = _Layout(
    title="an OGB-style GIN",
    option="--gin",
    module=GinEncoder,
    config=GinConfig,
    anchors=("atom_encoder.atom_embedding_list.0.weight", "gnns.0.eps", "gnns.0.mlp.0.weight"),
    layers=r"(?:gnns|batch_norms)\.(\d+)\.",
    sizes={
        "hidden_size": (
            (r"(atom_encoder\.atom_embedding_list\.|x_embedding)\d\.weight", 1),
            (r"batch_norms\.\d+\.(weight|bias|running_mean|running_var)", 0),
        )
    },
    heads="graph_pred_linear|projection_head",
)
_GIN = {
    "ogb": _OGB_GIN,
    "pretrain-gnns": replace(
        _OGB_GIN,
        title="a GIN of pretrain-gnns",
        anchors=("x_embedding1.weight", "gnns.0.edge_embedding1.weight", "gnns.0.mlp.0.weight"),
        renamed=(
            (r"atom_encoder\.atom_embedding_list\.0", "x_embedding1"),
            (r"atom_encoder\.atom_embedding_list\.1", "x_embedding2"),
            (r"bond_encoder\.bond_embedding_list\.0", "edge_embedding1"),
            (r"bond_encoder\.bond_embedding_list\.1", "edge_embedding2"),
        ),
    ),
}
_CHIRALITY = "atom_encoder.atom_embedding_list.1.weight"


def load_unimol(weights: Weights, **overrides: Any) -> UniMolEncoder:
    """Load Uni-Mol's published weights, ready to encode (float32, evaluation mode).

    Sizes are read off the tensors; the number of heads, which those of the attention do not tell,
    off the last layer of the Gaussian head. The pre-training heads (``lm_head``,
    ``pair2coord_proj``, ``dist_head``, ``encoder.final_head_layer_norm``) are left out.

    Parameters
    ----------
    weights
        File (.safetensors, .pt, .pth), folder written by `convert_encoder`, or state dict. A
        pickle is never executed, see `collamo.model.weight_files.read_weights`.
    **overrides
        Fields of `UniMolConfig`, such as ``dropout=0.0``.

    Returns
    -------
    UniMolEncoder
        ``encoder(src_tokens, src_distance, src_edge_type)`` gives the representation [B,N,C] and
        the pair representation [B,N,N,H]; `collamo.model.encoders.unimol_inputs` makes its inputs.

    Raises
    ------
    MissingDependencyError
        If there is no such file.
    UsageError
        For other weights than Uni-Mol's: one message names every missing, unexpected and
        misshapen tensor.
    CollamoError
        For a damaged file, or one whose pickle holds more than tensors.

    Examples
    --------
    >>> encoder = load_unimol("mol_pre_no_h_220816.pt")  # doctest: +SKIP
    """
    opened = _open_weights(weights, UniMolConfig)
    return _load_encoder(_UNIMOL, *opened, overrides)


def load_gin(weights: Weights, flavour: str = "auto", **overrides: Any) -> GinEncoder:
    """Load a published GIN, ready to encode (float32, evaluation mode).

    MoleculeSTM's file has four rows of chirality, as OGB had until 1.3.5, and no row for the class
    "misc" (index 4) of later ones. Such a table gets a fifth row, a copy of CHI_OTHER's (index 3),
    the nearest in meaning; nothing else changes, and the log says so.

    Parameters
    ----------
    weights
        File (.safetensors, .pt, .pth), folder written by `convert_encoder`, or state dict.
    flavour
        "ogb" (MoleculeSTM and OGB's examples), "pretrain-gnns", or "auto": as the names tell.
    **overrides
        Fields of `GinConfig`, such as ``dropout=0.5``.

    Returns
    -------
    GinEncoder
        ``gin(x, edge_index, edge_attr)`` gives the list of node representations [A,C], the input
        level first.

    Raises
    ------
    MissingDependencyError, UsageError, CollamoError
        As `load_unimol`.

    Examples
    --------
    >>> gin = load_gin("molecule_model.pth")  # doctest: +SKIP
    """
    tensors, name, config = _open_weights(weights, GinConfig)
    if flavour == "auto":
        flavour = "pretrain-gnns" if _prefix(tensors, "x_embedding1.weight") is not None else "ogb"
    if flavour not in _GIN:
        known = ("auto", *_GIN)
        raise UsageError(
            f"GIN flavour {flavour!r} is none of {', '.join(known)}{suggest(flavour, known)}"
        )
    config["flavour"] = flavour
    return _load_encoder(_GIN[flavour], tensors, name, config, overrides)


def convert_encoder(source: str | Path, folder: str | Path) -> UniMolEncoder | GinEncoder:
    """Write a published encoder as ``model.safetensors`` and ``config.json`` into `folder`.

    Which one it is, its names tell. The file names its source and that one's SHA-256, and carries a
    digest of its own that loading checks; the pre-training heads stay behind.

    Raises
    ------
    UsageError
        For weights that are neither Uni-Mol's nor a GIN's, or a folder that has such files.
    MissingDependencyError, CollamoError
        As `load_unimol`.
    """
    source, folder = Path(source), Path(folder)
    target = folder / "model.safetensors"
    if target.exists():
        raise UsageError(f"'{target}' exists already; give another folder")
    tensors = read_weights(source)
    load = load_unimol if _prefix(tensors, *_UNIMOL.anchors) is not None else load_gin
    encoder = load(source)
    layout = _UNIMOL if isinstance(encoder, UniMolEncoder) else _GIN[encoder.config.flavour]
    folder.mkdir(parents=True, exist_ok=True)
    encoder.config.save_pretrained(folder)
    weights = {layout.official(name): value for name, value in encoder.state_dict().items()}
    write_weights(weights, target, {"source": source.name, "source_sha256": file_sha256(source)})
    return encoder


def _open_weights(weights: Weights, config: type) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Return the tensors, what errors call them, and what a config.json beside them says."""
    if isinstance(weights, Mapping):
        return checked_weights(weights, "the state dict"), "the state dict", {}
    path = Path(weights)
    if not path.is_dir():
        return read_weights(path), f"weights file '{path}'", {}
    values = _read_json(path / "config.json")
    kind = values.get("model_type")
    if kind != config.model_type:
        raise UsageError(
            f"'{path}' holds a model of type {kind!r}, {config.model_type!r} is needed here"
        )
    own = {key: value for key, value in values.items() if key in vars(config())}
    file = path / "model.safetensors"
    return read_weights(file), f"weights file '{file}'", own


def _load_encoder(
    layout: _Layout,
    tensors: dict[str, Tensor],
    name: str,
    config: dict[str, Any],
    overrides: Mapping[str, Any],
):
    if any("mol_projector." in key for key in tensors):
        raise UsageError(
            f"{name} is a whole CoLLaMo model, not {layout.title}; to train on from it give its "
            "folder as --init_from"
        )
    prefix = _prefix(tensors, *layout.anchors)
    if prefix is None:
        raise UsageError(f"{name} is not {layout.title}: {_what_it_is(tensors)}")
    encoder = _empty_encoder(layout, _sizes(layout, tensors, prefix), config, overrides)
    wanted = {prefix + layout.official(key): key for key in encoder.state_dict()}
    _add_misc_chirality(tensors, prefix + _CHIRALITY, name)
    found = {
        key: value
        for key, value in tensors.items()
        if not re.search(rf"(^|\.)({layout.heads})\.", key)
    }
    _compare(encoder, wanted, found, f"{name} does not fit {layout.title}")
    weights = {wanted[key]: value for key, value in found.items()}
    for key, empty in encoder.state_dict().items():
        # A count of batches that nothing reads; some files lack it.
        value = weights.get(key, torch.zeros((), dtype=torch.long))
        weights[key] = value.detach().to("cpu", empty.dtype, copy=True)
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval()


def _prefix(tensors: Mapping[str, Tensor], *anchors: str) -> str | None:
    """Return what stands before the names of the encoder, or None where none of `anchors` is."""
    found = Counter(
        key.removesuffix(anchor)
        for key in tensors
        for anchor in anchors
        if key == anchor or key.endswith("." + anchor)
    )
    return found.most_common(1)[0][0] if found else None


def _what_it_is(tensors: Mapping[str, Tensor]) -> str:
    for layout in (_UNIMOL, *_GIN.values()):
        if _prefix(tensors, *layout.anchors[:2]) is not None:
            return f"it looks like {layout.title}; give it as {layout.option}"
    names = sorted(tensors)
    return f"it holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def _sizes(layout: _Layout, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, int]:
    """Return the configuration's sizes as most tensors show them."""
    named = {key.removeprefix(prefix): value for key, value in tensors.items()}
    sizes = {}
    for field, places in layout.sizes.items():
        seen = Counter(
            tensor.shape[dim]
            for pattern, dim in places
            for key, tensor in named.items()
            if re.fullmatch(pattern, key) and tensor.ndim > dim
        )
        if seen:
            sizes[field] = seen.most_common(1)[0][0]
    layers = [int(match[1]) for key in named if (match := re.match(layout.layers, key))]
    if layers:
        sizes["num_layers"] = max(layers) + 1
    return sizes


def _empty_encoder(layout: _Layout, sizes, config, overrides) -> nn.Module:
    """Return the encoder without memory for its weights."""
    known = sorted(vars(layout.config()).keys() & layout.config.__annotations__.keys())
    for key in overrides:
        if key not in known:
            raise UsageError(
                f"unknown field '{key}' of {layout.title}{suggest(key, known)}; "
                f"known: {', '.join(known)}"
            )
    chosen = layout.config(**{**config, **sizes, **overrides})
    heads = getattr(chosen, "num_heads", 1)
    if chosen.hidden_size % heads:
        raise UsageError(f"{layout.title}: {chosen.hidden_size} channels cannot have {heads} heads")
    with torch.device("meta"):
        return layout.module(chosen)


def _add_misc_chirality(tensors: dict[str, Tensor], key: str, name: str) -> None:
    table = tensors.get(key)
    if table is not None and table.ndim == 2 and len(table) == 4:
        tensors[key] = torch.cat([table, table[3:]])
        logger.warning(
            "%s has the four chirality classes of OGB up to 1.3.5; the fifth of later ones, misc, "
            "gets a copy of CHI_OTHER's row",
            name,
        )


def _compare(
    encoder: nn.Module, wanted: Mapping[str, str], found: Mapping[str, Tensor], what: str
) -> None:
    """Raise UsageError with every tensor that is missing, unexpected or of another shape."""
    empty = encoder.state_dict()
    missing = [key for key in wanted if key not in found and "num_batches_tracked" not in key]
    unexpected = [key for key in found if key not in wanted]
    misshapen = [
        f"{key} is {list(value.shape)}, expected {list(empty[wanted[key]].shape)}"
        for key, value in found.items()
        if key in wanted and value.shape != empty[wanted[key]].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(
            f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys
        )
        raise UsageError(f"{what}: {listed}")
