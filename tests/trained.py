"""A small CoLLaMo, prepared and trained once for every test that needs one.

Sixty molecules and a handful of steps: enough to see that everything fits together, not to learn.
"""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from collamo.training import stages
from collamo.training.recipe import Recipe, load_recipe
from collamo.training.stages import train
from collamo.training.trainer import StageTrainer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MOLECULES = 60
STEPS, SAVE = 10, 5
# Sizes far below the tiny preset's: the plumbing is tested, not the model.
SMALL = [
    *("--model.selfies_config.hidden_size", "16"),
    *("--model.gin_config", "{num_layers: 2, hidden_size: 16}"),
    *("--model.unimol_config", "{num_layers: 1, hidden_size: 16, num_heads: 2}"),
    *("--model.unimol_config.intermediate_size", "16"),
    *("--model.projector_config", "{num_layers: 1, hidden_size: 16, num_heads: 2, sinks: true}"),
    *("--model.projector_config.intermediate_size", "16"),
    *("--model.projector_config.num_query_tokens", "3"),
]
SMALL_LLAMA = [
    *("--model", "{hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2}"),
    *("--model.num_attention_heads", "2"),
    *("--model.num_key_value_heads", "2"),
    *("--model.vocab_size", "300"),
    *("--block", "32"),
]
STEP_OPTIONS = [
    *("--max_steps", str(STEPS)),
    *("--save_steps", str(SAVE)),
    *("--save_total_limit", "null"),
    *("--logging_steps", "2"),
    *("--per_device_train_batch_size", "16"),
    *("--report_to", "none"),
]


@dataclass(frozen=True)
class Trained:
    """Where everything lies: `data`, `tiny_lm`, `stage1`, `stage2` under one `folder`."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "stage2" / "final"

    def overrides(self, stage: str, output: Path | str | None = None) -> list[str]:
        """Return the command-line options that turn configs/<stage>.yaml into its small version."""
        start = {
            "tiny_lm": SMALL_LLAMA,
            "stage1": ["--llm", str(self.folder / "tiny_lm" / "final"), *SMALL],
            "stage2": ["--init_from", str(self.folder / "stage1" / "final")],
        }[stage]
        # One question per molecule and epoch: about 3 steps of 16 make an epoch.
        tasks = [] if stage == "tiny_lm" else ["--per_molecule", "1"]
        places = ["--data", str(self.data), "--output", str(output or self.folder / stage)]
        return [*places, *start, *tasks, *STEP_OPTIONS]

    def recipe(self, stage: str, output: Path | str | None = None, *extra: str) -> Recipe:
        return load_recipe(CONFIGS / f"{stage}.yaml", [*self.overrides(stage, output), *extra])


@cache
def trained() -> Trained:
    """Prepare and train, once per process; the folder goes when the process ends."""
    from collamo.data.options import PrepareOptions
    from collamo.data.prepare import prepare

    folder = Path(tempfile.mkdtemp(prefix="collamo-trained-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = Trained(folder)
    prepare("nci", run.data, PrepareOptions(limit=MOLECULES), workers=1)
    for stage in ("tiny_lm", "stage1", "stage2"):
        train(run.recipe(stage))
    return run


def at_random(seed):
    """Each number one rounding up or down."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.empty_like(x).bernoulli_(generator=generator).mul_(2).sub_(1)


NUDGES = {"up": lambda x: 1, "down": lambda x: -1, "one": at_random(1), "two": at_random(2)}


def losses_of(recipe: Recipe, nudge=None, **options) -> torch.Tensor:
    """Train by a recipe; the loss of every step.

    `nudge` gives for a tensor by how many roundings its numbers change, of all first weights that
    learn: what is compared to the same training rounds in the encoders as well as in the projector.
    """
    found, step, start = [], StageTrainer.training_step, stages._start

    def recorded(*args, **kwargs):
        found.append(step(*args, **kwargs))
        return found[-1]

    @torch.no_grad()
    def nudged(recipe):
        model, *rest = start(recipe)
        for parameter in model.parameters():
            if parameter.requires_grad and nudge is not None:
                parameter.mul_(1 + torch.finfo(torch.float32).eps * nudge(parameter))
        return model, *rest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTrainer, "training_step", recorded)
        patch.setattr(stages, "_start", nudged)
        train(recipe, **options)
    return torch.stack(found)
