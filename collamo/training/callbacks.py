"""What happens around a training step: stop on NaN, start an epoch, seal checkpoints."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from transformers import TrainerCallback

from collamo.errors import CollamoError
from collamo.training.manifest import delete_old_checkpoints, write_manifest
from collamo.training.sampler import EpochSampler

logger = logging.getLogger(__name__)


class StopOnNonFinite(TrainerCallback):
    """Stop before the first step whose gradient is NaN or infinite reaches the weights.

    transformers by default logs such a loss as 0.0 and trains on. The last good checkpoint stays.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Look the trained parameters up once: walking through the modules took 4 ms a step."""
        self.trained = [p for p in model.parameters() if p.requires_grad]

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Raise CollamoError naming the step.

        Clipping comes first and spreads a NaN over all gradients: which one began cannot be seen.
        """
        grads = [p.grad for p in self.trained if p.grad is not None]
        if grads and not torch.nn.utils.get_total_norm(grads).isfinite():
            raise CollamoError(non_finite_message("gradient", state.global_step + 1))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Raise CollamoError where a logged loss is NaN or infinite (an evaluation's, say)."""
        for name, value in (logs or {}).items():
            if name.endswith("loss") and not math.isfinite(value):
                raise CollamoError(non_finite_message(name, state.global_step))


def non_finite_message(what: str, step: int) -> str:
    """Return the one line a user reads when training diverged."""
    return (
        f"step {step}: the {what} is NaN or infinite; training stopped, the last good checkpoint "
        "is kept; lower training.learning_rate or look at that batch, then --resume"
    )


class SealCheckpoints(TrainerCallback):
    """Write each checkpoint's manifest last, then delete the oldest beyond `keep` (None: keep all).

    Trainer's own ``save_total_limit`` would delete the old one before the new one is known to be
    whole.
    """

    def __init__(self, keep: int | None = None):
        self.keep = keep

    def on_save(self, args, state, control, **kwargs):
        """Seal ``checkpoint-<step>``."""
        if not state.is_world_process_zero:
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_manifest(newest)
        delete_old_checkpoints(newest, self.keep, state.best_model_checkpoint)


class StartEpoch(TrainerCallback):
    """Tell the sampler which pass over the data begins; after a resume, that of the interrupted
    step."""

    def __init__(self, sampler: EpochSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Set the sampler's epoch."""
        # state.epoch is a whole number at the end of a pass up to the rounding of step / steps.
        self.sampler.epoch = int((state.epoch or 0.0) + 1e-6)
