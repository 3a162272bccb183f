"""Installing where the extension cannot be compiled, or is not to be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USE = """
import sys, torch
# An editable install of this environment would lend its own extension.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import collamo_kernels as ck
hops = ck.shortest_paths(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 3]))
assert hops[0, 0].tolist() == [0, 1, 255]
assert not ck.build_info()["extension"]
q = torch.randn(1, 1, 3, 3)
compiled = torch.compile(ck.coattention, fullgraph=True, backend="eager")
torch.testing.assert_close(compiled(q, q, q), ck.coattention(q, q, q))
print(ck.build_info()["why_absent"])
"""


@pytest.fixture
def folder(tmp_path):
    """The sources of the kernels, as a clone has them: nothing compiled, no record of a build."""
    skip = shutil.ignore_patterns("*.so", "absence.txt", "__pycache__")
    for name in ("collamo_kernels", "configs", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def python(folder, *arguments, **settings):
    """Run this interpreter in `folder` with no settings of ours but these; (exit code, outputs)."""
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("COLLAMO_", "PYTHONPATH"))}
    command = [sys.executable, *arguments]
    options = {"capture_output": True, "text": True, "check": False, "timeout": 300}
    done = subprocess.run(command, cwd=folder, env={**outer, **settings}, **options)
    return done.returncode, done.stdout, done.stderr


BUILD = ("setup.py", "--quiet", "build", "--build-lib", "lib")
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
# Without CUDA, which a torch for the CPU refuses before anything is compiled.
INSISTING = {"COLLAMO_FORCE_CUDA": "1", "COLLAMO_CPU_ONLY": "1", **NO_COMPILER}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"COLLAMO_NO_EXTENSION": "1"}, "COLLAMO_NO_EXTENSION was set"),
        (NO_COMPILER, "the build failed: "),
        ({"PYTHONPATH": "no_torch"}, "there was no torch to build against: not here"),
    ],
    ids=["switched off", "no compiler", "no torch"],
)
def test_what_is_not_compiled_still_works_and_says_why(folder, settings, reason):
    (folder / "no_torch").mkdir()
    (folder / "no_torch" / "torch.py").write_text("raise ImportError('not here')")
    code, _, err = python(folder, *BUILD, **settings)
    assert code == 0, err
    assert f"collamo: pure Python, all works but slower: {reason}" in err
    code, out, err = python(folder / "lib", "-c", USE)
    assert code == 0, err
    assert out.startswith(reason)
    assert "pip install" in out


@pytest.mark.slow
def test_a_build_that_is_insisted_on_fails_aloud(folder):
    code, _, err = python(folder, *BUILD, **INSISTING)
    assert code != 0
    assert "pure Python" not in err


@pytest.mark.slow
def test_a_new_build_forgets_the_old_reason(folder):
    assert python(folder, *BUILD, COLLAMO_NO_EXTENSION="1")[0] == 0
    record = folder / "lib" / "collamo_kernels" / "absence.txt"
    assert record.is_file()
    python(folder, *BUILD, **INSISTING)
    assert not record.exists()
