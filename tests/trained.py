"""A small CoLLaMo, prepared and trained once for every test that needs one.

Sixty molecules and a handful of steps: enough to see that everything fits together, not to learn.
"""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from collamo.training.recipe import Recipe, load_recipe
from collamo.training.stages import train

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
