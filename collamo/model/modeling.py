"""CollamoModel and CollamoForConditionalGeneration: encoders, projector and a causal LLM."""

from __future__ import annotations

from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ModelOutput,
)
from transformers.utils.generic import can_return_tuple

from collamo.data.batch import MOLECULE_TENSORS, MoleculeBatch
from collamo.model.card import model_card
from collamo.model.checksums import verify_checksums, write_checksums
from collamo.model.configuration import MODALITIES, CollamoConfig
from collamo.model.encoders import GinEncoder, SelfiesEncoder, UniMolEncoder
from collamo.model.encoders.gin import GinConv
from collamo.model.encoders.unimol import UniformEmbedding
from collamo.model.projector import (
    CoProjector,
    CrossAttention,
    LearnedQueries,
    RelationBias,
    drop_modalities,
)
from collamo.model.stub import OpenedByStub
from collamo.model.transformers_versions import CACHE
from collamo_kernels import CoAttention, GaussianRadial
from collamo_kernels.coattention.module import SINK_RANGE

#: Parts of `CollamoModel` beside the language model: an encoder per modality, and the projector.
ENCODER_PARTS = {"1d": "selfies_encoder", "2d": "graph_encoder", "3d": "conformer_encoder"}
MOLECULE_PARTS = (*ENCODER_PARTS.values(), "mol_projector")
_RESETS_ITSELF = UniformEmbedding | GinConv | LearnedQueries | RelationBias | CrossAttention


@dataclass
class CollamoModelOutputWithPast(BaseModelOutputWithPast):
    """Hidden states of the language model, and the soft tokens [R,M,b,D] it was given."""

    molecule_hidden_states: torch.FloatTensor | None = None


@dataclass
class CollamoCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Loss and logits of the next token, and the soft tokens [R,M,b,D]."""

    molecule_hidden_states: torch.FloatTensor | None = None


# A compiled graph cannot say which prompt it is.
_UNFILLED = (
    "a prompt's <mol> tokens and its molecules disagree in number; use one <mol> per molecule and "
    "let CollamoProcessor expand it"
)

Output = TypeVar("Output", CollamoModelOutputWithPast, CollamoCausalLMOutputWithPast)
# Looked up once, because torch.compile cannot look into a dataclass.
_FIELDS = {
    kind: frozenset(field.name for field in fields(kind))
    for kind in (CollamoModelOutputWithPast, CollamoCausalLMOutputWithPast)
}


def _output(kind: type[Output], outputs: ModelOutput, **own: Any) -> Output:
    """Return a `kind` with those fields of `outputs` that it has, and with its own."""
    shared: dict[str, Any] = {name: x for name, x in outputs.items() if name in _FIELDS[kind]}
    return kind(**shared, **own)


class CollamoPreTrainedModel(OpenedByStub, PreTrainedModel):
    """What both models share: configuration, initialisation, capabilities of the LLM."""

    config_class = CollamoConfig
    config: CollamoConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CoProjectorLayer", "UniMolLayer", "GinConv", "SelfLoopGinConv"]  # noqa: RUF012
    _skip_keys_device_placement = [CACHE]  # noqa: RUF012
    # The choice concerns the language model; molecules have their own attention.
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Of decoding with a static cache; molecules are encoded before it, outside the compiled part.
    _can_compile_fullgraph = True

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model's weights, and so of a checkpoint when it is opened again.

        Training may hold the parts beside it in float32.
        """
        core = cast("CollamoModel", getattr(self, self.base_model_prefix, self))
        return core.language_model.dtype

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Open as any model of transformers; CollamoError where weights were altered on disk."""
        if pretrained_model_name_or_path is not None:
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            if folder.is_dir():
                verify_checksums(folder)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save as any model of transformers, with ``SHA256SUMS`` beside it."""
        if getattr(self.config, "quantization_config", None) is not None:
            # transformers cannot turn 4 bits that it loaded back into the file's form: they are it.
            kwargs["save_original_format"] = False
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if self.tp_size is not None:  # cut between processes: all of them gather, and write
            torch.distributed.barrier()
            is_main_process = is_main_process and torch.distributed.get_rank() == 0
        if is_main_process:
            write_checksums(Path(save_directory))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw fresh weights; the language model draws its own.

        Linear maps are Xavier uniform (our choice, because 0.02 of LLaMA is meant for widths in
        the thousands and leaves a width of 100 nearly silent).
        """
        if isinstance(module, _RESETS_ITSELF):
            module.reset_parameters()
        elif isinstance(module, GaussianRadial):
            _init_radial(module)
        elif isinstance(module, CoAttention):
            if module.sink is not None:
                init.copy_(module.sink, torch.linspace(*SINK_RANGE, module.num_heads))
        elif isinstance(module, nn.Linear) and module is not getattr(self, "lm_head", None):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


def _init_radial(radial: GaussianRadial) -> None:
    """Draw Φ3d's centres and widths (Å) as GaussianRadial itself does."""
    if radial.grid == "learned":
        init.uniform_(radial.mu, 0, 3)
        init.uniform_(radial.sigma, 0, 3)


