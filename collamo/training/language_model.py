"""Stage `language_model`: a small LLaMA and its tokenizer, on the text of prepared molecules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from collamo.data.prepared import PreparedData
from collamo.errors import UsageError, suggest
from collamo.model import tiny_llama_config, train_tokenizer
from collamo.model.checksums import write_checksums
from collamo.training.freezing import assert_trained
from collamo.training.output import save
from collamo.training.processes import is_first, wait_for_all
from collamo.training.recipe import Recipe
from collamo.training.text_blocks import (
    Document,
    TextBlocks,
    dialogue_documents,
    dialogues,
    plain_documents,
    stack,
)
from collamo.training.trainer import data_seed, evaluates, make_trainer, training_arguments


def train_language_model(recipe: Recipe, output: Path, checkpoint: str | None) -> Path:
    """Train it, write it to ``final`` and return that folder."""
    data = PreparedData.open(recipe.data)
    model, tokenizer = tiny_language_model(list(data.text("train")), recipe.model)
    seed = data_seed(training_arguments(recipe))

    def blocks(split: str) -> TextBlocks:
        documents = corpus(data, split, tokenizer, recipe.dialogues, seed)
        return TextBlocks(documents, block=recipe.block, seed=seed)

    trainer = make_trainer(
        recipe,
        model,
        tokenizer,
        train=blocks("train"),
        validation=blocks("validation") if evaluates(recipe) else None,
        collator=stack,
    )
    assert_trained(model, {name for name, _ in model.named_parameters()}, recipe.stage)
    trainer.fit(checkpoint)
    final = save(model, tokenizer, output / "final")
    if is_first():
        write_checksums(final)
    wait_for_all()
    return final


def corpus(
    data: PreparedData,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    per_molecule: int,
    seed: int,
) -> list[Document]:
    """Return the text of a split: captions as they stand, the other questions inside dialogues.

    Without dialogues every question with its answer is a line of plain text.
    """
    if not per_molecule:
        return plain_documents(data.text(split), tokenizer)
    tasks = list(data.tasks(split))
    captions = [f"{e.question} {e.answer}" for e in tasks if e.task == "caption"]
    questions = (e for e in tasks if e.task != "caption")
    chats = dialogues(questions, per_molecule=per_molecule, seed=seed)
    return [*plain_documents(captions, tokenizer), *dialogue_documents(chats, tokenizer)]


def tiny_language_model(
    texts: Sequence[str], overrides: Mapping[str, Any]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Return an untrained small LLaMA and the tokenizer trained on `texts`.

    `overrides` are fields of LlamaConfig and ``vocab_size``, the upper limit of the tokenizer's.
    """
    known = {field.name for field in dataclasses.fields(LlamaConfig)}
    for key in overrides:
        if key not in known:  # LlamaConfig itself takes any key without a word
            raise UsageError(f"unknown key 'model.{key}'{suggest(key, known)}")
    sizes = dict(overrides)
    limit = {"vocab_size": sizes.pop("vocab_size")} if "vocab_size" in sizes else {}
    tokenizer = train_tokenizer(texts, **limit)
    try:
        config = tiny_llama_config(len(tokenizer), **sizes)
    except (ValueError, TypeError) as error:
        raise UsageError(f"model: {' '.join(str(error).split())}") from None
    return LlamaForCausalLM(config), tokenizer
