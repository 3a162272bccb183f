"""CoLLaMo in vLLM: encoders and projector are ours, the language model is vLLM's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from collamo.data.batch import REQUIRED_TENSORS, MoleculeBatch
from collamo.errors import CollamoError
from collamo.inference.vllm_plugin.molecules import (
    MODALITY,
    LargestMolecules,
    MoleculeInfo,
    MoleculeProcessor,
)
from collamo.model import CollamoConfig, CollamoModel
from collamo.model.configuration import MOL_TOKEN

#: Our choice: pairs of atoms that are encoded together, of 32 molecules of 128 atoms or 2 of 512.
#: The memory that encoders take goes with them, and vLLM measures it at its start.
PAIRS = 32 * 128**2


class MoleculeEncoders(CollamoModel):
    """A `CollamoModel` that has no language model at all: it encodes molecules."""

    def __init__(self, config: CollamoConfig):
        with torch.device("meta"):
            language_model = AutoModel.from_config(config.text_config)
        super().__init__(config, language_model)
        del self.language_model


@MULTIMODAL_REGISTRY.register_processor(
    MoleculeProcessor, info=MoleculeInfo, dummy_inputs=LargestMolecules
)
class ServedCollamo(nn.Module, SupportsMultiModal):
    """What vLLM builds of a checkpoint whose LoRA is merged.

    The interface is vLLM's `SupportsMultiModal`.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.dtype = vllm_config.model_config.dtype
        # mypy knows nothing of vLLM: it takes these two for parts of an nn.Module.
        with self._mark_tower_model(vllm_config, MODALITY):  # type: ignore[operator]
            self.encoders = MoleculeEncoders(config)
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        # vLLM's models take the names that transformers' causal models have.
        causal = cast("Any", MODEL_FOR_CAUSAL_LM_MAPPING[type(config.text_config)])
        body = causal.base_model_prefix
        self.hf_to_vllm_mapper = WeightsMapper(
            orig_to_new_prefix={
                "model.language_model.": f"language_model.{body}.",
                "lm_head.": "language_model.lm_head.",
                "model.": "encoders.",
            }
        )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return what stands for a molecule in a prompt."""
        return MOL_TOKEN if modality == MODALITY else None

    def embed_multimodal(self, **kwargs: Tensor | Sequence[Tensor]) -> MultiModalEmbeddings:
        """Encode molecules of any number of prompts to soft tokens [n,b,D].

        The tensors of each are its own, [1,…]: those of one size come stacked, others in a list.
        """
        count = len(kwargs.get("molecule_valid", ()))
        molecules = [
            MoleculeBatch(**{name: kwargs[name][i][None] for name in REQUIRED_TENSORS})
            for i in range(count)
        ]
        if not molecules:
            return []
        soft: list[Tensor] = [torch.empty(0)] * count
        for places in like_sizes([molecule.atom_valid.shape[-1] for molecule in molecules]):
            batch = MoleculeBatch.cat([molecules[place] for place in places])
            encoded = self.encoders.get_molecule_features(batch)[:, 0].to(self.dtype)
            for place, tokens in zip(places, encoded, strict=True):
                soft[place] = tokens
        return soft

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | IntermediateTensors:
        """Return the language model's hidden states; the soft tokens are in `inputs_embeds`."""
        return self.language_model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return the logits, none for `<mol>`: it is an input, never an answer."""
        logits = self.language_model.compute_logits(hidden_states)
        if logits is not None:
            logits[..., self.config.mol_token_id] = -torch.inf
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint's weights, all of them.

        Raises
        ------
        CollamoError
            Where the checkpoint lacks some of the encoders' or projector's, or has a bias that
            vLLM's language model has no place for.
        """
        loaded = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        needed = {f"encoders.{name}" for name in self.encoders.state_dict()}
        if missing := sorted(needed - loaded):
            raise CollamoError(
                f"the checkpoint lacks {len(missing)} weights, {missing[0]} among them; write it "
                "again with `collamo merge`"
            )
        if self.config.lm_head_bias and "language_model.lm_head.bias" not in loaded:
            raise CollamoError(
                f"vLLM's {type(self.language_model).__name__} has no bias in its output layer, and "
                "this checkpoint has one; serve it with `collamo serve`"
            )
        return loaded


def like_sizes(atoms: Sequence[int]) -> Iterator[list[int]]:
    """Yield places in `atoms`, molecules of like size together, at most `PAIRS` with padding.

    Examples
    --------
    >>> list(like_sizes([512, 3, 512, 512, 4]))
    [[1, 4], [0, 2], [3]]
    """
    chunk: list[int] = []
    for place in sorted(range(len(atoms)), key=atoms.__getitem__):
        if chunk and (len(chunk) + 1) * atoms[place] ** 2 > PAIRS:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk
