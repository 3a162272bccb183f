"""What each setting of configs/smollm2/stage2.yaml gives: a step's CPU time, undone one by one.

    python benchmarks/smollm2.py data/pubchem     # a folder of `collamo prepare`; one thread

Forward and backward pass of one batch of 8 dialogues of middle length, the least of three.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from transformers.utils import logging

from collamo.data.prepared import PreparedData
from collamo.model import build_model
from collamo.model.modeling import MOLECULE_PARTS
from collamo.training.lora import add_lora
from collamo.training.questions import QuestionCollator, QuestionDataset
from collamo.training.recipe import LoraRecipe
from collamo.training.sampler import EpochSampler

BATCH = 8
TASKS = ("caption", "iupac_name", "measured")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@dataclass(frozen=True)
class Settings:
    """Those of the recipe."""

    dtype: torch.dtype = torch.bfloat16
    attention: str = "eager"
    soft_tokens: int = 8
    dropout: float = 0.0
    scored_logits_only: bool = True
    system_message: bool = False


UNDONE = {
    "the recipe": Settings(),
    "float32": Settings(dtype=torch.float32),
    "sdpa": Settings(attention="sdpa"),
    "32 soft tokens": Settings(soft_tokens=32),
    "LoRA dropout 0.05": Settings(dropout=0.05),
    "logits of every token": Settings(scored_logits_only=False),
    "SmolLM2's own system message": Settings(system_message=True),
    "float32 and sdpa": replace(Settings(), dtype=torch.float32, attention="sdpa"),
}


def questions(data: PreparedData) -> QuestionDataset:
    """Return the dialogues of the recipe."""
    options = {"names": TASKS, "per_molecule": 4, "longest_answer": 300, "seed": 0}
    return QuestionDataset(data, "train", **options)


def seconds(llm: str, data: PreparedData, settings: Settings) -> tuple[float, int]:
    """Return the processor time of a step, and how many tokens its batch has."""
    torch.manual_seed(0)
    overrides = {"projector_config.num_query_tokens": settings.soft_tokens}
    model, processor = build_model(
        llm,
        overrides,
        preset="tiny",
        selfies_tokens=data.manifest.selfies_vocabulary,
        dtype=settings.dtype,
        attn_implementation=settings.attention,
    )
    if settings.system_message:
        start = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        processor.chat_template = f"{{{{- {start!r} -}}}}" + processor.chat_template
    lora = LoraRecipe(rank=16, alpha=32, dropout=settings.dropout, targets=TARGETS)
    model = add_lora(model, lora)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in MOLECULE_PARTS:
            module.float()
    dialogues = questions(data)
    order = sorted(range(len(dialogues)), key=dialogues.length)
    middle = order[len(order) // 2 :][:BATCH]
    batch = QuestionCollator(processor)([dialogues[i] for i in middle])
    model.train()

    def step() -> float:
        begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.dtype == torch.bfloat16):
            loss = model(**batch, skip_logits=settings.scored_logits_only).loss
        loss.backward()
        return time.process_time() - begin

    step()
    return min(step() for _ in range(3)), batch["input_ids"].numel()


def padding(data: PreparedData, grouped: bool) -> float:
    """Return padded over real length of an epoch, in the sampler's estimate of a length."""
    dialogues = questions(data)
    order = EpochSampler(dialogues, seed=0, batch_size=BATCH, group_by_length=grouped)
    lengths = [dialogues.length(i) for i in order]
    batches = [lengths[i : i + BATCH] for i in range(0, len(lengths), BATCH)]
    return sum(len(b) * max(b) for b in batches) / sum(lengths)


def main() -> None:
    """Print a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--llm", default="smollm2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    data = PreparedData.open(options.data)
    base = None
    for name, settings in UNDONE.items():
        took, tokens = seconds(options.llm, data, settings)
        base = base or took
        print(f"{name:32} {took:6.2f} s  {tokens:5} tokens  {took / base:5.2f}×", flush=True)
    for grouped in (True, False):
        words = "grouped by length" if grouped else "in random order"
        print(f"padded length, {words}: {padding(data, grouped):.2f} × the real one")


if __name__ == "__main__":
    main()
