"""A CoLLaMo model around a causal language model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from collamo.errors import MissingDependencyError, UsageError
from collamo.model.checkpoints import load_gin, load_unimol
from collamo.model.configuration import LLAMA2_7B, CollamoConfig, nested
from collamo.model.encoders import UNIMOL_DICTIONARY, GinEncoder, UniMolEncoder
from collamo.model.modeling import CollamoForConditionalGeneration
from collamo.model.processing import (
    CollamoProcessor,
    MoleculeFeatureExtractor,
    SelfiesVocabulary,
)
from collamo.model.tiny import MOL_TOKEN
from collamo.model.weight_files import file_sha256

LanguageModel = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]

# What a model hub takes for a name: "gpt2" or "owner/name". Anything else can only be a folder.
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_MAKE_ONE = (
    "; `collamo train configs/tiny_lm.yaml` makes a small one in demo/tiny_lm/final, or give the "
    "folder of another"
)


def build_model(
    llm: LanguageModel | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    unimol: str | Path | None = None,
    gin: str | Path | None = None,
    selfies_tokens: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> tuple[CollamoForConditionalGeneration, CollamoProcessor]:
    """Build a model and its processor around a causal language model.

    The language model's weights are taken over, and those of published encoders where given; all
    else is freshly drawn. `<mol>` is added to the tokenizer if it is new, and the embeddings are
    widened for it.

    Parameters
    ----------
    llm
        Folder, hub name, or (model, tokenizer) in memory. None takes the preset's: LLaMA-2-7B-chat
        for "llama2-7b".
    overrides
        Configuration fields, see `CollamoConfig.from_overrides`.
    preset
        "tiny" or "llama2-7b"; None takes "llama2-7b" for its own language model and for any as
        wide (4096), else "tiny".
    unimol, gin
        Weights of a published encoder: a file or a folder written by `collamo convert`, see
        `load_unimol` and `load_gin`. Its sizes take the place of the preset's.
    selfies_tokens
        SELFIES vocabulary, such as the manifest of prepared data has it; None takes the selfies
        package's alphabet.
    dtype, attn_implementation
        Passed to transformers for the language model; the dtype holds for the whole model.

    Returns
    -------
    (CollamoForConditionalGeneration, CollamoProcessor)

    Raises
    ------
    MissingDependencyError
        If the language model's files, or an encoder's, are not there and cannot be fetched.
    UsageError
        For unknown overrides, weights that do not fit, or a language model whose logits this model
        does not reproduce.

    Examples
    --------
    >>> model, processor = build_model("runs/tiny_lm/final", preset="tiny")  # doctest: +SKIP
    """
    if llm is None and preset == "tiny":
        raise UsageError(
            "the tiny preset has no language model to download; train one with "
            "`collamo train configs/tiny_lm.yaml` and give its folder"
        )
    encoders = _published_encoders(unimol, gin, overrides)  # before minutes of loading the LLM
    source, tokenizer = (
        llm if isinstance(llm, tuple) else _load_llm(llm or LLAMA2_7B, dtype, attn_implementation)
    )
    attention = source.config._attn_implementation  # a configuration around it chooses anew
    if preset is None:
        preset = "llama2-7b" if source.config.hidden_size >= 4096 else "tiny"
    mol_token_id = _add_mol_token(source, tokenizer)
    _limit_length(source, tokenizer)
    config = CollamoConfig.from_overrides(preset, overrides, text_config=source.config)
    vocabulary = SelfiesVocabulary(selfies_tokens)
    config.selfies_config.vocab_size = len(vocabulary)
    for part, encoder in encoders.items():
        setattr(config, part, encoder.config)
    config.sources = _sources(llm or LLAMA2_7B, source, unimol, gin)
    config.mol_token_id = mol_token_id
    head = source.get_output_embeddings()
    config.lm_head_bias = head.bias is not None
    model = CollamoForConditionalGeneration(config).to(source.dtype)
    model.model.language_model = source.base_model
    source.base_model.set_attn_implementation(attention)
    for encoder in encoders.values():
        name = "conformer_encoder" if isinstance(encoder, UniMolEncoder) else "graph_encoder"
        setattr(model.model, name, encoder.to(source.dtype))
    model.lm_head = head
    model.tie_weights()
    model.generation_config = _generation_config(source, tokenizer, mol_token_id)
    _check_same_logits(model, source)
    processor = CollamoProcessor(
        MoleculeFeatureExtractor(vocabulary.tokens),
        tokenizer,
        num_query_tokens=config.projector_config.num_query_tokens,
    )
    return model.eval(), processor


def _published_encoders(
    unimol: str | Path | None, gin: str | Path | None, overrides: Mapping[str, Any] | None
) -> dict[str, UniMolEncoder | GinEncoder]:
    """Return the encoders whose weights are given, by their part of the configuration."""
    fields = nested(overrides or {})
    encoders = {}
    if unimol is not None:
        encoder = load_unimol(unimol, **fields.get("unimol_config", {}))
        if encoder.config.vocab_size != len(UNIMOL_DICTIONARY):
            raise UsageError(
                f"'{unimol}' has {encoder.config.vocab_size} tokens; the model reads molecules "
                f"with the {len(UNIMOL_DICTIONARY)} of Uni-Mol's own dictionary"
            )
        encoders["unimol_config"] = encoder
    if gin is not None:
        encoder = load_gin(gin, **fields.get("gin_config", {}))
        if encoder.config.flavour != "ogb":
            raise UsageError(
                f"'{gin}' is a GIN of pretrain-gnns, which reads bond directions that prepared "
                "data does not have; the model needs an OGB-style one, such as MoleculeSTM's"
            )
        encoders["gin_config"] = encoder
    return encoders


def _sources(llm, source: PreTrainedModel, unimol, gin) -> dict[str, dict[str, str]]:
    """Return where weights came from: the language model's name, the encoders' files and hashes."""
    sources = {"llm": {"name": source.config.name_or_path if isinstance(llm, tuple) else str(llm)}}
    for part, path in (("unimol", unimol), ("gin", gin)):
        if path is not None:
            file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
            sources[part] = {"file": str(path), "sha256": file_sha256(file)}
    return sources


def _load_llm(
    name: str | Path, dtype: torch.dtype | None, attn_implementation: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM from safetensors (a pickle runs code when opened) and its tokenizer."""
    _check_folder(name)
    options = {"use_safetensors": True, "dtype": dtype, "attn_implementation": attn_implementation}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
        return AutoModelForCausalLM.from_pretrained(str(name), **options), tokenizer
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        # One word, or two with a slash, may be a folder as well: say that it was looked for.
        here = "" if Path(name).is_dir() else "there is no such folder, and "
        raise MissingDependencyError(
            f"language model '{name}' cannot be loaded: {here}{reason}; give a folder with its "
            "config, safetensors weights and tokenizer, or download it where there is a network"
        ) from error


