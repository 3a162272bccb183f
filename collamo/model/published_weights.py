"""The published encoders Uni-Mol and GIN: their weights opened, recognised and converted."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from collamo.errors import UsageError, suggest
from collamo.files import file_sha256
from collamo.model.configuration import GinConfig, UniMolConfig
from collamo.model.encoders import GinEncoder, UniMolEncoder
from collamo.model.weight_files import checked_weights, read_json, read_weights, write_weights

logger = logging.getLogger(__name__)

Weights = str | Path | Mapping[str, Tensor]


Encoder = TypeVar("Encoder", bound=UniMolEncoder | GinEncoder)


@dataclass(frozen=True)
class _Layout(Generic[Encoder]):
    """How the files of one published encoder name their tensors.

    `sizes` says which dimension of which tensors (by pattern) shows a field of the configuration;
    the majority decides, so that one tensor that is missing or of another shape is reported as
    such, and not every other. `anchors` show what stands before all names, such as
    ``molecule_node_model.``; `heads` are of pre-training or a task, and not part of the encoder.
    """

    title: str
    option: str
    module: Callable[..., Encoder]
    config: type[UniMolConfig] | type[GinConfig]
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
_UNIMOL: _Layout[UniMolEncoder] = _Layout(
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
    heads=r"\w+_heads?|pair2coord_proj|encoder\.final_head_layer_norm",
)
_OGB_GIN: _Layout[GinEncoder] = _Layout(
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
_GIN: dict[str, _Layout[GinEncoder]] = {
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
    ``pair2coord_proj``, ``dist_head``, ``encoder.final_head_layer_norm``) are left out, and so are
    those of a fine-tuned model (``classification_head``), of which the log gives the names.

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
            f"GIN flavour {flavour!r} is not one of {', '.join(known)}{suggest(flavour, known)}"
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


def _open_weights(
    weights: Weights, config: type[UniMolConfig] | type[GinConfig]
) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Return the tensors, their name for messages, and the fields of a config.json beside them."""
    if isinstance(weights, Mapping):
        return checked_weights(weights, "the state dict"), "the state dict", {}
    path = Path(weights)
    if not path.is_dir():
        return read_weights(path), f"weights file '{path}'", {}
    values = read_json(path / "config.json")
    kind = values.get("model_type")
    if kind != config.model_type:
        raise UsageError(
            f"'{path}' holds a model of type {kind!r}, {config.model_type!r} is needed here"
        )
    own = {key: value for key, value in values.items() if key in vars(config())}
    file = path / "model.safetensors"
    return read_weights(file), f"weights file '{file}'", own


def _load_encoder(
    layout: _Layout[Encoder],
    tensors: dict[str, Tensor],
    name: str,
    config: dict[str, Any],
    overrides: Mapping[str, Any],
) -> Encoder:
    if any("mol_projector." in key for key in tensors):
        raise UsageError(
            f"{name} is a whole CoLLaMo model, not {layout.title}; to train on from it give its "
            "folder as --init_from"
        )
    prefix = _prefix(tensors, *layout.anchors)
    if prefix is None:
        raise UsageError(f"{name} is not {layout.title}: {_what_it_is(tensors)}")
    encoder = _empty_encoder(layout, _sizes(layout, tensors, prefix), config, overrides)
    names = {prefix + layout.official(key): key for key in encoder.state_dict()}
    _add_misc_chirality(tensors, prefix + _CHIRALITY, name)
    own = _without_heads(layout, tensors, name)
    _compare(encoder, names, own, f"{name} does not fit {layout.title}")
    weights = {names[key]: value for key, value in own.items()}
    for key, empty in encoder.state_dict().items():
        # A count of batches that nothing reads; some files lack it.
        value = weights.get(key, torch.zeros((), dtype=torch.long))
        weights[key] = value.detach().to("cpu", empty.dtype, copy=True)
    encoder.load_state_dict(weights, assign=True)
    encoder.eval()
    return encoder


_PRETRAINING = (
    *("lm_head", "dist_head", "pair2coord_proj", "final_head_layer_norm"),
    *("graph_pred_linear", "projection_head"),
)


def _without_heads(
    layout: _Layout[Encoder], tensors: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """Return the tensors of the encoder; the log names the heads that fine-tuning added."""
    own, heads = {}, set()
    for key, value in tensors.items():
        head = re.search(rf"(?:^|\.)({layout.heads})\.", key)
        if head is None:
            own[key] = value
        elif not head[1].endswith(_PRETRAINING):
            heads.add(head[1])
    if heads:
        logger.warning(
            "%s was fine-tuned: %s left out, which is no part of the encoder",
            name,
            ", ".join(sorted(heads)),
        )
    return own


def _prefix(tensors: Mapping[str, Tensor], *anchors: str) -> str | None:
    """Return what stands before the names of the encoder, or None where none of `anchors` is."""
    prefixes = Counter(
        key.removesuffix(anchor)
        for key in tensors
        for anchor in anchors
        if key == anchor or key.endswith("." + anchor)
    )
    return prefixes.most_common(1)[0][0] if prefixes else None


def _what_it_is(tensors: Mapping[str, Tensor]) -> str:
    layouts: tuple[_Layout[UniMolEncoder] | _Layout[GinEncoder], ...] = (_UNIMOL, *_GIN.values())
    for layout in layouts:
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


def _empty_encoder(
    layout: _Layout[Encoder],
    sizes: Mapping[str, int],
    config: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> Encoder:
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
    encoder: nn.Module, names: Mapping[str, str], tensors: Mapping[str, Tensor], problem: str
) -> None:
    """Raise UsageError with every tensor that is missing, unexpected or of another shape.

    `names`: the file's → ours.
    """
    empty = encoder.state_dict()
    missing = [key for key in names if key not in tensors and "num_batches_tracked" not in key]
    unexpected = [key for key in tensors if key not in names]
    misshapen = [
        f"{key} is {list(value.shape)}, expected {list(empty[names[key]].shape)}"
        for key, value in tensors.items()
        if key in names and value.shape != empty[names[key]].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(
            f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys
        )
        raise UsageError(f"{problem}: {listed}")
