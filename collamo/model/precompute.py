"""Run frozen encoders over a prepared folder once, so that training need not run them at all."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from collamo.chem.features import MoleculeFeatures
from collamo.data.batch import batch_molecules
from collamo.data.encoder_outputs import (
    DTYPES,
    ENCODER_NAMES,
    EncoderOutputs,
    OutputsByRow,
    OutputsOrigin,
    atom_counts,
)
from collamo.data.prepared import PreparedData
from collamo.data.shards import shard_name
from collamo.errors import CollamoError, UsageError
from collamo.files import file_sha256
from collamo.model.configuration import ProjectorConfig
from collamo.model.encoders import GinEncoder, UniMolEncoder
from collamo.model.modeling import CollamoModel
from collamo.model.projector import spread_levels
from collamo.model.published_weights import load_gin, load_unimol

logger = logging.getLogger(__name__)

#: Molecules encoded together; similar sizes, so that the tensors of their pairs stay small.
TOGETHER = 64


def store_encoder_outputs(
    folder: str | Path,
    *,
    unimol: str | Path | None = None,
    gin: str | Path | None = None,
    layers: int | None = None,
    dtype: str = "float16",
    progress: Callable[[int], None] = lambda molecules: None,
) -> dict[str, EncoderOutputs]:
    """Store the outputs of published encoders for every molecule of a prepared folder.

    Whole shards made with the same weights, levels and dtype are kept, so a run that was killed
    resumes. Outputs of other weights are replaced. The encoders compute in float32, whatever the
    dtype on disk.

    Parameters
    ----------
    folder
        What `collamo.data.prepare` wrote.
    unimol, gin
        Weights as `load_unimol` and `load_gin` take them; at least one.
    layers
        ``num_layers`` of the projector that will read them: which levels are stored follows from
        it (`spread_levels`). None takes the default, 5; 1 stores the output alone, which is what
        ``multi_level: false`` reads.
    dtype
        "float16" keeps 11 bits, 8 times as fine as bfloat16, in half the space of "float32".
    progress
        Called with the number of molecules just encoded by all encoders together.

    Returns
    -------
    dict of str to EncoderOutputs
        By modality, "2d" and "3d".

    Raises
    ------
    UsageError
        No encoder, or a bad dtype or number of layers.
    CollamoError
        Outputs beyond the dtype's range, NaN among them; and as `load_unimol`.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    layers = ProjectorConfig().num_layers if layers is None else layers
    if layers < 1:
        raise UsageError(f"layers is {layers}; a projector has at least 1")
    encoders: dict[str, tuple[UniMolEncoder | GinEncoder, Path]] = {}
    if gin is not None:
        encoders["2d"] = load_gin(gin).requires_grad_(False), Path(gin)
    if unimol is not None:
        encoders["3d"] = load_unimol(unimol).requires_grad_(False), Path(unimol)
    if not encoders:
        raise UsageError("nothing to encode with: give unimol (--unimol) or gin (--gin), or both")
    data = PreparedData.open(folder)
    return {
        modality: _encode(data, modality, encoder, file, layers, dtype, progress)
        for modality, (encoder, file) in encoders.items()
    }


def use_encoder_outputs(model: nn.Module, data: PreparedData) -> list[str]:
    """Let `data` deliver the stored outputs of those encoders of `model` that do not train.

    Returns
    -------
    list of str
        The modalities whose encoder need not run.

    Raises
    ------
    UsageError
        Where the folder has outputs of other weights than the encoder's, or of levels that the
        projector does not read.
    """
    used = []
    core = next(m for m in model.modules() if isinstance(m, CollamoModel))
    config = core.config
    for modality, encoder in (("2d", core.graph_encoder), ("3d", core.conformer_encoder)):
        stored = EncoderOutputs.read(data.folder, modality)
        if stored is None or modality not in config.modalities:
            continue
        if any(parameter.requires_grad for parameter in encoder.parameters()):
            logger.info("the %s encoder trains: its stored outputs are left alone", modality)
            continue
        recorded = (config.sources or {}).get(ENCODER_NAMES[modality], {})
        stored.check(
            encoder_digest(encoder),
            recorded.get("file", "not from a file"),
            core.mol_projector.levels_read(modality),
            config.projector_config.num_layers if config.projector_config.multi_level else 1,
        )
        data.add_encoded(modality, OutputsByRow(data, stored))
        logger.info(
            "the %s encoder is not run: its outputs are stored in %s", modality, data.folder
        )
        used.append(modality)
    return used