def _check_folder(name: str | Path) -> None:
    """Refuse a folder that is not there, or that is no model, in words about folders."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            within = folder / "final"
            hint = f"; did you mean '{within}'?" if (within / "config.json").is_file() else ""
            raise MissingDependencyError(
                f"language model folder '{name}' has no config.json{hint or _MAKE_ONE}"
            )
    elif isinstance(name, Path) or not _HUB_NAME.fullmatch(name):
        raise MissingDependencyError(f"language model folder '{name}' does not exist{_MAKE_ONE}")


def _add_mol_token(source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of `<mol>`, added if new; the embeddings then have a row for it."""
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [MOL_TOKEN]}, replace_extra_special_tokens=False
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = source.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        source.resize_token_embeddings(len(tokenizer), mean_resizing=rows > 1)
    return tokenizer.convert_tokens_to_ids(MOL_TOKEN)


def _limit_length(source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer, and whatever is saved with it, know how many positions there are.

    Tokenizers say anything here: LLaMA-2's 10³⁰, others less than their model can do.
    """
    positions = getattr(source.config, "max_position_embeddings", None)
    if positions is not None:
        tokenizer.model_max_length = positions


def _generation_config(source, tokenizer, mol_token_id: int):
    """Take over the language model's settings; `<mol>` is an input, never an answer."""
    generation = source.generation_config
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
    generation.suppress_tokens = [mol_token_id]
    return generation


@torch.no_grad()
def _check_same_logits(model: CollamoForConditionalGeneration, source: PreTrainedModel) -> None:
    """Refuse a language model that does more after its last layer than a linear map.

    Logit soft-capping or scaling would be lost without a word; four tokens show it.
    """
    rows = source.get_input_embeddings().num_embeddings
    device = source.get_input_embeddings().weight.device
    ids = torch.arange(4, device=device)[None] % rows
    ids = torch.where(ids == model.config.mol_token_id, 0, ids)
    training = source.training
    source.eval(), model.eval()
    ours, theirs = model(input_ids=ids).logits, source(input_ids=ids).logits
    source.train(training)
    if not torch.equal(ours, theirs):
        raise UsageError(
            f"{type(source).__name__} does not compute its logits as a linear map of its last "
            "hidden state; choose a language model without logit scaling or capping"
        )
