"""An install without extras: torch and numpy, and nothing else that a package here could import.

``make test-kernels-alone`` runs this in such an environment, on the wheel.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import collamo_kernels as ck

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("transformers", "rdkit", "typer", "wrapt", "pyarrow", "scipy", "hypothesis", "triton")
NAMES_THE_EXTRA = (
    "collamo needs the extra 'model' (transformers, huggingface-hub, tokenizers … are missing): "
    "pip install 'collamo[model]'"
)


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("package", ABSENT)
def test_nothing_else_is_here(package):
    assert importlib.util.find_spec(package) is None


def test_the_wheel_is_under_test_and_compiled():
    assert Path(ck.__file__).is_relative_to(sysconfig.get_path("platlib"))
    assert ck.build_info()["extension"]


def test_importing_collamo_names_the_extra_in_one_line():
    done = run(sys.executable, "-P", "-c", "import collamo")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {NAMES_THE_EXTRA}"


@pytest.mark.parametrize(
    "command",
    [(f"{sysconfig.get_path('scripts')}/collamo",), (sys.executable, "-P", "-m", "collamo")],
    ids=["collamo", "python -m collamo"],
)
def test_the_program_names_the_extra_and_exits_4(command):
    done = run(*command, "ask", "CCO", "How many atoms?")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"error: {NAMES_THE_EXTRA}\n"


def test_the_example_runs():
    done = run(sys.executable, "-P", str(ROOT / "examples" / "attention.py"))
    assert done.returncode == 0, done.stderr
    assert "what ethanol's oxygen attends to" in done.stdout
