"""Training reads its data from a store as it does from a folder."""

import pytest
import torch
from safetensors.torch import load_file
from trained import trained

from collamo.training.stages import train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_the_weights_are_those_of_the_folder_and_a_resume_takes_either(tmp_path, monkeypatch):
    """Where the data lie is no setting that a checkpoint was trained with; what they are is."""
    monkeypatch.setenv("COLLAMO_CACHE", str(tmp_path / "cache"))
    run, output = trained(), tmp_path / "out"
    train(run.recipe("tiny_lm", output, "--data", f"file://{run.data}"))
    train(run.recipe("tiny_lm", output), resume=True)
    ours = load_file(output / "final" / "model.safetensors")
    theirs = load_file(run.folder / "tiny_lm" / "final" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