def encoder_digest(encoder: nn.Module) -> str:
    """Return the SHA-256 over an encoder's sizes and weights, statistics of batch norms included.

    Over the weights themselves and not their file: an encoder that was trained on is another one,
    and the same one may come as .pt or .safetensors. They are rounded to bfloat16 first, so that a
    model which keeps them in that precision is known again.
    """
    sizes = {key: getattr(encoder.config, key) for key in encoder.config.__annotations__}
    sizes.pop("dropout")  # of training alone
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(f"{name} {list(tensor.shape)}".encode())
            rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous()
            digest.update(rounded.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _encode(
    data: PreparedData,
    modality: str,
    encoder: UniMolEncoder | GinEncoder,
    source: Path,
    layers: int,
    dtype: str,
    progress: Callable[[int], None],
) -> EncoderOutputs:
    """Encode the shards that are not there yet."""
    levels = sorted(set(spread_levels(encoder.config.num_layers + 1, layers)))
    origin = OutputsOrigin(
        modality=modality,
        weights=encoder_digest(encoder),
        file=source.name,
        file_sha256=file_sha256(source / "model.safetensors" if source.is_dir() else source),
        levels=levels,
        channels=encoder.config.hidden_size,
        dtype=dtype,
    )
    stored = EncoderOutputs.read(data.folder, modality)
    if stored is None or stored.origin != origin:
        stored = EncoderOutputs(data.folder, origin)
        stored.write()  # before a file of the old ones is replaced
    for shard in range(data.num_shards):
        made_from = str(data.manifest.files[shard_name(shard)]["sha256"])
        if not stored.has(shard, made_from):
            outputs = _encode_shard(data, shard, encoder, origin)
            stored = stored.with_shard(shard, made_from, outputs)
        progress(len(atom_counts(data, shard, "2d")[1]))
    return stored


def _encode_shard(
    data: PreparedData, shard: int, encoder: UniMolEncoder | GinEncoder, origin: OutputsOrigin
) -> np.ndarray:
    """Return [A,L,C] of a shard's molecules."""
    molecules = list(data.molecules_of(shard).items())
    _, counts = atom_counts(data, shard, origin.modality)
    ends = counts.cumsum()
    outputs = np.zeros((counts.sum(), len(origin.levels), origin.channels), dtype=origin.dtype)
    by_size = iter([i for i in np.argsort(counts, kind="stable").tolist() if counts[i]])
    while places := list(islice(by_size, TOGETHER)):
        levels_of_places = encode_molecules(
            [molecules[i][1] for i in places], encoder, origin.levels
        )
        for i, levels in zip(places, levels_of_places, strict=True):
            outputs[ends[i] - counts[i] : ends[i]] = _narrowed(levels, molecules[i][0], origin)
    return outputs


def encode_molecules(
    molecules: list[MoleculeFeatures], encoder: UniMolEncoder | GinEncoder, numbers: Sequence[int]
) -> Iterator[Tensor]:
    """Yield of each molecule the levels of these numbers, [N,L,C]."""
    levels = encoder.encode(batch_molecules([[one] for one in molecules], {}).flat(), numbers)
    stacked = torch.stack([levels[number] for number in numbers], dim=2)  # [B, N, L, C]
    for row, molecule in enumerate(molecules):
        yield stacked[row, : molecule.num_atoms]


def _narrowed(levels: Tensor, row: int, origin: OutputsOrigin) -> np.ndarray:
    """Return the levels in the dtype on disk; CollamoError where they do not fit into it."""
    largest = float(levels.abs().max()) if levels.numel() else 0.0
    limit = float(np.finfo(origin.dtype).max)
    if not largest <= limit:  # NaN compares as False as well
        raise CollamoError(
            f"row {row}: the {ENCODER_NAMES[origin.modality]} encoder gives {largest:g}, beyond "
            f"{origin.dtype} ({limit:g}); encode with --encode-dtype float32, or look at "
            "its weights"
        )
    return levels.numpy().astype(origin.dtype)
