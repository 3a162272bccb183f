import json
import logging

import pytest

from collamo.errors import CollamoError
from collamo.training.manifest import (
    MANIFEST,
    checkpoints,
    delete_old_checkpoints,
    find_last_valid_checkpoint,
    verify_manifest,
    write_manifest,
)


@pytest.fixture
def run(tmp_path):
    """Three whole checkpoints: 5, 10 and 20 steps (20 sorts before 5 as text)."""
    for step in (5, 10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "inner").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
        (folder / "inner" / "optimizer.pt").write_bytes(b"moments")
        write_manifest(folder)
    (tmp_path / "checkpoint-notes").mkdir()
    return tmp_path


def test_the_newest_whole_checkpoint_is_found(run):
    assert [p.name for p in checkpoints(run)] == ["checkpoint-20", "checkpoint-10", "checkpoint-5"]
    assert find_last_valid_checkpoint(run).name == "checkpoint-20"
    assert find_last_valid_checkpoint(run / "nowhere") is None


def flip(path, position=5000):
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "never finished": lambda c: (c / MANIFEST).unlink(),
    "optimizer.pt is missing": lambda c: (c / "inner/optimizer.pt").unlink(),
    "is altered": lambda c: flip(c / "model.safetensors"),
    "bytes, 10240 were written": lambda c: (c / "model.safetensors").write_bytes(b"half"),
    "cannot be read": lambda c: (c / MANIFEST).write_text('{"files'),
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(run, problem, caplog):
    DAMAGE[problem](run / "checkpoint-20")
    with caplog.at_level(logging.WARNING, "collamo"):
        assert find_last_valid_checkpoint(run).name == "checkpoint-10"
    assert problem in caplog.text
    assert "checkpoint-20" in caplog.text


def test_every_single_flipped_bit_is_found(run):
    folder = run / "checkpoint-5"
    for position in range(0, 10240, 97):
        flip(folder / "model.safetensors", position)
        assert verify_manifest(folder) is not None
        flip(folder / "model.safetensors", position)
    assert verify_manifest(folder) is None


def test_every_flipped_bit_of_the_manifest_is_found(run):
    folder = run / "checkpoint-5"
    whole = (folder / MANIFEST).read_bytes()
    for place in range(0, 8 * len(whole), 11):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        (folder / MANIFEST).write_bytes(damaged)
        assert verify_manifest(folder) is not None, damaged


def test_checkpoints_that_were_never_finished_mean_none(run):
    for step in (5, 10, 20):
        (run / f"checkpoint-{step}" / MANIFEST).unlink()
    assert find_last_valid_checkpoint(run) is None


def test_days_of_training_are_not_begun_anew_without_a_word(run):
    (run / "checkpoint-20" / MANIFEST).unlink()
    for step in (5, 10):
        flip(run / f"checkpoint-{step}" / "model.safetensors")
    with pytest.raises(CollamoError, match=r"is whole \(\S+checkpoint-10: model.* is altered"):
        find_last_valid_checkpoint(run)


def test_the_manifest_lists_every_file(run):
    files = json.loads((run / "checkpoint-5" / MANIFEST).read_text())["files"]
    assert set(files) == {"model.safetensors", "inner/optimizer.pt"}
    assert files["model.safetensors"]["bytes"] == 10240


def test_old_checkpoints_go_only_when_the_newest_is_whole(run):
    flip(run / "checkpoint-20" / "model.safetensors")
    delete_old_checkpoints(run / "checkpoint-20", keep=1)
    assert len(checkpoints(run)) == 3
    flip(run / "checkpoint-20" / "model.safetensors")
    delete_old_checkpoints(run / "checkpoint-20", keep=1, best=str(run / "checkpoint-5"))
    assert [p.name for p in checkpoints(run)] == ["checkpoint-20", "checkpoint-5"]
    delete_old_checkpoints(run / "checkpoint-20", keep=None)
    assert len(checkpoints(run)) == 2


def test_a_broken_checkpoint_of_a_later_step_keeps_no_old_ones(run):
    """A resume went on from step 5 past a broken 20; now it has written 10."""
    flip(run / "checkpoint-20" / "model.safetensors")
    delete_old_checkpoints(run / "checkpoint-10", keep=1)
    assert [p.name for p in checkpoints(run)] == ["checkpoint-20", "checkpoint-10"]