class ReadsMolecules:
    """Encoders and a projector, and the way through them."""

    config: CollamoConfig
    training: bool
    mol_projector: CoProjector
    selfies_encoder: SelfiesEncoder

    def get_molecule_features(self, molecules: MoleculeBatch) -> Tensor:
        """Encode molecules to soft tokens.

        In training, present modalities are dropped at random. Stored outputs of an encoder take the
        place of running it; it then gets no gradient.

        Returns
        -------
        Tensor
            [R,M,b,D] in the language model's width; exactly zero where `molecule_valid` is False,
            and for a molecule with none of ``config.modalities``.
        """
        shape, molecules = molecules.molecule_valid.shape, molecules.flat()
        read = [m in self.config.modalities for m in MODALITIES]
        present = molecules.present & torch.tensor(read, device=molecules.present.device)
        dropout = self.config.projector_config.modality_dropout
        if self.training and dropout > 0:
            present = drop_modalities(present, dropout)
        molecules = molecules.narrowed_to(present)
        levels = {m: self._levels(m, molecules) for m in MODALITIES}
        return self.mol_projector(levels, molecules).unflatten(0, shape)

    def _levels(self, modality: str, molecules: MoleculeBatch) -> dict[int, Tensor]:
        """Levels [B,T,C] by number that the projector reads: stored, or of the encoder."""
        encoder = getattr(self, ENCODER_PARTS[modality])
        numbers = self.mol_projector.levels_read(modality)
        stored = molecules.stored_outputs(modality)
        if stored is None:
            return encoder.encode(molecules, numbers)
        if list(stored.shape[2:]) != [len(numbers), encoder.config.hidden_size]:
            raise ValueError(
                f"encoded_{modality} has shape {list(stored.shape)}; its last two must be "
                f"{[len(numbers), encoder.config.hidden_size]}: levels {numbers} and channels"
            )
        levels = stored.to(self.selfies_encoder.norm.weight.dtype).unbind(2)
        return dict(zip(numbers, levels, strict=True))


