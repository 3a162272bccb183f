"""The language model cut between two processes, by transformers' own plan."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_helpers import build

from collamo.model import CollamoForConditionalGeneration

RANK = Path(__file__).with_name("tensor_parallel.py")


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_two_ranks_compute_what_one_does(tokenizer, inputs, tmp_path, tied):
    """An embedding that is cut while the output layer tied to it is not fits nothing."""
    model, _ = build(tokenizer, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "saved")
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run = [*launch, "--standalone", RANK, tmp_path / "saved", tmp_path / "inputs.pt"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    again = CollamoForConditionalGeneration.from_pretrained(tmp_path / "saved" / "again")
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(x, expected[name]) for name, x in again.state_dict().items())
