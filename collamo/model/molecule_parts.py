"""What a checkpoint has beside its language model: encoders, projector and the table of tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel

from collamo.errors import UsageError
from collamo.model.configuration import CollamoConfig
from collamo.model.modeling import CollamoModel
from collamo.model.weight_files import read_weights


class MoleculeParts(CollamoModel):
    """A `CollamoModel` whose language model is its table of tokens and nothing else.

    Enough to make prompts of embeddings for an engine that has the language model.
    ``from_pretrained`` opens the checkpoint of a whole model and loads no other weights: 0.1 of
    13 GB of LLaMA-2-7B.
    """

    _keys_to_ignore_on_load_unexpected = [r"\blanguage_model\.", r"^lm_head\."]  # noqa: RUF012

    def __init__(self, config: CollamoConfig):
        with torch.device("meta"):
            language_model = AutoModel.from_config(config.text_config)
        _strip(language_model, kept=language_model.get_input_embeddings())
        super().__init__(config, language_model)

    @torch.no_grad()
    def take_adapter(self, folder: Path) -> None:
        """Take over what an adapter trained whole of these parts: its projector.

        LoRA inside the language model changes nothing here.

        Raises
        ------
        UsageError
            Where LoRA changes these parts as well.
        """
        own = {f"model.{name}": tensor for name, tensor in self.state_dict().items()}
        inside = "model.language_model."
        table = next(name for name in own if name.startswith(inside)).removesuffix("weight")
        for file in sorted(folder.glob("adapter_model*.safetensors")):
            for key, tensor in read_weights(file).items():
                name = key.removeprefix("base_model.model.")
                if name in own:
                    own[name].copy_(tensor)
                elif name.startswith(table) or not name.startswith((inside, "lm_head.")):
                    raise UsageError(
                        f"adapter '{folder}' has {name}, which is LoRA outside the language "
                        "model's layers; `collamo merge` makes one model of it, give that one"
                    )


def _strip(model: nn.Module, kept: nn.Module) -> None:
    """Delete every submodule that neither is `kept` nor holds it."""
    for name, child in list(model.named_children()):
        if all(module is not kept for module in child.modules()):
            delattr(model, name)
        elif child is not kept:
            _strip(child, kept)
