"""Train a CoLLaMo with trl's SFTTrainer, on the answers of a prepared folder alone.

    python examples/sft_with_trl.py --data demo/data --checkpoint demo/stage1/final --output run

It needs the extra `trl`. The language model and the projector learn, the encoders stay as they are.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
from trl import SFTConfig, SFTTrainer

import collamo  # noqa: F401  # tells transformers' Auto classes about the model
from collamo.data.conversations import Conversation, to_dataset, with_features
from collamo.data.prepared import PreparedData
from collamo.model import CollamoProcessor


def collator(
    processor: CollamoProcessor, data: PreparedData, max_length: int | None = None
) -> Callable[[Sequence[Conversation]], dict[str, torch.Tensor]]:
    """Return a function from rows of `to_dataset` to what the model takes; answers are learned."""
    text = {"padding_side": "right", "truncation": max_length is not None, "max_length": max_length}

    def collate(rows: Sequence[Conversation]) -> dict[str, torch.Tensor]:
        batch = processor.apply_chat_template(
            [with_features(data, row) for row in rows],
            tokenize=True,
            return_assistant_tokens_mask=True,
            processor_kwargs=text,
        )
        answers = batch.pop("assistant_masks") == 1
        return {**batch, "labels": torch.where(answers, batch["input_ids"], -100)}

    return collate


def main(arguments: list[str] | None = None) -> SFTTrainer:
    """Train, save, and return the trainer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder of `collamo prepare`")
    parser.add_argument("--checkpoint", required=True, help="a trained CoLLaMo")
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args(arguments)
    data = PreparedData.open(options.data)
    processor = AutoProcessor.from_pretrained(options.checkpoint)
    model = AutoModelForMultimodalLM.from_pretrained(options.checkpoint, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("graph_encoder" not in name and "conformer_encoder" not in name)
    config = SFTConfig(
        output_dir=options.output,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        learning_rate=1e-4,
        assistant_only_loss=True,  # trl checks that the chat template marks answers
        dataset_kwargs={"skip_prepare_dataset": True},  # the collator makes tokens of messages
        remove_unused_columns=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=torch.cuda.is_available(),
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=to_dataset(data, "train"),
        processing_class=processor,
        data_collator=collator(processor, data),
    )
    trainer.train()
    trainer.save_model(options.output)
    processor.save_pretrained(options.output)
    return trainer


if __name__ == "__main__":
    main()
