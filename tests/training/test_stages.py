"""The three stages run on real molecules: what trains, what stays, what a resume gives."""

import dataclasses
import json
import logging
import math
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from trained import CONFIGS, SAVE, STEPS, trained

from collamo.errors import CollamoError, UsageError
from collamo.model import load_checkpoint
from collamo.model.checksums import CHECKSUMS
from collamo.model.configuration import GinConfig, UniMolConfig
from collamo.model.encoders import GinEncoder, UniMolEncoder
from collamo.training import freezing, stages
from collamo.training.frozen_weights import TRAINED_WEIGHTS
from collamo.training.manifest import MANIFEST, checkpoints, verify_manifest
from collamo.training.recipe import load_recipe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SIZES = {"num_layers": 1, "hidden_size": 16}
ENCODERS = ("selfies_encoder", "graph_encoder", "conformer_encoder")


@pytest.fixture(scope="module")
def run():
    return trained()


def prepared(run):
    from collamo.data.prepared import PreparedData

    return PreparedData.open(run.data)


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed_parts(before, after):
    """The parts of the model in which any tensor (parameter or buffer) differs."""
    assert before.keys() == after.keys()
    return {freezing.part_of(name) for name in before if not torch.equal(before[name], after[name])}


def initial(run, **changes):
    """The weights stage 1 begins with, drawn again with its seed."""
    from transformers import set_seed

    recipe = dataclasses.replace(run.recipe("stage1"), **changes)
    set_seed(recipe.training.get("seed", 42))
    model, _, _ = stages._start(recipe)
    return model


def test_alignment_trains_projector_and_encoders_and_nothing_else(run):
    before, after = initial(run).state_dict(), weights(run.folder / "stage1" / "final")
    before = {name: before[name] for name in after}
    assert changed_parts(before, after) == {"mol_projector", *ENCODERS}


