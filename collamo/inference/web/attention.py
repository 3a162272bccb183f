"""Which atoms the soft tokens look at."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from collamo.chem.features import MoleculeFeatures
from collamo.data.batch import MODALITIES
from collamo.inference.molecules import reading
from collamo.inference.prompt_encoder import PromptEncoder
from collamo.model.projector import CoProjector, CoProjectorLayer, CrossAttention


@dataclass(frozen=True)
class Gaze:
    """Where soft tokens look.

    Attributes
    ----------
    atoms
        A number per atom, scaled to mean 1.
    shares
        View → its share of all attention; what is missing to 1 goes to the zero key.
    """

    atoms: list[float]
    shares: dict[str, float]


class AtomAttention:
    """Watches the last layer's queries while a model reads a molecule.

    The hook stays, because adding one while another thread runs the model is not safe; it keeps
    what the thread that asks computes, and nothing else.

    Parameters
    ----------
    encoder
        The model, of one molecule's soft tokens at least.
    """

    def __init__(self, encoder: PromptEncoder):
        self.encoder = encoder
        self._seen = threading.local()
        # A model with an adapter holds the projector before it too; it is never called.
        for module in encoder.model.modules():
            if isinstance(module, CoProjector):
                last = cast("CoProjectorLayer", module.layers[-1])
                last.gather.attention.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        if getattr(self._seen, "wanted", False):
            self._seen.weights = cast("CrossAttention", module).weights(*args)[0].float()

    def look(
        self, features: MoleculeFeatures, modalities: tuple[str, ...], token: int | None = None
    ) -> Gaze | None:
        """Return where the soft tokens look, mean over heads; of `token` alone where it is given.

        None where no atom is read: with 1D alone.
        """
        own = self.encoder.model.config
        views = reading(features, [m for m in modalities if m in own.modalities])["views"]
        if not {"2d", "3d"} & set(views):
            return None
        self._seen.wanted = True
        try:
            self.encoder.soft_tokens([features], modalities=modalities)
            weights: Tensor = self._seen.weights.mean(0)  # [b, T]
        finally:
            self._seen.wanted = False
        row = weights.mean(0) if token is None else weights[token]
        if own.projector_config.zero_attention:
            row = row[:-1]
        return _gaze(row.cpu(), features.num_atoms, views)

    @property
    def tokens(self) -> int:
        """How many soft tokens a molecule has."""
        return int(self.encoder.model.config.projector_config.num_query_tokens)


def _gaze(row: Tensor, atoms: int, views: Sequence[str]) -> Gaze:
    """Take the attention ``[T]`` apart: SELFIES tokens, atoms in 2D, atoms in 3D."""
    parts = row.split([len(row) - 2 * atoms, atoms, atoms])
    shares = {m: float(part.sum()) for m, part in zip(MODALITIES, parts, strict=True)}
    of_atoms = parts[1] + parts[2]
    scale = of_atoms.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return Gaze((of_atoms / scale).tolist(), {m: shares[m] for m in views})
