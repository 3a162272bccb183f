"""The frozen weights of a training: written and read once, and whole in every checkpoint."""

import hashlib
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from trained import SAVE, STEPS, trained

from collamo.model import load_checkpoint
from collamo.model.checksums import FROZEN_WEIGHTS, verify_checksums
from collamo.training import stages
from collamo.training.freezing import LANGUAGE_MODEL, part_of
from collamo.training.frozen_weights import TRAINED_WEIGHTS
from collamo.training.manifest import verify_manifest

pytestmark = pytest.mark.slow
CHECKPOINTS = [f"checkpoint-{step}" for step in (SAVE, STEPS)]


@pytest.fixture(scope="module")
def run():
    return trained()


def test_checkpoints_have_one_file_of_the_language_model(run):
    first, second = (run.folder / "stage1" / name for name in CHECKPOINTS)
    frozen = load_file(first / FROZEN_WEIGHTS)
    assert os.path.samefile(first / FROZEN_WEIGHTS, second / FROZEN_WEIGHTS)
    assert {part_of(name) for name in frozen} <= set(LANGUAGE_MODEL)
    other = load_file(first / TRAINED_WEIGHTS)
    assert not {part_of(name) for name in other} & set(LANGUAGE_MODEL)


def test_a_checkpoint_is_a_whole_model(run):
    final, _ = load_checkpoint(run.folder / "stage1" / "final")
    model, _ = load_checkpoint(run.folder / "stage1" / CHECKPOINTS[-1])
    expected = final.state_dict()
    assert all(torch.equal(expected[name], x) for name, x in model.state_dict().items())


def test_they_are_read_once(run, tmp_path, monkeypatch):
    """Two lists of checksums in each checkpoint, and a look at it before older ones are deleted."""
    read = []

    def watched(file, *args):
        read.append((os.fstat(file.fileno()).st_ino, file.name))
        return digest(file, *args)

    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", watched)
    stages.train(run.recipe("stage1", tmp_path / "out", "--save_total_limit", "2"))
    frozen = (tmp_path / "out" / CHECKPOINTS[-1] / FROZEN_WEIGHTS).stat().st_ino
    assert len([file for file, _ in read if file == frozen]) == 1, read


@pytest.mark.parametrize("links", [True, False])
def test_a_resumed_training_goes_on_with_the_file(run, links, tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(1, "no hard links on this file system")

    output = tmp_path / "stage1"
    shutil.copytree(run.folder / "stage1", output)
    shutil.rmtree(output / "final")
    shutil.rmtree(output / CHECKPOINTS[-1])
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    stages.train(run.recipe("stage1", output), resume=True)
    first, second = (output / name for name in CHECKPOINTS)
    assert os.path.samefile(first / FROZEN_WEIGHTS, second / FROZEN_WEIGHTS) == links
    for folder in (first, second):
        assert verify_manifest(folder) is None
        verify_checksums(folder)
    expected = run.folder / "stage1" / CHECKPOINTS[-1]
    for name in (FROZEN_WEIGHTS, TRAINED_WEIGHTS):
        assert (second / name).read_bytes() == (expected / name).read_bytes()


def test_a_file_that_was_deleted_is_written_again(run, tmp_path):
    output = tmp_path / "stage1"
    stages.train(run.recipe("stage1", output, "--save_total_limit", "1"))
    assert [path.name for path in output.glob("checkpoint-*")] == CHECKPOINTS[-1:]
    assert verify_manifest(output / CHECKPOINTS[-1]) is None
    assert (output / CHECKPOINTS[-1] / FROZEN_WEIGHTS).stat().st_nlink == 1
