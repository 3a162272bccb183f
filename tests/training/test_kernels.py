"""Training with the kernels is the same training as without them."""

import pytest
import torch
from trained import trained

from collamo.training import stages
from collamo.training.trainer import StageTrainer
from collamo_kernels.testing import assert_accurate

STEPS = 50
OPTIONS = (
    *(f"--max_steps={STEPS}", "--save_strategy=no", "--per_device_train_batch_size=4"),
    *("--learning_rate=5e-4", "--facts_weight=0"),
)


@pytest.fixture
def losses(monkeypatch, tmp_path):
    """``losses(name, *options, nudge=0)`` of every step of stage 1 with the tiny preset.

    `nudge` is a relative change of all first weights that learn: kernels round in the encoders as
    well as in the projector.
    """
    step, start = StageTrainer.training_step, stages._start

    def train(name, *options, nudge=0.0):
        found = []

        def recorded(*args, **kwargs):
            found.append(step(*args, **kwargs))
            return found[-1]

        @torch.no_grad()
        def nudged(recipe):
            model, *rest = start(recipe)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1 + nudge)
            return model, *rest

        recipe = trained().recipe("stage1", tmp_path / name, *OPTIONS, *options)
        recipe.model.clear()  # the preset's own sizes
        with monkeypatch.context() as patch:
            patch.setattr(StageTrainer, "training_step", recorded)
            patch.setattr(stages, "_start", nudged)
            stages.train(recipe)
        return torch.stack(found)

    return train


def test_losses_agree_over_50_steps(losses):
    """Rounding grows from step to step, so the yardstick is training in plain PyTorch that starts
    one rounding away: up to each step ours may be off by twice as much, and two roundings.
    """
    plain = losses("plain", "--kernels=false")
    nudges = torch.finfo(torch.float32).eps * torch.tensor([1, -1])
    others = torch.stack(
        [losses(f"{nudge}", "--kernels=false", nudge=float(nudge)) for nudge in nudges]
    )
    plain, ours = plain.expand_as(others), losses("ours").expand_as(others)
    assert plain.isfinite().all()
    assert plain[0, -10:].mean() < plain[0, :10].mean() - 0.1  # it does learn
    for step in range(1, STEPS + 1):
        assert_accurate(ours[:, :step], others[:, :step], plain[:, :step], name=f"step {step}")
