"""What `make gpu-test` runs: which tests, how it reports, and that it needs no other package."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("run_on_gpu", HERE / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
sys.modules["run_on_gpu"] = gpu
spec.loader.exec_module(gpu)

# What the packages that gpu-test needs bring along stays; all else may be absent there.
ABSENT = ("rdkit", "scipy", "hypothesis", "transformers", "peft", "safetensors", "pandas")
ABSENT += ("pytest_timeout", "torch_cluster", "torch_geometric", "matplotlib", "tokenizers", "yaml")


NAME = "NVIDIA Nothing"


def python(name, text):
    return gpu.Piece(name, (sys.executable, "-c", text))


def rows(folder, table="tests"):
    return gpu.measurements.rows_of(folder, table)


@pytest.mark.slow
def test_a_piece_that_fails_or_hangs_stops_no_other(tmp_path, capsys):
    pieces = [
        python("good", "print('3 passed in 1.00s'); print('more')"),
        python("bad", "print('E   the reason'); raise SystemExit(3)"),
        python("endless", "import time; print('begun', flush=True); time.sleep(60)"),
        gpu.Piece("absent", ("/no/such/tool",)),
    ]
    assert not gpu.run_all(pieces, tmp_path, NAME, seconds=12, workers=4)
    out = capsys.readouterr().out
    assert "s  good: 3 passed in 1.00s\n" in out
    assert "s  bad: E   the reason" in out
    assert "begun" in out
    assert "stopped after 12 s" in out
    assert "does not start" in out
    assert "1 of 4 pieces passed" in out
    log = (tmp_path / "tests.log").read_text()
    assert "[bad] E   the reason\n" in log
    assert "[endless] begun\n" in log
    found = {row["piece"]: row["passed"] for row in rows(tmp_path)}
    assert found == {"good": "yes", "bad": "no", "endless": "no", "absent": "no"}
    assert {row["gpu"] for row in rows(tmp_path)} == {NAME}


def test_all_pass(tmp_path, capsys):
    assert gpu.run_all([python("one", ""), python("two", "")], tmp_path, NAME)
    assert capsys.readouterr().out.count("ok ") == 2


def test_a_second_run_does_what_the_first_did_not(tmp_path, capsys, monkeypatch):
    pieces = [python("good", "print('ran')"), python("bad", "raise SystemExit(1)")]
    assert not gpu.run_all(pieces, tmp_path, NAME)
    repaired = [pieces[0], python("bad", "print('repaired')")]
    assert gpu.run_all(repaired, tmp_path, NAME)
    assert "good: passed before" in capsys.readouterr().out
    assert (tmp_path / "tests.log").read_text().count("ran") == 1
    monkeypatch.setattr(gpu.measurements, "sources", lambda: "others")  # other code
    assert gpu.run_all(repaired, tmp_path, NAME)
    assert (tmp_path / "tests.log").read_text().count("ran") == 2


def test_what_has_no_time_is_named_and_not_run(tmp_path, capsys):
    assert not gpu.run_all([python("late", "print('ran')")], tmp_path, NAME, seconds=1)
    assert "not run: late\n" in capsys.readouterr().out
    (row,) = rows(tmp_path)
    assert (row["passed"], row["note"]) == ("not run", "not run: the time was up")
    assert "ran" not in (tmp_path / "tests.log").read_text().replace("[late]", "")


@pytest.mark.slow
def test_an_interrupted_run_leaves_nobody_behind(tmp_path):
    """Neither the piece nor a child of it; and what it had said until then is in the log."""
    child = tmp_path / "child"
    text = f"""
import subprocess, time
child = subprocess.Popen(["sleep", "600"])
open({str(child)!r}, "w").write(str(child.pid))
print("begun")
time.sleep(600)
"""
    run = f"""
