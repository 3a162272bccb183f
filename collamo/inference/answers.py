"""The one place where a model answers: batched, greedy, longest prompts first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from collamo.chem.features import MoleculeFeatures
from collamo.chem.molecule import Molecule
from collamo.data.batch import MODALITIES
from collamo.errors import CollamoError, UsageError

if TYPE_CHECKING:
    from peft import PeftModel

    from collamo.model import CollamoForConditionalGeneration, CollamoProcessor
    from collamo.model.inputs import ModelInputs

Question = tuple[str | Molecule | MoleculeFeatures, str]


@torch.inference_mode()
def answer(
    model: CollamoForConditionalGeneration | PeftModel,
    processor: CollamoProcessor,
    pairs: Sequence[Question],
    *,
    modalities: Sequence[str] = MODALITIES,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    progress: Callable[[int], None] | None = None,
    keep: Callable[[Mapping[int, str]], None] | None = None,
) -> list[str]:
    """Return the model's answer to each (molecule, question), in the order given.

    Greedy decoding, so the same inputs give the same text. Prompts are answered in order of
    length, longest first: a batch wastes little padding and one that does not fit fails at once.

    Parameters
    ----------
    model, processor
        As `collamo.model.load_checkpoint` returns them; the model's train/eval mode is left as it
        was.
    pairs
        (molecule, question): the molecule a SMILES, `Molecule` or `MoleculeFeatures`.
    modalities
        Which of "1d", "2d", "3d" the model may see.
    progress
        Called with the number of answers after every batch.
    keep
        Called with the answers of every batch, by their place in `pairs`.

    Raises
    ------
    UsageError
        For a question that contains `<mol>`, or is longer than the language model can read.
    CollamoError
        Where the model's numbers are NaN or infinite; the message names the molecule.

    Examples
    --------
    >>> pairs = [("CCO", "How many hydroxyl groups does it have?")]
    >>> answer(model, processor, pairs)  # doctest: +SKIP
    ['1']
    """
    for _, question in pairs:
        if processor.mol_token in question:
            raise UsageError(f"the question contains {processor.mol_token}; take it out")
    order = sorted(range(len(pairs)), key=lambda index: _order(*pairs[index]))
    answers: list[str] = [""] * len(pairs)
    with evaluation_mode(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            texts = _generate(
                model, processor, [pairs[i] for i in rows], modalities, max_new_tokens
            )
            batch = dict(zip(rows, texts, strict=True))
            for row, text in batch.items():
                answers[row] = text
            if keep is not None:
                keep(batch)
            if progress is not None:
                progress(len(rows))
    return answers


def _order(molecule: str | Molecule | MoleculeFeatures, question: str) -> tuple[int, str, int]:
    """Sort by question, then atoms: equal questions get answers that end at about one time."""
    atoms = 0 if isinstance(molecule, str) else molecule.num_atoms
    return -len(question), question, -atoms


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block; the model's train/eval mode is then what it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _FiniteLogits(LogitsProcessor):
    """Refuse logits that say nothing: their best token would be the first, and the text empty."""

    def __init__(self, molecules: Sequence[str | Molecule | MoleculeFeatures]):
        self.molecules = molecules

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        finite = scores.max(-1).values.isfinite()
        if finite.all():
            return scores
        molecule = self.molecules[int((~finite).nonzero()[0])]
        name = molecule if isinstance(molecule, str) else molecule.smiles
        raise CollamoError(
            f"molecule '{name}': the model's numbers are NaN or infinite; its weights are damaged, "
            "diverged in training, or are too large for half precision: copy the checkpoint again, "
            "take an earlier one, or open it in float32"
        )


def _generate(
    model: CollamoForConditionalGeneration | PeftModel,
    processor: CollamoProcessor,
    pairs: Sequence[Question],
    modalities: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    inputs = processor(
        text=[processor.prompt(question) for _, question in pairs],
        molecules=[[molecule] for molecule, _ in pairs],
        modalities=tuple(modalities),
    )
    names = [molecule for molecule, _ in pairs]
    return generated(model, processor, inputs, names, max_new_tokens)


@torch.inference_mode()
def generated(
    model: CollamoForConditionalGeneration | PeftModel,
    processor: CollamoProcessor,
    inputs: ModelInputs,
    molecules: Sequence[str | Molecule | MoleculeFeatures],
    max_new_tokens: int,
) -> list[str]:
    """Go on greedily from prompts that the processor has made.

    `molecules` name the rows in errors; CollamoError where the model's numbers are NaN or infinite.
    """
    inputs = inputs.to(model.device)
    tokenizer = processor.tokenizer
    prompt = inputs["input_ids"].shape[1]
    tokens = model.generate(
        **inputs,
        # Not past the last position; the processor has seen to it that at least one is left.
        max_new_tokens=min(max_new_tokens, tokenizer.model_max_length - prompt),
        do_sample=False,
        num_beams=1,
        logits_processor=LogitsProcessorList([_FiniteLogits(molecules)]),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    if tokens.shape[1] < prompt:
        raise CollamoError("generate returned fewer tokens than its prompt holds")
    texts = tokenizer.batch_decode(tokens[:, prompt:], skip_special_tokens=True)
    return [text.strip() for text in texts]
