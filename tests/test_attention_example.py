"""The example of the kernels runs, and sees no atom that is not there."""

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples/attention.py"


def test_it_runs(capsys):
    y = runpy.run_path(str(EXAMPLE))["main"]()
    assert y.shape == (2, 3, 32)
    assert "ethanol: [[0, 1, 2], [1, 0, 1], [2, 1, 0]]" in capsys.readouterr().out
