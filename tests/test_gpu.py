"""What `make gpu-test` runs: which tests, how it reports, and that it needs no other package."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("run_on_gpu", HERE / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
sys.modules["run_on_gpu"] = gpu
spec.loader.exec_module(gpu)

# What the packages that gpu-test needs bring along stays; all else may be absent there.
ABSENT = ("rdkit", "scipy", "hypothesis", "transformers", "peft", "safetensors", "pandas")
ABSENT += ("pytest_timeout", "torch_cluster", "torch_geometric", "matplotlib", "tokenizers", "yaml")


@pytest.fixture
def logs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LOGS", tmp_path / "logs")
    return tmp_path / "logs"


def python(name, text):
    return gpu.Piece(name, (sys.executable, "-c", text))


@pytest.mark.slow
def test_a_piece_that_fails_or_hangs_stops_no_other(logs, capsys):
    pieces = [
        python("good", "print('3 passed in 1.00s'); print('more')"),
        python("bad", "print('E   the reason'); raise SystemExit(3)"),
        python("endless", "import time; print('begun', flush=True); time.sleep(60)"),
        gpu.Piece("absent", ("/no/such/tool",)),
    ]
    assert not gpu.run_all(pieces, limit=4, workers=4)
    out = capsys.readouterr().out
    assert "s  good: 3 passed in 1.00s\n" in out
    assert "s  bad: E   the reason" in out
    assert "begun" in out
    assert "stopped after 4 s" in out
    assert "does not start" in out
    assert "1 of 4 pieces passed" in out
    assert (logs / "bad.log").read_text() == "E   the reason\n"


def test_all_pass(logs, capsys):
    assert gpu.run_all([python("one", ""), python("two", "")])
    assert capsys.readouterr().out.count("ok ") == 2


def test_every_file_is_run_or_left_out_by_name():
    files = {path.name for path in (HERE / "kernels").glob("test_*.py")}
    run = {Path(word).name for piece in gpu.suites() for word in piece.command}
    assert files == (run & files) | gpu.WITHOUT_GPU
    assert files >= gpu.WITHOUT_GPU
    assert set(gpu.SANITIZED) <= files


@pytest.mark.slow
def test_sanitizer_runs_tests_of_every_kind():
    command = gpu.sanitized("racecheck").command
    python_at = command.index(sys.executable)
    done = subprocess.run(
        [*command[python_at:], "--collect-only"], capture_output=True, text=True, cwd=HERE.parent
    )
    assert "test_a_gpu_sorts_pairs_as_the_definition[4608-True]" in done.stdout
    assert "test_every_size_equals_the_cpu[3]" in done.stdout
    assert "test_accuracy[triton-(127, 128, 129)]" in done.stdout
    assert done.stdout.count("test_accuracy[triton-around-16") == 6


@pytest.mark.slow
def test_no_other_package_is_needed_to_collect(tmp_path):
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"  # None: ImportError
    (tmp_path / "blocked.py").write_text(blocked)
    paths = [word for piece in gpu.suites() for word in piece.command if word.endswith(".py")]
    command = [sys.executable, "-m", "pytest", "-p", "blocked", "--collect-only", "-q", *set(paths)]
    path = f"{tmp_path}:{HERE.parent}"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        env={"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
