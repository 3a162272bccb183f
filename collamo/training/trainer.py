"""transformers' Trainer with what it lacks here: an order of the data that can be resumed, frozen
parts that stay in evaluation mode, and a stop on the first NaN."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Trainer,
    TrainingArguments,
)

from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.training.callbacks import (
    SealCheckpoints,
    StartEpoch,
    StopOnNonFinite,
    non_finite_message,
)
from collamo.training.learning_curve import LearningCurve
from collamo.training.parameter_groups import decaying, own_rates, set_rates
from collamo.training.questions import QuestionDataset
from collamo.training.recipe import Recipe
from collamo.training.sampler import EpochSampler
from collamo.training.text_blocks import TextBlocks

logger = logging.getLogger(__name__)


class StageTrainer(Trainer):
    """Trainer of one stage.

    Parameters
    ----------
    frozen
        Modules nothing of which is trained. They run in evaluation mode although `Trainer` puts the
        whole model in training mode at every step: a frozen batch norm must not go on averaging.
    sampler
        Order of the training items, a function of (seed, epoch) alone.
    scored_logits_only
        Whether the model can leave out the logits of what is not scored; see its `forward`.
    facts_weight
        Weight of the loss of ``model.facts_head``, logged as ``facts_loss``; 0 where there is none.
    rates
        Learning rates that differ from that of all, by kind of parameter (`own_rates`).
    """

    model: nn.Module  # Trainer's own annotation admits None, which it refuses

    def __init__(
        self,
        *args,
        frozen: Sequence[nn.Module],
        sampler: EpochSampler,
        scored_logits_only: bool = True,
        facts_weight: float = 0.0,
        rates: Mapping[str, float] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.frozen, self.sampler = list(frozen), sampler
        self.scored_logits_only = scored_logits_only
        self.facts_weight, self.rates = facts_weight, dict(rates or {})
        self._facts_losses: list[Tensor] = []
        self._num_parameters: int | None = None

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        return self.sampler

    def train(self, *args, **kwargs):
        """Train as `Trainer` does; an error leaves no half-drawn bar in front of its message."""
        try:
            return super().train(*args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                bar = getattr(callback, "training_bar", None)
                if bar is not None:
                    bar.close()

    def create_optimizer(self, *args, **kwargs):
        """Build Trainer's optimizer, with groups for what has a learning rate of its own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh:
            set_rates(optimizer, self.model, self.rates)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return what decays: Trainer's choice (no norms, no biases) without Φ and sinks."""
        return decaying(super().get_decay_parameter_names(model))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss of one batch; CollamoError where it is NaN or infinite in training."""
        for module in self.frozen:
            module.eval()
        facts = inputs.pop("facts", None)
        if model.training and self.scored_logits_only:
            inputs = {**inputs, "skip_logits": True}
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if facts is not None and model.training:
            loss = loss + self._facts_loss(model, outputs, facts, num_items_in_batch)
        if model.training and not loss.isfinite().all():
            raise CollamoError(non_finite_message("loss", self.state.global_step + 1))
        return (loss, outputs) if return_outputs else loss

    def _facts_loss(self, model, outputs, facts: Tensor, num_items_in_batch) -> Tensor:
        head = self.accelerator.unwrap_model(model).facts_head
        loss = head(outputs.molecule_hidden_states, facts)
        self._facts_losses.append(loss.detach())
        # Trainer divides by the accumulated batches only where it was not told their tokens.
        batches = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
        return self.facts_weight * loss / batches

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 6 × parameters × tokens, `Trainer`'s estimate, the parameters counted once.

        Counting them at every step took 6 ms of 150.
        """
        if self._num_parameters is None:
            self._num_parameters = sum(p.numel() for p in self.model.parameters())
        return 6 * self._num_parameters * inputs["input_ids"].numel()

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log as `Trainer` does, with the mean of the facts' loss since the last time."""
        if self._facts_losses and "loss" in logs:
            logs["facts_loss"] = round(torch.stack(self._facts_losses).mean().item(), 4)
            self._facts_losses.clear()
        super().log(logs, *args, **kwargs)


def make_trainer(
    recipe: Recipe,
    model: nn.Module,
    processor: PreTrainedTokenizerBase | ProcessorMixin,
    *,
    train: QuestionDataset | TextBlocks,
    validation: QuestionDataset | TextBlocks | None,
    collator: Callable[[list[Any]], dict[str, Tensor]],
    frozen: Sequence[nn.Module] = (),
) -> StageTrainer:
    """Return the trainer of `recipe` with every callback in place."""
    args = training_arguments(recipe)
    sampler = EpochSampler(
        train,
        seed=data_seed(args),
        batch_size=args.train_batch_size * args.gradient_accumulation_steps,
        group_by_length=recipe.group_by_length,
    )
    return StageTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collator,
        processing_class=processor,
        frozen=frozen,
        sampler=sampler,
        scored_logits_only=recipe.stage != "language_model",
        facts_weight=recipe.facts_weight,
        rates=own_rates(recipe, args.learning_rate),
        callbacks=[
            StopOnNonFinite(),
            SealCheckpoints(recipe.training.get("save_total_limit")),
            StartEpoch(sampler),
            LearningCurve(),
        ],
    )


def evaluates(recipe: Recipe) -> bool:
    """Return whether the validation split is looked at while training."""
    return recipe.training.get("eval_strategy", "no") != "no"


def data_seed(args: TrainingArguments) -> int:
    """Return the seed of the order and choice of the data."""
    return args.seed if args.data_seed is None else args.data_seed


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Return the TrainingArguments of `recipe`: its fields plus what this library needs."""
    fields = {
        "report_to": "tensorboard" if _has_tensorboard() else "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        **recipe.training,
        "output_dir": recipe.output,
        "remove_unused_columns": False,  # our items are tuples of molecules and text
        "logging_nan_inf_filter": False,  # by default a NaN loss is logged as 0
        "label_names": ["labels"],  # a PEFT model hides the signature they are read from
        "save_total_limit": None,  # SealCheckpoints deletes, once the newer one verifies
    }
    try:
        return TrainingArguments(**fields)
    except (ValueError, TypeError) as error:
        raise UsageError(f"training: {error}") from None
    except ImportError as error:
        raise MissingDependencyError(f"training: {error}") from None


def _has_tensorboard() -> bool:
    if importlib.util.find_spec("tensorboard") is not None:
        return True
    logger.warning("no TensorBoard files: tensorboard is missing; pip install 'collamo[train]'")
    return False
