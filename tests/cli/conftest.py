"""Every command in this process, on a trained model, far from the checkpoints of the user."""

import pytest
from trained import trained

from collamo import cli


@pytest.fixture(scope="module")
def run():
    return trained()


@pytest.fixture(autouse=True)
def _no_outside_checkpoint(monkeypatch, tmp_path):
    """No checkpoint of the user's, and no demo folder, decides a test."""
    monkeypatch.delenv("COLLAMO_CHECKPOINT", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def collamo(capsys):
    """Run a command in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        code = cli.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call
