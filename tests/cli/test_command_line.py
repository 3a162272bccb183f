"""The command line itself: help, exit codes, one clear line for an error."""

import os
import resource
import shutil
import subprocess
import sys

import pytest
import typer
from command_line import assert_fails, collamo_process
from trained import CONFIGS

from collamo.cli import COMMANDS, app
from collamo.extras import VERSION

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_the_module_is_the_command_line():
    command = [sys.executable, "-m", "collamo", "prepaer"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_a_notebooks_backend_ends_no_program():
    """Jupyter hands it to its shells; matplotlib could not be imported any more."""
    code = (
        "import sys; from collamo import cli\n"
        "def command_line(): import matplotlib.figure\n"
        "cli.main = command_line; from collamo.__main__ import main; main()"
    )
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_the_commands_and_imports_nothing_heavy():
    """Not even rich, which the help does without; nor does the help of a command."""
    code = (
        "import sys; from collamo.cli import COMMANDS, run\n"
        "codes = [run([*name, '--help']) for name in ([], *([name] for name in COMMANDS))]\n"
        "heavy = {'torch', 'rdkit', 'transformers', 'numpy', 'pyarrow', 'rich'} & {*sys.modules}\n"
        "assert not heavy, heavy; sys.exit(max(codes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("Commands:")[2].partition("Usage:")[0].splitlines()
    assert [line.split()[0] for line in listed if line.strip()] == list(COMMANDS)


def test_a_command_is_imported_when_it_is_called():
    code = (
        "import sys; from collamo.cli import run; run(['compare', '--help'])\n"
        "print(*(name for name in sys.modules if name.startswith('collamo.cli.')), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = {name.rpartition(".")[2] for name in done.stderr.split()}
    assert imported & {*COMMANDS} == {"compare"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(collamo, command):
    code, out, err = collamo(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: collamo {command}")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["ask", "CCO"], "Missing argument"),
        (["ask", "CCO", "What?", "--wat"], "No such option: --wat"),
        (["prepaer"], "Did you mean 'prepare'?"),
        (["evaluate", "--limit", "0"], "limit"),
        (["evaluate", "--limit", "many"], "integer"),
        (["evaluate", "--split", "tset"], "did you mean 'test'?"),
        (["prepare", "nci"], "out"),
        (["merge", "adapter", ".."], "'..' exists; nothing is overwritten"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(collamo, arguments, part):
    assert_fails(collamo(*arguments), 2, part)


BUILDERS = {
    "train": [CONFIGS / "stage1.yaml", "--data", "DATA", "--output", "OUT"],
    "ablate": [CONFIGS / "ablations" / "relations.yaml", "--out", "OUT", "--data", "DATA"],
    "doctor": ["--plan", CONFIGS / "stage1.yaml"],
}


def test_every_command_that_builds_a_model_takes_its_parts(collamo, run, tmp_path):
    """--llm, --unimol and --gin: where the rest of a recipe is taken, and nowhere else."""
    group = typer.main.get_command(app)
    commands = {name: group.get_command(None, name) for name in COMMANDS}
    open_ended = {
        name
        for name, command in commands.items()
        if command.context_settings.get("allow_extra_args")
    }
    assert open_ended == BUILDERS.keys()
    places = {"DATA": run.data, "OUT": tmp_path / "out"}
    llm = ("--llm", run.folder / "tiny_lm" / "final")
    for name, fixed in BUILDERS.items():
        arguments = [places.get(each, each) for each in fixed]
        shown = " ".join(collamo(name, "--help")[1].split())
        assert all(f"--{part} " in shown for part in ("llm", "unimol", "gin"))
        for part, rest in (("llm", ()), ("unimol", llm), ("gin", llm)):
            missing = tmp_path / f"no-{part}.pt"
            _, out, err = collamo(name, *arguments, f"--{part}", missing, *rest)
            assert str(missing) in " ".join((out + err).split()), (name, part)
            shutil.rmtree(places["OUT"], ignore_errors=True)
    encoding = {"unimol", "gin"}
    for name, command in commands.items():
        named = {parameter.name for parameter in command.params}
        assert named & {"llm", *encoding} == (encoding if name == "prepare" else set())


def test_no_command_shows_the_help(collamo):
    code, out, err = collamo()
    assert (code, err) == (2, "")
    assert out.startswith("Usage: collamo")
    assert out == collamo("--help")[1]


def test_the_version():
    command = [sys.executable, "-m", "collamo", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"collamo {VERSION}\n"


def test_only_debug_shows_a_traceback(collamo):
    assert_fails(collamo("train", "nowhere.yaml"), 2, "recipe nowhere.yaml does not exist")
    for arguments in (["--debug", "train", "nowhere.yaml"], ["train", "nowhere.yaml", "--debug"]):
        code, _, err = collamo(*arguments)
        assert code == 2
        assert "Traceback" in err
        assert err.rstrip().splitlines()[-1].startswith("error: recipe nowhere.yaml")


def test_an_interrupt_is_130(collamo, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("collamo.doctor.examine", interrupted)
    assert_fails(collamo("doctor"), 130, "interrupted")


def test_an_unforeseen_error_is_one_line_and_exit_1(collamo, monkeypatch):
    def broken():
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("collamo.doctor.examine", broken)
    assert_fails(collamo("doctor"), 1, "ZeroDivisionError: two lines", "--debug")


def test_a_missing_package_is_exit_4(collamo, monkeypatch):
    def missing():
        import no_such_package  # noqa: F401

    monkeypatch.setattr("collamo.doctor.examine", missing)
    assert_fails(collamo("doctor"), 4, "package 'no_such_package' is not installed")


def test_a_missing_extra_is_exit_4_and_named(collamo, monkeypatch):
    def missing():
        raise ModuleNotFoundError(name="rouge_score.rouge_scorer")

    monkeypatch.setattr("collamo.doctor.examine", missing)
    assert_fails(collamo("doctor"), 4, "pip install 'collamo[evaluation]'")


def test_the_installed_command_runs(tmp_path):
    """In a process of its own, as a user starts it."""
    done = collamo_process("ask", "C1CC", "What?", cwd=tmp_path, env={**os.environ})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: SMILES 'C1CC' has an unclosed ring; fix it or drop the row\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prepare", "evaluate", "train"])
def test_no_room_names_the_file_and_the_way_out(run, tmp_path, command):
    """A limit on the size of files stands for it; the same command then goes on."""
    arguments = {
        "prepare": ["nci", "--limit", "200", "--no-conformers", "--workers", "1"],
        "evaluate": [run.checkpoint, "--data", run.data, "--limit", "5"],
        "train": [CONFIGS / "stage1.yaml", *run.overrides("stage1", tmp_path), "--max_steps", "1"],
    }[command]
    if command == "evaluate":
        arguments += ["--no-reliance", "--max-new-tokens", "4"]
    if command != "train":
        arguments += ["--out", tmp_path]
    size = 2**17 if command == "train" else 2**13
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
    done = collamo_process(command, *map(str, arguments), **limit)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    name = {"prepare": "molecules-00000.parquet", "evaluate": "rows.parquet", "train": ""}[command]
    assert last.startswith("error: "), done.stderr
    assert str(tmp_path / name) in last
    assert f"a file of this process may have {size / 1024} KiB at most" in last
    assert "ulimit" in last
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))