import sys
sys.path[:0] = {[str(HERE), str(HERE.parent / "benchmarks")]!r}
import gpu, pieces, pathlib
pieces.stop_when_told()
piece = pieces.Piece("endless", (sys.executable, "-c", {text!r}))
gpu.run_all([piece], pathlib.Path({str(tmp_path)!r}), "NVIDIA Nothing")
"""
    process = subprocess.Popen([sys.executable, "-c", run], cwd=HERE.parent)
    while not (child.exists() and child.read_text()) or "begun" not in log_of(tmp_path):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    state = Path(f"/proc/{child.read_text()}/stat")
    for _ in range(600):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child of the piece lives on")


def log_of(folder):
    path = folder / "tests.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_a_wrong_configuration_fails_the_run_unless_it_is_doubted(tmp_path, capsys):
    row = {"dtype": "float32", "width": 32, "bucket": "loop", "right": "no", "note": "dk is off"}

    def telling(doubted):
        told = ["buckets", [row | {"doubted": doubted}]]
        return python(doubted, f"print({gpu.measurements.MARK + json.dumps(told)!r})")

    assert gpu.run_all([telling("yes")], tmp_path / "doubted", NAME)
    assert not gpu.run_all([telling("no")], tmp_path / "taken", NAME)
    out = capsys.readouterr().out
    assert "wrong, as doubted, and not taken: float32, width 32, loop: dk is off" in out
    assert "WRONG: float32, width 32, loop: dk is off" in out
    (kept,) = rows(tmp_path / "taken", "buckets")
    assert (kept["bucket"], kept["right"]) == ("loop", "no")


def test_a_talkative_piece_does_not_fill_the_disk(tmp_path, monkeypatch):
    # Of the module that gpu has: test_benchmarks.py loads those of benchmarks/ anew.
    monkeypatch.setitem(gpu.Log.__init__.__globals__, "LOG_LIMIT", 100)
    loud = python("loud", "print('x' * 60); print('y' * 60); print('z' * 60)")
    gpu.run_all([loud, python("other", "print('heard')")], tmp_path, NAME, workers=1)
    log = (tmp_path / "tests.log").read_text()
    assert "y (the rest is left out)\n" in log
    assert "zz" not in log
    assert "heard" in log


def test_every_file_is_run_or_left_out_by_name():
    files = {path.name for path in (HERE / "kernels").glob("test_*.py")}
    run = {Path(word).name for piece in gpu.suites() for word in piece.command}
    assert files == (run & files) | gpu.WITHOUT_GPU
    assert files >= gpu.WITHOUT_GPU
    assert {*gpu.SANITIZED, gpu.WGMMA[0]} <= files
    names = [piece.name for piece in gpu.pieces()]
    assert len(names) == len(set(names))
    assert set(names) >= gpu.NOT_COUNTED


def collected(piece):
    command = gpu.collected(piece).command
    done = subprocess.run([*command, "-q"], capture_output=True, text=True, cwd=HERE.parent)
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_the_parts_of_the_longest_file_are_all_of_it():
    whole = collected(gpu.Piece("whole", gpu.pytest_of(["test_coattention.py"])))
    parts = [x.command[-1] for x in gpu.suites() if x.name.startswith("test_coattention, ")]
    parts = [Expression.compile(chosen) for chosen in parts]
    for name in whole:
        runs = [part for part in parts if part.evaluate(lambda word, name=name: word in name)]
        assert len(runs) == 1, name
    assert sum("triton" in name for name in whole) > 100


@pytest.mark.slow
def test_sanitizer_runs_tests_of_every_kind():
    few, wgmma = map(collected, gpu.sanitized("racecheck"))

    def some(text):
        return any(text in name for name in few)

    assert some("test_a_gpu_sorts_pairs_as_the_definition[4608-True]")
    assert some("test_every_size_equals_the_cpu[3]")
    assert some("test_accuracy[triton-(127, 128, 129)]")
    assert sum("test_accuracy[triton-around-16" in name for name in few) == 6
    tiles = [name.split("[")[1] for name in wgmma]
    assert tiles == ["48-64-torch.bfloat16]", "100-128-torch.bfloat16]"]


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


# --- the real commands, on a machine that only says it has a GPU ----------------------------------


def make(target, folder, options, **settings):
    """Run a target with the stand-in for a GPU and without git; (exit code, output, log)."""
    stand_in = os.pathsep.join([str(HERE / "stand_in_gpu"), str(HERE.parent)])
    tools = folder.parent / "bin"  # all that the recipes need
    tools.mkdir(exist_ok=True)
    for name in ("sh", "make", "date", "mkdir", "ls", "head", "find", "tail", "true"):
        link = tools / name
        if not link.exists():
            link.symlink_to(shutil.which(name))
    environment = {**os.environ, "PYTHONPATH": stand_in, "PATH": str(tools), **settings}
    environment["COLLAMO_KERNELS_CACHE"] = str(folder)  # nobody else shall avoid what fails here
    variables = [f"PYTHON={sys.executable}", f"OUT={folder}", f"GPU_OPTIONS={options}"]
    done = subprocess.run(
        [str(tools / "make"), target, "GPU_BUILD=true", "GPU_SECONDS=1200", *variables],
        **{"cwd": HERE.parent, "env": environment, "capture_output": True, "text": True},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_gpu_test_as_it_will_run(tmp_path):
    out = tmp_path / "out"
    only = "bucket bfloat16 16 doubted|racecheck, wgmma|Triton, bfloat16"
    code, output = make("gpu-test", out, f"--collect-only --only '{only}'")
    assert code == 0, output
    assert "3 of 3 pieces passed" in output, output
    assert all(row["passed"] == "yes" for row in rows(out)), output
    assert {row["commit"] for row in rows(out)} == {"unknown"}  # there is no git
    checked = rows(out, "buckets")  # nothing ran, so nothing is right
    assert {(row["doubted"], row["right"]) for row in checked} == {("yes", "no")}
    assert len(list(out.iterdir())) <= 8


@pytest.mark.slow
def test_gpu_bench_as_it_will_run(tmp_path):
    out = tmp_path / "out"
    options = "--small --only 'bucket bfloat16 32 shipped|(ours|rivals) of .*H=8, d=64'"
    code, output = make("gpu-bench", out, options)
    assert code != 0
    assert "WRONG: ours of 256 molecules, H=8, d=64, small, forward" in output, output
    assert "no longer taken: bfloat16, width 32, loop" in output
    assert "failed:" not in output, output
    attention = rows(out, "coattention")
    ours = [row for row in attention if row["rival"] == "ours"]
    assert [row["right"] for row in ours] == ["no", "no", ""]  # the last is the host's time
    assert all(row["note"].startswith("wrong: ") for row in ours[:2])
    assert all(float(row["host_us"]) > 0 for row in ours)
    both = {row["rival"] for row in attention if row["workload"].endswith("backward")}
    assert both == {"ours", "eager", "torch.compile", "SDPA, bias ready-built", "FlexAttention"}
    assert {row["right"] for row in rows(out, "buckets")} == {"no"}
    assert len(list(out.iterdir())) <= 8
