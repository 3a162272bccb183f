"""SIGTERM leaves a sealed checkpoint and exit code 143, wherever in a step it comes."""

import json
import signal
import subprocess
import sys
import time

import pytest
from trained import CONFIGS, trained

from collamo.training.manifest import checkpoints, verify_manifest


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_seals_a_checkpoint(tmp_path, workers):
    """No checkpoint would be written for a million steps; loader processes end with the rest."""
    options = [
        *trained().overrides("stage1", tmp_path / "out"),
        *("--max_steps=1000000", "--save_steps=1000000", "--logging_steps=1"),
        f"--dataloader_num_workers={workers}",
    ]
    code = "from collamo.cli import main; main()"
    command = [sys.executable, "-c", code, "train", str(CONFIGS / "stage1.yaml"), *options]
    log = tmp_path / "out" / "log.jsonl"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not log.is_file():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    (checkpoint,) = checkpoints(tmp_path / "out")
    assert verify_manifest(checkpoint) is None
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert f"ended by SIGTERM after step {state['global_step']}; --resume goes on" in errors
    assert not (tmp_path / "out" / "final").exists()