class CollamoModel(ReadsMolecules, CollamoPreTrainedModel):  # type: ignore[misc]  # config: theirs is any
    """Molecule encoders, projector and a language model without its output layer.

    Soft tokens of the molecules replace the embeddings of `<mol>` in the prompt, in order.

    Parameters
    ----------
    config
        Of all parts.
    language_model
        Takes the place of the one that `config.text_config` describes, weights and all.
    """

    def __init__(self, config: CollamoConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        selfies, gin, unimol = config.selfies_config, config.gin_config, config.unimol_config
        self.selfies_encoder = SelfiesEncoder(selfies)
        self.graph_encoder = GinEncoder(gin)
        self.conformer_encoder = UniMolEncoder(unimol)
        self.mol_projector = CoProjector(
            config.projector_config,
            widths={
                "1d": selfies.hidden_size,
                "2d": gin.hidden_size,
                "3d": unimol.hidden_size,
            },
            num_levels={"1d": 1, "2d": gin.num_layers + 1, "3d": unimol.num_layers + 1},
            text_width=config.text_config.hidden_size,
        )
        self.language_model = language_model or AutoModel.from_config(config.text_config)
        for module in language_model.modules() if language_model else ():
            # Without this mark post_init would draw its weights anew.
            module._is_hf_initialized = True  # type: ignore[assignment]  # to torch no flag
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> CollamoModel:
        """Switch to training mode, except encoders whose every parameter is frozen.

        Frozen weights with drifting batch statistics and dropout would not be frozen.
        """
        super().train(mode)
        for encoder in (self.selfies_encoder, self.graph_encoder, self.conformer_encoder):
            encoder.train(mode and any(p.requires_grad for p in encoder.parameters()))
        return self

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        molecules: MoleculeBatch | None = None,
        **kwargs,
    ) -> CollamoModelOutputWithPast:
        """Splice the molecules into the prompt and run the language model.

        Exactly one of `input_ids` [R,T] and `inputs_embeds` [R,T,D]; `cache` and `past_key_values`
        are two names for one thing (see `transformers_versions.CACHE`). The molecules may also come
        as their tensors by name, as trl hands them to whatever stands under an output layer. Of
        molecules whose first ones are in the cache, the last are read.

        Raises
        ------
        ValueError
            If a prompt's `<mol>` tokens and its molecules disagree in number, or `<mol>` tokens
            come without molecules.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if molecules is None:
            by_name = {name: kwargs.pop(name, None) for name in MOLECULE_TENSORS}
            molecules = MoleculeBatch.from_tensors(by_name)
        cache = past_key_values if cache is None else cache
        ids, embeds = input_ids, inputs_embeds
        if embeds is None:
            embeds = self.get_input_embeddings()(ids)
        soft = None
        if molecules is not None:
            soft = self.get_molecule_features(molecules)
            embeds = self._spliced(ids, embeds, soft, molecules.molecule_valid, _is_filled(cache))
        elif not torch.compiler.is_compiling():
            self._refuse_unfilled(ids, embeds, cache)
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(self.config, name):  # the language model asks its own configuration alone
                kwargs.setdefault(name, True)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=embeds,
            **{CACHE: cache},
            **kwargs,
        )
        return _output(CollamoModelOutputWithPast, outputs, molecule_hidden_states=soft)

    def _placeholders(self, ids: Tensor | None, embeds: Tensor) -> Tensor:
        """[R,T] bool: positions of `<mol>`."""
        if ids is not None:
            return ids == self.config.mol_token_id
        if self.config.mol_token_id < 0:
            return embeds.new_zeros(embeds.shape[:2], dtype=torch.bool)
        mol = torch.tensor(self.config.mol_token_id, device=embeds.device)
        return (embeds == self.get_input_embeddings()(mol)).all(-1)

    def _spliced(
        self, ids: Tensor | None, embeds: Tensor, soft: Tensor, real: Tensor, going_on: bool
    ) -> Tensor:
        """Put the soft tokens [R,M,b,D] of real molecules where `<mol>` stands, row by row.

        When `going_on` from a cache, those of a row's first molecules may be in it.
        """
        where = self._placeholders(ids, embeds)
        if going_on:
            real = _last(real, where.sum(1) // soft.shape[2])
        places, fills = where.sum(1), real.sum(1) * soft.shape[2]
        if torch.compiler.is_compiling():
            torch._assert_async((places == fills).all(), _UNFILLED)
        elif not torch.equal(places, fills):
            row = int((places != fills).nonzero()[0])
            raise ValueError(
                f"prompt {row} has {int(places[row])} <mol> tokens, but its {int(real[row].sum())} "
                f"molecules fill {int(fills[row])}; use one <mol> per molecule and let "
                "CollamoProcessor expand it"
            )
        if not soft.shape[1]:
            return embeds
        rows = F.embedding(_soft_rows(where, real, soft.shape[2]), soft.flatten(0, 2).to(embeds))
        return torch.where(where[..., None], rows, embeds)

    def _refuse_unfilled(self, ids: Tensor | None, embeds: Tensor, cache: Cache | None) -> None:
        """Raise where `<mol>` would be read as a word: fluent text about no molecule at all."""
        if embeds.shape[1] == 1 and _is_filled(cache):
            return  # an answer, which has none; a GPU is not asked at every token
        if self._placeholders(ids, embeds).any():
            raise ValueError(
                "the prompt has <mol> tokens, but no molecules were given; pass every output of "
                "CollamoProcessor to the model, or leave <mol> out"
            )


class CollamoForConditionalGeneration(CollamoPreTrainedModel, GenerationMixin):
    """CoLLaMo with the language model's output layer: loss, logits, generate.

    Parameters
    ----------
    config
        Of all parts.
    causal_lm
        Its body and output layer take the place of those that `config.text_config` describes.
    """

    _tied_weights_keys = {  # noqa: RUF012
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }
    # The language model has its own plan, which cuts the embedding that may be tied to this.
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: CollamoConfig, causal_lm: PreTrainedModel | None = None):
        super().__init__(config)
        language_model = causal_lm and cast("PreTrainedModel", causal_lm.base_model)
        self.model = CollamoModel(config, language_model)
        text = config.text_config
        if causal_lm is None:
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=config.lm_head_bias)
        else:
            self.lm_head = causal_lm.get_output_embeddings()
            self.lm_head._is_hf_initialized = True
        embedding = _name_of(self.model.language_model, self.get_input_embeddings())
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{embedding}.weight"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embedding."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output layer."""
        self.lm_head = value

    def _scored_loss(
        self, hidden: Tensor, labels: Tensor, label_weights: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """[R,T,D] hidden states, [R,T] labels → the same loss, without logits for -100.

        A compiled graph, in which no size may depend on labels, has logits for those too.
        """
        parts = [hidden[:, :-1], labels[:, 1:]]
        if label_weights is not None:
            parts.append(label_weights[:, 1:])
        scored = labels[:, 1:] != -100
        hidden, targets, *weights = (
            x.flatten(0, 1) if torch.compiler.is_compiling() else x[scored] for x in parts
        )
        logits = self.lm_head(hidden)
        if weights:
            weight = torch.where(targets == -100, 0.0, weights[0])
            losses = F.cross_entropy(logits.float(), targets, reduction="none")
            total = kwargs.get("num_items_in_batch")
            return (losses * weight).sum() / (weight.sum() if total is None else total)
        return self.loss_function(
            logits=logits,
            labels=None,
            shift_labels=targets,
            vocab_size=self.config.text_config.vocab_size,
            **kwargs,
        )

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save as any model of transformers, with a model card (``README.md``) beside it."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            card = Path(save_directory) / "README.md"
            card.write_text(model_card(self.config), encoding="utf-8")

    def get_molecule_features(self, molecules: MoleculeBatch) -> Tensor:
        """Encode molecules to soft tokens [R,M,b,D]; see `CollamoModel.get_molecule_features`."""
        return self.model.get_molecule_features(molecules)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        selfies_ids: Tensor | None = None,
        atom_features: Tensor | None = None,
        atom_valid: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_features: Tensor | None = None,
        bond_directions: Tensor | None = None,
        hops: Tensor | None = None,
        coordinates: Tensor | None = None,
        has_1d: Tensor | None = None,
        has_2d: Tensor | None = None,
        has_3d: Tensor | None = None,
        molecule_valid: Tensor | None = None,
        encoded_2d: Tensor | None = None,
        encoded_3d: Tensor | None = None,
        **kwargs,
    ) -> CollamoCausalLMOutputWithPast:
        """Predict the next token at every position.

        Molecule tensors as `MoleculeBatch` has them, by name, because `generate` passes on only
        what it finds in this signature; `labels` [R,T] int64, -100 = not scored;
        `label_weights` [R,T] float: of the labels' losses, whose weighted sum is divided by
        `num_items_in_batch`, or by the sum of the weights; None: all weigh 1;
        `logits_to_keep`: number of last positions to compute logits for, 0 = all, or an index.
        With `skip_logits` the loss is computed from the scored positions alone and no logits are
        returned: of a dialogue, one token in six is scored.
        """
        molecules = MoleculeBatch.from_tensors(
            {
                "selfies_ids": selfies_ids,
                "atom_features": atom_features,
                "atom_valid": atom_valid,
                "edge_index": edge_index,
                "edge_features": edge_features,
                "bond_directions": bond_directions,
                "hops": hops,
                "coordinates": coordinates,
                "has_1d": has_1d,
                "has_2d": has_2d,
                "has_3d": has_3d,
                "molecule_valid": molecule_valid,
                "encoded_2d": encoded_2d,
                "encoded_3d": encoded_3d,
            }
        )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            molecules=molecules,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        logits = loss = None
        if labels is not None and (skip_logits or label_weights is not None):
            loss = self._scored_loss(hidden, labels, label_weights, **kwargs)
        if labels is None or not skip_logits:
            keep = logits_to_keep
            logits = self.lm_head(hidden[:, slice(-keep, None) if isinstance(keep, int) else keep])
            if labels is not None and loss is None:
                vocab_size = self.config.text_config.vocab_size
                loss = self.loss_function(
                    logits=logits, labels=labels, vocab_size=vocab_size, **kwargs
                )
        return _output(CollamoCausalLMOutputWithPast, outputs, loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs,
    ) -> dict:
        """As the base class, but molecules are encoded once: they live in the cache afterwards.

        transformers drops only tensors named in a list of its own after the prefill.
        """
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if self._reads_molecules(inputs, bool(is_first_iteration)):
            return inputs
        return {name: x for name, x in inputs.items() if name not in MOLECULE_TENSORS}

    def _reads_molecules(self, inputs: dict[str, Any], first: bool) -> bool:
        """Whether the molecules of these inputs of `forward` are still to be read.

        Not once they are in the cache: of a prompt before, or of the same one, to whose end an
        assistant goes on several times.
        """
        cache, ids, embeds = (inputs.get(x) for x in (CACHE, "input_ids", "inputs_embeds"))
        if cache is None:
            return True
        if not first and ids is not None and ids.shape[1] == 1:
            return False  # the next token of an answer: a GPU is not asked about each
        return not _is_filled(cache) or bool(self.model._placeholders(ids, embeds).any())


def _is_filled(cache: Cache | None) -> bool:
    """Whether tokens are in the cache."""
    return cache is not None and int(cache.get_seq_length()) > 0


def _soft_rows(where: Tensor, real: Tensor, queries: int) -> Tensor:
    """Which row of the soft tokens [R·M·b] each place of `where` takes: a row's in order.

    [R,T] bool, [R,M] bool, b → [R,T] int64; any row where nothing is taken. No size of it depends
    on numbers: nobody waits for a GPU, and a compiled graph goes on.
    """
    number = where.cumsum(1) - 1
    order = (~real).sort(dim=1, stable=True).indices  # real ones first
    place = (number // queries).clamp(0, real.shape[1] - 1)
    first = torch.arange(len(real), device=real.device)[:, None] * real.shape[1]
    return (first + order.gather(1, place)) * queries + number % queries


def _last(real: Tensor, count: Tensor) -> Tensor:
    """[R,M] bool, [R] → [R,M] bool: of each row's real molecules the last so many."""
    return real & (real.flip(1).cumsum(1).flip(1) <= count[:, None])


def _name_of(parent: nn.Module, child: nn.Module) -> str:
    return next(name for name, module in parent.named_modules() if module is child)
