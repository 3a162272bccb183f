"""A resume goes on with the settings of its checkpoint, or says which are others."""

import dataclasses
import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from trained import SAVE, STEPS, trained

from collamo.errors import CollamoError, UsageError
from collamo.training import stages
from collamo.training.frozen_weights import TRAINED_WEIGHTS
from collamo.training.manifest import write_manifest
from collamo.training.settings import SETTINGS, check_settings, trained_settings
from collamo.training.trainer import training_arguments


@pytest.fixture
def begun(tmp_path):
    """A stage 1 of which half the steps are done."""
    output = tmp_path / "stage1"
    shutil.copytree(trained().folder / "stage1", output)
    shutil.rmtree(output / f"checkpoint-{STEPS}")
    shutil.rmtree(output / "final")
    return output


def settings_of(*options):
    recipe = trained().recipe("stage1", None, *options)
    return trained_settings(recipe, training_arguments(recipe))


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--learning_rate=1e-4", "training.learning_rate"),
        ("--relation_rates.hop_bias=2", "relation_rates.hop_bias"),
        ("--seed=7", "training.seed"),
        ("--per_device_train_batch_size=3", "training.per_device_train_batch_size"),
        ("--gradient_accumulation_steps=2", "training.gradient_accumulation_steps"),
        ("--max_steps=20", "training.max_steps"),
        ("--lr_scheduler_type=linear", "training.lr_scheduler_type"),
        ("--tasks.per_molecule=2", "tasks.per_molecule"),
        ("--facts_weight=0", "facts_weight"),
        ("--model.projector_config.num_query_tokens=4", "model.projector_config.num_query_tokens"),
    ],
)
def test_a_changed_setting_is_refused_by_name(begun, option, name):
    checkpoint, changed = begun / f"checkpoint-{SAVE}", settings_of(option)
    with pytest.raises(UsageError, match=rf": {name} was .* and is .* --allow-changed {name}$"):
        check_settings(changed, checkpoint)
    check_settings(changed, checkpoint, allowed=[name])


@pytest.mark.parametrize(
    "option",
    [
        *("--logging_steps=1", "--save_steps=1", "--save_total_limit=1", "--report_to=tensorboard"),
        *("--eval_strategy=epoch", "--per_device_eval_batch_size=2", "--dataloader_num_workers=2"),
        *("--disable_tqdm=true", "--output=elsewhere"),
    ],
)
def test_what_no_weight_depends_on_may_change(begun, option):
    check_settings(settings_of(option), begun / f"checkpoint-{SAVE}")


def test_data_are_told_apart_by_their_bytes(begun, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained().data, moved)
    check_settings(settings_of(f"--data={moved}"), begun / f"checkpoint-{SAVE}")
    (moved / "manifest.json").write_text((moved / "manifest.json").read_text() + "\n")
    with pytest.raises(UsageError, match=r": data was .*--allow-changed data$"):
        check_settings(settings_of(f"--data={moved}"), begun / f"checkpoint-{SAVE}")


def test_the_number_of_processes_counts(begun):
    with pytest.raises(UsageError, match="world_size was 1 and is 2"):
        check_settings({**settings_of(), "world_size": 2}, begun / f"checkpoint-{SAVE}")


def test_an_unknown_setting_is_named(begun):
    with pytest.raises(UsageError, match=r"'training\.learning_rat' \(did you mean 'training\.lea"):
        check_settings(
            settings_of(), begun / f"checkpoint-{SAVE}", allowed=["training.learning_rat"]
        )


def test_a_checkpoint_whose_settings_are_unknown_is_named(begun):
    (begun / f"checkpoint-{SAVE}" / SETTINGS).write_text("[")
    with pytest.raises(CollamoError, match=rf"{SETTINGS}' cannot be read"):
        check_settings(settings_of(), begun / f"checkpoint-{SAVE}")


def test_weights_alone_are_nothing_to_go_on_from(begun):
    checkpoint = begun / f"checkpoint-{SAVE}"
    (checkpoint / "optimizer.pt").unlink()
    write_manifest(checkpoint)
    with pytest.raises(UsageError, match="without their optimizer"):
        stages.train(trained().recipe("stage1", begun), resume=True)


@pytest.mark.slow
def test_a_changed_learning_rate_holds_from_there_on(begun):
    """With a rate of 0 nothing moves any more, whatever the checkpoint's optimizer remembers."""
    rates = ["training.learning_rate", "training.warmup_steps"]
    recipe = trained().recipe("stage1", begun, "--learning_rate=0", "--warmup_steps=0")
    stages.train(recipe, resume=True, allow_changed=rates)
    before, after = (
        load_file(begun / f"checkpoint-{step}" / TRAINED_WEIGHTS) for step in (SAVE, STEPS)
    )
    learned = [name for name in before if "running_" not in name and "num_batches" not in name]
    assert [name for name in learned if not torch.equal(before[name], after[name])] == []
    written = json.loads((begun / f"checkpoint-{STEPS}" / SETTINGS).read_text())
    assert written["training.learning_rate"] == 0  # what the next resume is held to


@pytest.mark.slow
def test_resuming_a_finished_training_trains_nothing(tmp_path, caplog):
    run = trained()
    for stage, last in (("tiny_lm", "max_steps"), ("stage1", "max_steps"), ("stage2", "epochs")):
        output = tmp_path / stage
        shutil.copytree(run.folder / stage, output)
        shutil.rmtree(output / "final")
        recipe = run.recipe(stage, output)
        allowed = []
        if last == "epochs":  # as many as those steps have begun
            epoch = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
            rest = {key: x for key, x in recipe.training.items() if key != "max_steps"}
            rest["num_train_epochs"] = epoch["epoch"] - 0.01
            recipe = dataclasses.replace(recipe, training=rest)
            allowed = ["training.max_steps", "training.num_train_epochs"]
        files = [path for path in output.glob("checkpoint-*/**/*") if path.is_file()]
        before = [path.stat().st_mtime_ns for path in files]
        with caplog.at_level(logging.INFO, "collamo"):
            final = stages.train(recipe, resume=True, allow_changed=allowed)
        assert f"from {output / f'checkpoint-{STEPS}'}" in caplog.text
        assert [path.stat().st_mtime_ns for path in files] == before
        assert len(list(output.glob("checkpoint-*"))) == STEPS // SAVE
        once, again = (
            load_file(folder / "model.safetensors")
            for folder in (run.folder / stage / "final", final)
        )
        assert [name for name in once if not torch.equal(once[name], again[name])] == []
