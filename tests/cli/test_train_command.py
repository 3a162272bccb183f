"""`collamo train` on good and bad input: exit code, one clear line, nothing lost."""

import pytest
from command_line import assert_fails
from trained import CONFIGS, SMALL_LLAMA, STEP_OPTIONS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_train_from_the_command_line(collamo, run, tmp_path):
    out = tmp_path / "lm"
    options = [*SMALL_LLAMA, *STEP_OPTIONS, "--max_steps", "2", "--data", run.data]
    code, text, err = collamo("train", CONFIGS / "tiny_lm.yaml", "--output", out, *options)
    assert code == 0, err
    assert text == f"{out}/final\n"  # stdout is for data
    assert (out / "final" / "model.safetensors").is_file()
    assert (out / "checkpoint-2" / "manifest.json").is_file()
    again = ["train", CONFIGS / "tiny_lm.yaml", "--output", out, *options, "--max_steps", "5"]
    longer = ["--allow-changed", "training.max_steps"]
    assert_fails(collamo(*again, "--resume"), 2, "training.max_steps was 2 and is 5", *longer)
    assert_fails(collamo(*again, *longer), 2, "add --resume")
    assert collamo(*again, "--resume", *longer)[0] == 0
    assert (out / "checkpoint-5" / "manifest.json").is_file()
    code, _, err = collamo("train", CONFIGS / "tiny_lm.yaml", "--output", out, *options)
    assert code == 2
    assert "already holds checkpoints; go on with --resume" in err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--trian_encoders", "true"], "did you mean 'train_encoders'?"),
        (["--training.learning_rat", "1"], "did you mean 'training.learning_rate'?"),
        (["--max_steps", "many"], "expected a whole number"),
        (["--max_steps"], "--max_steps needs a value"),
        (["--data", "nowhere"], "nowhere"),
        (["--stage", "dream"], "'dream' is none of"),
    ],
)
def test_a_wrong_override_is_exit_2(collamo, arguments, part):
    assert_fails(collamo("train", CONFIGS / "stage1.yaml", *arguments), 2, part)


def test_an_unknown_key_in_a_recipe_is_exit_2(collamo, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("stage: align\ndata: d\noutput: o\nllm: l\nlora:\n  rnak: 4\n")
    assert_fails(collamo("train", recipe), 2, "r.yaml: lora: unknown key 'rnak'", "'rank'")


def test_an_unknown_model_key_is_exit_2(collamo, run, tmp_path):
    options = ["--data", run.data, "--llm", run.folder / "tiny_lm" / "final"]
    options += ["--output", tmp_path / "o", "--model.projector_config.num_layer", "1"]
    code, _, err = collamo("train", CONFIGS / "stage1.yaml", *options)
    assert code == 2
    assert "did you mean 'num_layers'?" in err.splitlines()[-1]


@pytest.mark.parametrize("name", ["demo/tiny_lm/final", "/nowhere/final"])
@pytest.mark.parametrize(
    ("stage", "option", "kind", "maker"),
    [
        ("stage1", "--llm", "language model", "tiny_lm"),
        ("stage2", "--init_from", "checkpoint", "stage1"),
    ],
)
def test_a_missing_model_folder_is_exit_4(collamo, run, tmp_path, name, stage, option, kind, maker):
    options = ["--data", run.data, "--output", tmp_path / "o", option, name]
    code, out, err = collamo("train", CONFIGS / f"{stage}.yaml", *options)
    assert (code, out) == (4, "")
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {kind} folder '{name}' does not exist; ")
    assert f"`collamo train configs/{maker}.yaml`" in last


def test_a_diverging_run_is_exit_1(collamo, run, tmp_path):
    options = [*run.overrides("stage1", tmp_path / "o"), "--learning_rate", "1e30"]
    code, _, err = collamo("train", CONFIGS / "stage1.yaml", *options, "--warmup_steps", "0")
    assert code == 1
    assert "is NaN or infinite" in err.splitlines()[-1]
