"""Weights that nobody trains: one file, which all checkpoints of a training have.

A checkpoint of stage `align` is a whole model that `load_checkpoint` opens, and nearly all of it is
the language model as it came: 13 GB of LLaMA-2-7B. They are written and hashed once, as a shard of
their own; a later checkpoint has the same file under another name (a hard link; a copy where the
file system knows none).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from collamo.files import write_text
from collamo.model import CollamoForConditionalGeneration
from collamo.model.checksums import FROZEN_WEIGHTS, write_checksums

TRAINED_WEIGHTS = "model-trained.safetensors"


class FrozenWeights:
    """Puts the file of the frozen weights into checkpoints that hold the others.

    Parameters
    ----------
    model
        What is trained; its weights without a gradient are those of the file.
    checkpoint
        A whole one with the same frozen weights, from which training goes on.
    """

    def __init__(
        self, model: CollamoForConditionalGeneration, checkpoint: str | Path | None = None
    ):
        self._model = model
        parameters = model.named_parameters(remove_duplicate=False)
        self._names = {name for name, parameter in parameters if not parameter.requires_grad}
        self._file = None if checkpoint is None else Path(checkpoint, FROZEN_WEIGHTS)

    @classmethod
    def of(cls, model: nn.Module, checkpoint: str | Path | None = None) -> FrozenWeights | None:
        """Return those of `model`; None where its checkpoints are something else than two shards.

        An adapter's hold no frozen weights, and a language model of 4 bits is saved in one piece.
        """
        if not isinstance(model, CollamoForConditionalGeneration):
            return None
        if getattr(model.config, "quantization_config", None) is not None:
            return None
        frozen = cls(model, checkpoint)
        return frozen if frozen._names else None

    def others(self) -> dict[str, Tensor]:
        """Return the weights that ``save_pretrained`` is to write."""
        return self._part(frozen=False)

    def join(self, folder: Path) -> None:
        """Make a whole model of `folder`, where ``save_pretrained`` has written the others."""
        target = folder / FROZEN_WEIGHTS
        target.unlink(missing_ok=True)  # of a checkpoint that was never finished
        if self._file is None or not _same(self._file, target):
            self._write(target)
        self._file = target
        os.replace(folder / SAFE_WEIGHTS_NAME, folder / TRAINED_WEIGHTS)
        places: dict[str, str] = {}
        for name in (TRAINED_WEIGHTS, FROZEN_WEIGHTS):
            with safe_open(folder / name, "pt") as content:
                places |= dict.fromkeys(content.keys(), name)
        index = {"metadata": {}, "weight_map": places}
        write_text(folder / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=1) + "\n")
        write_checksums(folder)

    def _write(self, target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".frozen", dir=target.parent) as part:
            weights = self._part(frozen=True)
            self._model.save_pretrained(part, state_dict=weights, max_shard_size=sys.maxsize)
            os.replace(Path(part, SAFE_WEIGHTS_NAME), target)

    def _part(self, *, frozen: bool) -> dict[str, Tensor]:
        weights = self._model.state_dict()
        return {name: x for name, x in weights.items() if (name in self._names) == frozen}


def _same(file: Path, target: Path) -> bool:
    """Give `file` the name `target` too, or copy it; False where it is not there any more."""
    try:
        os.link(file, target)
    except FileNotFoundError:
        return False
    except OSError:  # no hard links here, or no more of them to this file
        shutil.copyfile(file, target)
    return True
