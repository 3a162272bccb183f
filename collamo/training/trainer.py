"""transformers' Trainer with what it lacks here: an order of the data that can be resumed, frozen
parts that stay in evaluation mode, and a stop on the first NaN."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME

from collamo.errors import (
    CollamoError,
    MissingDependencyError,
    TerminatedError,
    UsageError,
)
from collamo.training.answer_weights import AnswerWeight, label_weights
from collamo.training.callbacks import SealCheckpoints, StartEpoch
from collamo.training.divergence import StopOnNonFinite, check_weights, non_finite_message
from collamo.training.facts_head import FactsHead
from collamo.training.frozen_weights import FrozenWeights
from collamo.training.learning_curve import LearningCurve
from collamo.training.parameter_groups import decaying, own_rates, set_rates
from collamo.training.processes import check_processes
from collamo.training.questions import QuestionDataset
from collamo.training.recipe import Recipe
from collamo.training.sampler import EpochSampler
from collamo.training.settings import trained_settings
from collamo.training.sharding import ReduceUnused, check_zero, prepare_sharding
from collamo.training.termination import StopOnTermination
from collamo.training.text_blocks import TextBlocks
from collamo.training.throughput import Throughput

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
    answer_weight
        How much an answer weighs in the loss, by its tokens; see `Recipe`.
    rates
        Learning rates that differ from that of all, by kind of parameter (`own_rates`).
    rows
        Filled with the rows of the molecules of each step, which `StopOnNonFinite` names.
    """

    model: nn.Module  # Trainer's own annotation admits None, which it refuses

    def __init__(
        self,
        *args,
        frozen: Sequence[nn.Module],
        sampler: EpochSampler,
        scored_logits_only: bool = True,
        facts_weight: float = 0.0,
        answer_weight: AnswerWeight = "length",
        rates: Mapping[str, float] | None = None,
        rows: list[int] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.frozen, self.sampler = list(frozen), sampler
        self.scored_logits_only = scored_logits_only
        self.facts_weight, self.rates = facts_weight, dict(rates or {})
        self.rows = [] if rows is None else rows
        self.answer_weight: AnswerWeight = answer_weight
        self.facts_head = cast("FactsHead", getattr(self.model, "facts_head", None))
        self.throughput = Throughput(self.args)
        self.add_callback(self.throughput)
        self._frozen_weights: FrozenWeights | None = None
        self._facts_losses: list[Tensor] = []
        self._facts_steps = 0
        self._num_parameters: int | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, and say how a sharded model is cut."""
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            prepare_sharding(self.accelerator.state.fsdp_plugin, self.model)
        if self.is_deepspeed_enabled:
            check_zero(self.accelerator.state.deepspeed_plugin.zero_stage)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """Compute a sharded model's loss in the precision that accelerate gives any other."""
        if self.is_fsdp_enabled:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        return self.sampler

    def fit(self, checkpoint: str | None) -> None:
        """Train to the last step, from `checkpoint` if there is one.

        A checkpoint of the last step is loaded, and nothing trained.

        Raises
        ------
        TerminatedError
            After a SIGTERM, with the checkpoint of the last whole step written.
        CollamoError
            Where the loss, a gradient or a weight is NaN or infinite.
        """
        if checkpoint is not None and self._is_complete(checkpoint):
            self._load_from_checkpoint(checkpoint)
            return
        self._frozen_weights = FrozenWeights.of(self.model, checkpoint)
        if self.args.world_size > 1:
            # Dropout, also of modalities, would hide the same places of every device's batch.
            set_seed(self.args.seed + self.args.process_index)
        if self.is_fsdp_enabled:
            self.add_callback(ReduceUnused)
        termination = StopOnTermination()
        self.add_callback(termination)
        try:
            self.train(resume_from_checkpoint=checkpoint)
        finally:
            termination.restore()
            # An error leaves no half-drawn bar in front of its message.
            for callback in self.callback_handler.callbacks:
                bar = getattr(callback, "training_bar", None)
                if bar is not None:
                    bar.close()
        if termination.stopped:
            step = self.state.global_step
            raise TerminatedError(
                f"ended by SIGTERM after step {step}; --resume goes on from there"
            )
        check_weights(self.model.named_parameters(), self.state.global_step)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as `Trainer` does, with frozen weights as a file that all checkpoints have.

        Of a sharded model each part is gathered, and written, by whoever shards it.
        """
        frozen = self._frozen_weights if state_dict is None else None
        super()._save(output_dir, state_dict if frozen is None else frozen.others())
        if frozen is not None and self.args.should_save:
            frozen.join(Path(cast("str", output_dir or self.args.output_dir)))

    def _is_complete(self, checkpoint: str) -> bool:
        last = self.args.max_steps
        if last <= 0:
            batches = len(self.get_train_dataloader())
            updates = -(-batches // self.args.gradient_accumulation_steps)
            last = math.ceil(updates * self.args.num_train_epochs)
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        return state.global_step >= last

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both as `Trainer` does, but learning rates, decay and schedule stay the recipe's.

        Where the recipe is as it was, this changes nothing.
        """
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None  # made before anything is loaded into it
        groups = [dict(group) for group in self.optimizer.param_groups]
        rates = list(getattr(self.lr_scheduler, "base_lrs", ()))
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise UsageError(
                f"{checkpoint}: its optimizer has other groups of weights ({error}); rates that "
                "were one when it was written cannot be parted now, nor joined"
            ) from None
        for group, own in zip(self.optimizer.param_groups, groups, strict=True):
            group.update({key: own[key] for key in own.keys() - {"params", "lr"}})
        if isinstance(self.lr_scheduler, LambdaLR):
            self.lr_scheduler.base_lrs = rates
            factors = [f(self.lr_scheduler.last_epoch) for f in self.lr_scheduler.lr_lambdas]
            for group, rate, factor in zip(
                self.optimizer.param_groups, rates, factors, strict=True
            ):
                group["lr"] = rate * factor

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
        rows = inputs.pop("rows", [])
        if model.training:
            self.rows.extend(rows)
            self.throughput.add(inputs, len(rows))
        if not model.training:
            inputs.pop("facts", None)
        elif "facts" in inputs:
            inputs = {**inputs, "facts_total": self._facts_total}
        if model.training and self.scored_logits_only:
            inputs = {**inputs, "skip_logits": True}
        if self.answer_weight != "length":
            weights = label_weights(inputs["labels"], self.answer_weight)
            inputs = {**inputs, "label_weights": weights}
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if "facts_loss" in outputs:
            self._facts_losses.append(outputs["facts_loss"].detach())
            loss = loss + self.facts_weight * outputs["facts_loss"]
        if model.training and not loss.isfinite().all():
            suspects = _suspects(outputs, rows)
            raise CollamoError(non_finite_message("loss", self.state.global_step + 1, suspects))
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """Return what the loss is divided by: the weights of all labels of a step, on all devices.

        Trainer counts labels, which is right where each weighs 1. The facts are counted beside it.
        """
        if batch_samples and "facts" in batch_samples[0]:
            self._count_facts([batch["facts"] for batch in batch_samples])
        if self.answer_weight == "length" or not batch_samples:
            return super()._get_num_items_in_batch(batch_samples, device)
        weights = [label_weights(batch["labels"], self.answer_weight) for batch in batch_samples]
        total = torch.stack([each[:, 1:].sum() for each in weights]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    def _count_facts(self, facts: list[Tensor]) -> None:
        """Count the known facts of a step, in the batches of all devices.

        A device divides its sum by the count over the number of devices, because the mean of what
        they get is taken.
        """
        total = torch.stack([self.facts_head.count(batch) for batch in facts]).sum()
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, reduction="sum") / self.args.world_size
        self._facts_total = total
        self._facts_steps += 1

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 6 × parameters × tokens, `Trainer`'s estimate, the parameters counted once.

        Counting them at every step took 6 ms of 150.
        """
        if self._num_parameters is None:
            self._num_parameters = sum(p.numel() for p in self.model.parameters())
        return 6 * self._num_parameters * inputs["input_ids"].numel()

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log as `Trainer` does, with the mean of the facts' loss since the last time, and how fast
        the training is."""
        if self._facts_losses and "loss" in logs:
            total = torch.stack(self._facts_losses).sum()
            total = self.accelerator.reduce(total, reduction="mean")
            logs["facts_loss"] = round((total / self._facts_steps).item(), 4)
            self._facts_losses.clear()
            self._facts_steps = 0
        if "loss" in logs:
            self.throughput.report(logs, self.accelerator.gather)
        super().log(logs, *args, **kwargs)


def _suspects(outputs, rows: list[int]) -> list[int]:
    """Return the rows whose molecules have soft tokens that are not finite; all where none has."""
    states = getattr(outputs, "molecule_hidden_states", None)
    if states is None:
        return rows
    finite = states.detach().flatten(1).isfinite().all(1).tolist()
    return [row for row, good in zip(rows, finite, strict=True) if not good] or rows


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
        batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        group_by_length=recipe.group_by_length,
    )
    rows: list[int] = []
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
        answer_weight=recipe.answer_weight,
        rates=own_rates(recipe, args.learning_rate),
        rows=rows,
        callbacks=[
            StopOnNonFinite(rows),
            SealCheckpoints(
                trained_settings(recipe, args), recipe.training.get("save_total_limit")
            ),
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
        arguments = TrainingArguments(**fields)
    except (ValueError, TypeError) as error:
        raise UsageError(f"training: {error}") from None
    except ImportError as error:
        raise MissingDependencyError(f"training: {error}") from None
    check_processes(arguments)
    return arguments


def _has_tensorboard() -> bool:
    if importlib.util.find_spec("tensorboard") is not None:
        return True
    logger.warning("no TensorBoard files: tensorboard is missing; pip install 'collamo[train]'")
    return False