def test_tuning_changes_projector_and_adapted_layers_only(run):
    before, after = (weights(run.folder / s / "final") for s in ("stage1", "stage2"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    language = {name for name in changed if "language_model" in name}
    targets = load_recipe(CONFIGS / "stage2.yaml").lora.targets
    assert {name.split(".")[-2] for name in language} == set(targets)
    assert len(language) == 2 * len(targets)  # the language model has two layers
    assert {freezing.part_of(name) for name in changed - language} == {"mol_projector"}


def test_frozen_batch_norms_keep_their_averages(run):
    """Stage 1 trains the encoders and moves the averages; stage 2 must not."""
    first, second = (weights(run.folder / s / "final") for s in ("stage1", "stage2"))
    averages = [name for name in first if "running_" in name or "num_batches" in name]
    assert averages
    assert all("graph_encoder" in name for name in averages)
    assert all(torch.equal(first[name], second[name]) for name in averages)
    start = initial(run).state_dict()
    assert not any(torch.equal(first[name], start[name]) for name in averages)


@pytest.mark.slow
def test_published_encoders_are_taken_over_and_stay(run, tmp_path):
    """With --unimol and --gin alignment trains the projector and the SELFIES embedding alone."""
    unimol = UniMolEncoder(UniMolConfig(**{**SIZES, "num_heads": 2, "intermediate_size": 16}))
    gin = GinEncoder(GinConfig(**{**SIZES, "num_layers": 2}))
    for name, encoder in (("unimol", unimol), ("gin", gin)):
        torch.save(encoder.state_dict(), tmp_path / f"{name}.pt")
    options = [f"--{name}={tmp_path / name}.pt" for name in ("unimol", "gin")]
    options += ["--train_encoders=false", "--facts_weight=0", "--max_steps=2"]
    recipe = run.recipe("stage1", tmp_path / "out", *options)
    after = weights(stages.train(recipe))
    before = initial(run, unimol=recipe.unimol, gin=recipe.gin).state_dict()
    for part, encoder in (("conformer_encoder", unimol), ("graph_encoder", gin)):
        for name, value in encoder.state_dict().items():
            assert torch.equal(after[f"model.{part}.{name}"], value)
    changed = changed_parts({name: before[name] for name in after}, after)
    assert changed == {"mol_projector", "selfies_encoder"}


@pytest.mark.slow
@pytest.mark.parametrize("encoders", ["false", "true"])
def test_half_precision_trains_in_float32(run, tmp_path, encoders):
    """The frozen language model stays in bfloat16; steps too small for it still arrive."""
    options = ["--dtype=bfloat16", "--attn_implementation=eager", "--facts_weight=0"]
    options += [f"--train_encoders={encoders}", "--max_steps=3", "--bf16=true", "--use_cpu=true"]
    options += ["--learning_rate=1e-5", "--warmup_steps=0"]
    with pytest.raises(UsageError, match=r"training\.bf16"):
        stages.train(run.recipe("stage1", tmp_path / "no", *options[:-5], "--max_steps=3"))
    model, kept = None, stages.save

    def save(trained, processor, folder):
        nonlocal model
        model = trained
        return kept(trained, processor, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "save", save)
        final = stages.train(run.recipe("stage1", tmp_path / "one", *options))
    assert {p.dtype for p in model.model.mol_projector.parameters()} == {torch.float32}
    assert {p.dtype for p in model.model.language_model.parameters()} == {torch.bfloat16}
    assert model.model.language_model.config._attn_implementation == "eager"
    weight = model.model.mol_projector.head[0].weight
    assert not torch.equal(weight, weight.bfloat16().float())
    tune = ["--init_from", str(final), "--max_steps=1", "--bf16=true", "--use_cpu=true"]
    assert stages.train(run.recipe("stage2", tmp_path / "two", *tune)).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tiny_lm", "stage1", "stage2"])
def test_resuming_after_5_of_10_steps_gives_the_same_bits(run, stage, tmp_path):
    """The step to resume at lies in the middle of an epoch, and its neighbours in others."""
    output = tmp_path / stage
    shutil.copytree(run.folder / stage, output)
    shutil.rmtree(output / f"checkpoint-{STEPS}")
    shutil.rmtree(output / "final")
    torch.manual_seed(12345)  # whatever this process drew before must not matter
    final = stages.train(run.recipe(stage, output), resume=True)
    once, resumed = weights(run.folder / stage / "final"), weights(final)
    assert once.keys() == resumed.keys()
    assert [name for name in once if not torch.equal(once[name], resumed[name])] == []
    state = json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    epoch = state["epoch"]
    assert state["global_step"] == STEPS
    if stage != "tiny_lm":
        assert epoch > 2
        assert epoch * SAVE / STEPS % 1 != 0


@pytest.mark.slow
def test_tuning_on_smiles_needs_a_language_model_alone(run, tmp_path):
    """The baseline: LoRA alone trains, the merged model reads SMILES as text and nothing else."""
    options = ["--init_from=null", "--projector_learning_rate=null", "--molecules_as=smiles"]
    options += ["--relation_rates.hop_bias=1", "--relation_rates.radial=1"]
    options += ["--llm", str(run.folder / "tiny_lm" / "final"), "--max_steps=2"]
    final = stages.train(run.recipe("stage2", tmp_path / "tuned", *options))
    assert not (tmp_path / "tuned" / "adapter").exists()  # it would name no base
    model, processor = load_checkpoint(final)
    assert model.config.molecules_as == processor.molecules_as == "smiles"
    batch = processor(processor.prompt("What?"), ["CCO"])
    assert set(batch) == {"input_ids", "attention_mask"}
    before = load_file(run.folder / "tiny_lm" / "final" / "model.safetensors")
    after = weights(final)
    inner = {name: after[name.replace("model.", "model.language_model.", 1)] for name in before}
    changed = {name.split(".")[-2] for name, x in before.items() if not torch.equal(x, inner[name])}
    assert changed == set(run.recipe("stage2").lora.targets)


@pytest.mark.slow
def test_resuming_at_the_end_of_an_epoch_gives_the_same_bits(run, tmp_path):
    molecules = len({e.molecule for e in prepared(run).tasks("train")})
    batch = next(b for b in range(1, molecules) if math.ceil(molecules / b) == SAVE)
    recipe = run.recipe("stage1", tmp_path, "--per_device_train_batch_size", str(batch))
    once = weights(stages.train(recipe))
    state = json.loads((tmp_path / f"checkpoint-{SAVE}" / "trainer_state.json").read_text())
    assert state["epoch"] == 1.0
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    resumed = weights(stages.train(recipe, resume=True))
    assert all(torch.equal(once[name], resumed[name]) for name in once)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_gives_the_same_bits(run, tmp_path):
    """SIGKILL while checkpoints are written one after the other; then a run that is let finish."""
    # A checkpoint after every step, so that most moments lie in the writing of one.
    options = [*run.overrides("stage1", tmp_path), "--save_steps", "1"]
    code = "from collamo.cli import main; main()"
    command = [sys.executable, "-c", code, "train", str(CONFIGS / "stage1.yaml"), *options]
    resumed_from = []
    for _ in range(2):
        before = newest(tmp_path)
        process = subprocess.Popen([*command, "--resume"], stderr=subprocess.DEVNULL)
        while process.poll() is None and newest(tmp_path) == before:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.wait()
        resumed_from.append(newest(tmp_path))
    assert resumed_from[0] > 0
    recipe = run.recipe("stage1", tmp_path, "--save_steps", "1")
    once = weights(run.folder / "stage1" / "final")
    resumed = weights(stages.train(recipe, resume=True))
    differ = [name for name in once if not torch.equal(once[name], resumed[name])]
    assert differ == [], f"killed with checkpoints up to {resumed_from}"


def newest(output):
    """The step of the newest checkpoint, whole or not; 0 without one."""
    return max((int(path.name.rpartition("-")[2]) for path in checkpoints(output)), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["incomplete", "altered"])
def test_a_broken_newest_checkpoint_is_skipped_and_named(run, damage, tmp_path, caplog):
    output = tmp_path / "stage1"
    shutil.copytree(run.folder / "stage1", output)
    newest = output / f"checkpoint-{STEPS}"
    if damage == "incomplete":
        (newest / MANIFEST).unlink()
        (newest / "optimizer.pt").unlink()
    else:
        file = newest / TRAINED_WEIGHTS
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    with caplog.at_level(logging.INFO, "collamo"):
        stages.train(run.recipe("stage1", output), resume=True)
    assert f"skipping {newest}" in caplog.text
    assert f"from {output / f'checkpoint-{SAVE}'}" in caplog.text
    assert verify_manifest(newest) is None  # written anew
    once, again = weights(run.folder / "stage1" / "final"), weights(output / "final")
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_what_a_stage_leaves_is_opened_only_as_it_was_written(run, tmp_path):
    left = ("stage1/final", "stage2/final", "stage2/adapter", f"stage2/checkpoint-{SAVE}")
    for place in left:
        folder = tmp_path / place
        shutil.copytree(run.folder / place, folder)
        load_checkpoint(folder)
        file = next(folder.glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(CollamoError, match=f"'{file}' is damaged"):
            load_checkpoint(folder)
    assert (run.folder / "tiny_lm" / "final" / CHECKSUMS).is_file()


def test_a_used_output_folder_needs_resume(run):
    with pytest.raises(UsageError, match="already holds checkpoints; go on with --resume"):
        stages.train(run.recipe("stage1"))


@pytest.mark.slow
def test_two_trainings_in_one_folder(run, tmp_path):
    code = "import sys; from pathlib import Path; from collamo.training.output import only_one\n"
    code += "with only_one(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    recipe = run.recipe("tiny_lm", tmp_path, "--max_steps", "1")
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="another training is writing to"):
            stages.train(recipe)
        other.kill()
    stages.train(recipe)  # nothing is left of a process that was killed


@pytest.mark.slow
def test_checkpoints_are_sealed_and_old_ones_deleted(run, tmp_path):
    for stage in ("tiny_lm", "stage1", "stage2"):
        for step in (SAVE, STEPS):
            assert verify_manifest(run.folder / stage / f"checkpoint-{step}") is None
    recipe = run.recipe("stage1", tmp_path / "out", "--max_steps", "3", "--save_steps", "1")
    recipe.training["save_total_limit"] = 2
    stages.train(recipe)
    left = sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*"))
    assert left == ["checkpoint-2", "checkpoint-3"]


def test_every_stage_leaves_its_curve_and_log(run):
    for stage in ("tiny_lm", "stage1", "stage2"):
        png = (run.folder / stage / "learning_curve.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        lines = (run.folder / stage / "log.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps[:5] == [2, 4, 6, 8, 10]


def test_training_leaves_the_special_tokens_of_the_language_model_alone(run):
    """Trainer writes the tokenizer's pad, bos and eos into whichever configurations it finds."""

    def special(folder, file, *path):
        values = json.loads((run.folder / folder / "final" / file).read_text())
        for key in path:
            values = values[key]
        tokens = [values[f"{name}_token_id"] for name in ("pad", "bos", "eos")]
        # transformers 5.17 writes the one end of a text as a list.
        return [token[0] if isinstance(token, list) else token for token in tokens]

    expected = special("tiny_lm", "config.json")
    assert expected == [0, 1, 2]
    assert special("tiny_lm", "generation_config.json") == expected
    for stage in ("stage1", "stage2"):
        assert special(stage, "config.json", "text_config") == expected
        assert special(stage, "generation_config.json") == expected


def test_tensorboard_files_are_written(run, tmp_path):
    recipe = run.recipe(
        "tiny_lm", tmp_path / "out", "--max_steps", "2", "--report_to", "tensorboard"
    )
    stages.train(recipe)
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))


def test_validation_loss_is_logged_when_asked_for(run, tmp_path):
    recipe = run.recipe("stage1", tmp_path / "out", "--max_steps", "2", "--eval_strategy", "steps")
    recipe.training["eval_steps"] = 1
    stages.train(recipe)
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert sum("eval_loss" in entry for entry in log) == 2


def test_weights_that_exploded_are_no_checkpoint_to_go_on_from(run, tmp_path):
    output = tmp_path / "out"
    recipe = run.recipe("stage1", output, "--save_steps=1", "--learning_rate=1e30")
    recipe.training["warmup_steps"] = 0
    with pytest.raises(
        CollamoError, match=r"step 1: \S+ holds 1e\+30: training has diver"
    ) as error:
        stages.train(recipe)
    assert error.value.exit_code == 1
    assert "never finished" in verify_manifest(output / "checkpoint-1")
    assert not (output / "final").exists()


def test_the_last_update_is_looked_at_before_the_model_is_written(run, tmp_path):
    options = ["--max_steps=1", "--save_strategy=no", "--learning_rate=1e30", "--warmup_steps=0"]
    with pytest.raises(CollamoError, match=r"step 1: .* training has diverged"):
        stages.train(run.recipe("stage1", tmp_path / "out", *options))
    assert not (tmp_path / "out" / "final").exists()


def test_an_infinite_loss_names_the_molecule_and_keeps_the_last_checkpoint(
    run, tmp_path, monkeypatch
):
    """Of the third step's batch the second molecule has soft tokens that are NaN."""
    batches = []

    def poisoned(*args, **kwargs):
        trainer = make(*args, **kwargs)
        collate = trainer.data_collator

        def collated(items):
            batches.append([item.row for item in items])
            return collate(items)

        def poison(module, inputs, tokens):
            if trainer.state.global_step == 2:
                tokens = tokens.clone()
                tokens[1] = math.nan
            return tokens

        trainer.data_collator = collated
        trainer.model.model.mol_projector.register_forward_hook(poison)
        return trainer

    make = stages.make_trainer
    monkeypatch.setattr(stages, "make_trainer", poisoned)
    output = tmp_path / "out"
    with pytest.raises(CollamoError) as error:
        stages.train(run.recipe("stage1", output, "--save_steps=1"))
    row = batches[2][1]
    assert str(error.value).startswith(
        f"step 3: the loss is NaN or infinite with row {row} of the data; training stopped"
    )
    assert "--allow-changed training.learning_rate" in str(error.value)
    assert [p.name for p in checkpoints(output)] == ["checkpoint-2", "checkpoint-1"]
    assert verify_manifest(output / "checkpoint-2") is None


def test_a_nan_gradient_stops_before_it_reaches_the_weights(run, tmp_path, monkeypatch):
    made = []

    def poisoned(*args, **kwargs):
        trainer = make(*args, **kwargs)
        parameter = trainer.model.model.mol_projector.get_parameter(
            next(n for n, _ in trainer.model.model.mol_projector.named_parameters())
        )

        def poison(grad):
            return grad * float("nan") if trainer.state.global_step == 2 else grad

        parameter.register_hook(poison)
        made.append((trainer, parameter))
        return trainer

    make = stages.make_trainer
    monkeypatch.setattr(stages, "make_trainer", poisoned)
    rows = r"rows \d+(, \d+)+ and \d+ more of the data"  # all of the step: a gradient has no row
    with pytest.raises(CollamoError, match=f"step 3: the gradient is NaN or infinite with {rows}"):
        stages.train(run.recipe("stage1", tmp_path / "out"))
    (_, parameter) = made[0]
    assert parameter.isfinite().all()


def test_the_adapter_and_the_merged_model_are_the_same_model(run):
    from collamo.model import load_checkpoint

    data = prepared(run)
    example = data.tasks("test")[0]
    logits = []
    for folder in ("adapter", "final"):
        model, processor = load_checkpoint(run.folder / "stage2" / folder)
        prompt = processor.prompt(example.question)
        inputs = processor([prompt], [[data.features(example.molecule)]], suffix=[example.answer])
        with torch.no_grad():
            logits.append(model(**inputs).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
