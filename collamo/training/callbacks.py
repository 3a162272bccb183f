"""What happens around a training step: start an epoch, seal checkpoints."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerCallback

from collamo.training.divergence import check_weights
from collamo.training.manifest import delete_old_checkpoints, write_manifest
from collamo.training.processes import wait_for_all
from collamo.training.sampler import EpochSampler
from collamo.training.settings import Settings, write_settings


class SealCheckpoints(TrainerCallback):
    """Write each checkpoint's settings, and its manifest last; then delete the oldest beyond `keep`
    (None: keep all).

    Trainer's own ``save_total_limit`` would delete the old one before the new one is known to be
    whole. Weights that have diverged are not sealed: a resume passes them over.
    """

    def __init__(self, settings: Settings, keep: int | None = None):
        self.settings, self.keep = settings, keep

    def on_save(self, args, state, control, model=None, **kwargs):
        """Seal ``checkpoint-<step>``; CollamoError where its weights have diverged."""
        check_weights(model.named_parameters(), state.global_step)
        wait_for_all()  # each has written the state of its random numbers
        if not state.is_world_process_zero:
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_settings(self.settings, newest)
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
