"""Several processes are one training, every stage: `make test-distributed`, some minutes.

Over gloo, on this machine. accelerate shards on accelerators alone; here it is told that the CPU is
one.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain

import pytest
import torch
from ranks import FSDP2, RankError, outcomes, run_ranks, sharded_on_cpu
from safetensors.torch import load_file
from test_processes import NO_DROPOUT, PLAIN, losses, recorded
from trained import CONFIGS, trained

from collamo.model import load_checkpoint
from collamo.training import stages
from collamo.training.manifest import checkpoints, verify_manifest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
STEPS, SAVE, BATCH = 4, 2, 8
OPTIONS = [
    *("--use_cpu=true", f"--max_steps={STEPS}", f"--save_steps={SAVE}", "--logging_steps=1"),
    *PLAIN,
]
STAGES = ["tiny_lm", "stage1", "stage2"]


@pytest.fixture(scope="module")
def run():
    return trained()


@pytest.fixture(scope="module")
def aligned(run, tmp_path_factory):
    """Stage 1 without dropout of modalities, which would differ by process in stage 2."""
    output = tmp_path_factory.mktemp("aligned")
    return stages.train(run.recipe("stage1", output, *OPTIONS, NO_DROPOUT, batch(1)))


def batch(count):
    return f"--per_device_train_batch_size={BATCH // count}"


@pytest.fixture(scope="module")
def recipe(run, aligned):
    """The recipe of a stage for so many processes: the batch of all of them is the same."""

    def make(stage, output, count, *extra):
        own = {"stage1": [NO_DROPOUT], "stage2": ["--init_from", str(aligned)]}
        return run.recipe(stage, output, *OPTIONS, *own.get(stage, ()), batch(count), *extra)

    return make


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """What one process makes of each stage, and the rows it saw."""
    made = {}

    def make(stage):
        if stage not in made:
            output = tmp_path_factory.mktemp("alone") / stage
            (made[stage],) = run_ranks(1, recorded, recipe(stage, output, 1))
        return made[stage]

    return make


def weights(folder):
    return load_file(folder / "model.safetensors")


def check_equal(together, expected):
    torch.testing.assert_close(torch.tensor(losses(together)), torch.tensor(losses(expected)))
    torch.testing.assert_close(weights(together), weights(expected))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_processes_are_one_training(recipe, alone, tmp_path, stage, count):
    """The same losses and weights, and each process its own part of the same batches."""
    results = run_ranks(count, recorded, recipe(stage, tmp_path / "out", count))
    final, (expected, batches) = results[0][0], alone(stage)
    parts = list(zip(*(rows for _, rows in results), strict=True))[:STEPS]
    assert [list(chain(*part)) for part in parts] == batches[:STEPS]
    check_equal(final, expected)
    assert verify_manifest(final.parent / f"checkpoint-{STEPS}") is None


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_sharded_model_is_the_same_training(recipe, alone, tmp_path, stage):
    """Gradients are averaged; on gloo some versions of torch summed them (pytorch 162338)."""
    options = recipe(stage, tmp_path / "out", 2)
    (final, kinds), _ = run_ranks(2, sharded_on_cpu, sharded, options, environment=FSDP2)
    assert kinds == {"DTensor"}
    check_equal(final, alone(stage)[0])
    checkpoint = final.parent / f"checkpoint-{STEPS}"
    assert verify_manifest(checkpoint) is None
    if stage == "stage2":
        size = sum(p.stat().st_size for p in (checkpoint / "pytorch_model_fsdp_0").iterdir())
        assert size < (final / "model.safetensors").stat().st_size
        load_checkpoint(final.parent / "adapter")


def sharded(recipe, **options):
    """Train; return the folder and the types of the trained weights."""
    kinds, fit = set(), stages.StageTrainer.fit

    def fitted(self, checkpoint):
        fit(self, checkpoint)
        kinds.update(type(p.data).__name__ for p in self.model.parameters() if p.requires_grad)

    stages.StageTrainer.fit = fitted
    return stages.train(recipe, **options), kinds


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_another_number_of_processes_goes_on(recipe, alone, tmp_path, strategy):
    """Four begin and two go on, with the batch of before: the weights of one that never stopped."""
    call = (sharded_on_cpu, sharded) if strategy == "fsdp2" else (stages.train,)
    environment = FSDP2 if strategy == "fsdp2" else None
    output = tmp_path / "out"
    run_ranks(4, *call, recipe("stage2", output, 4), environment=environment)
    shutil.rmtree(output / f"checkpoint-{STEPS}")
    shutil.rmtree(output / "final")
    again = recipe("stage2", output, 2)
    for result in outcomes(2, *call, again, resume=True, environment=environment):
        assert result.kind == "UsageError"
        assert "world_size was 4 and is 2" in result.text
    changed = ("world_size", "training.per_device_train_batch_size")
    run_ranks(2, *call, again, resume=True, allow_changed=changed, environment=environment)
    torch.testing.assert_close(weights(output / "final"), weights(alone("stage2")[0]))


def test_a_nan_on_one_process_ends_all(recipe, tmp_path):
    """The one that meets it names the row; the other one hears that it has gone."""
    bad, other = outcomes(2, poisoned, recipe("stage1", tmp_path / "out", 2))
    assert bad.kind == "CollamoError"
    assert "step 3: the loss is NaN or infinite with row" in bad.text
    assert isinstance(other, RankError)
    assert other.kind != "timeout"
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["checkpoint-2"]
    assert verify_manifest(tmp_path / "out" / "checkpoint-2") is None


def poisoned(recipe):
    """Train; in the third step the first process has soft tokens that are NaN."""
    make = stages.make_trainer

    def making(*args, **options):
        trainer = make(*args, **options)

        def poison(module, inputs, tokens):
            bad = trainer.state.global_step == 2 and os.environ["RANK"] == "0"
            return tokens * math.nan if bad else tokens

        trainer.model.model.mol_projector.register_forward_hook(poison)
        return trainer

    stages.make_trainer = making
    return stages.train(recipe)


def test_one_process_killed_and_all_resumed_give_the_same_weights(recipe, alone, tmp_path, run):
    """By torchrun, from the command line: SIGKILL for one of two after the first checkpoint."""
    output = tmp_path / "out"
    options = run.overrides("stage2", output) + OPTIONS + [batch(2), "--init_from"]
    options.append(recipe("stage2", output, 2).init_from)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "collamo", "train", str(CONFIGS / "stage2.yaml"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as first:
        sealed = output / f"checkpoint-{SAVE}" / "manifest.json"
        while first.poll() is None and not sealed.is_file():
            time.sleep(0.05)
        os.kill(children_of(first.pid)[-1], signal.SIGKILL)
        _, errors = first.communicate(timeout=300)
    assert first.returncode != 0, errors
    assert not (output / "final").exists()
    done = subprocess.run([*command, "--resume"], env=environment, timeout=600, check=True, **pipes)
    assert done.stdout.splitlines() == [str(output / "final")]
    torch.testing.assert_close(weights(output / "final"), weights(alone("stage2")[0]))


def children_of(pid):
    text = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in text.split()]


def test_a_used_folder_is_refused_by_every_process(recipe, tmp_path):
    (tmp_path / "out" / "checkpoint-1").mkdir(parents=True)
    for result in outcomes(2, stages.train, recipe("tiny_lm", tmp_path / "out", 2)):
        assert (result.kind, "already holds checkpoints" in result.text) == ("UsageError", True)
