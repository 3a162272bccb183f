"""`collamo chat`: a line in, a line out, and no mistake ends it."""

import io
import os
import signal
import subprocess
import sys

import pytest
from command_line import assert_fails, collamo_process

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
RINGS, ACID = "How many rings does it have?", "Is it an acid?"


@pytest.fixture
def chat(collamo, run, monkeypatch):
    """Chat in this process; returns (exit code, stdout, stderr)."""

    def call(lines, *arguments):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "8"]
        return collamo("chat", *arguments, *options)

    return call


def test_answers_are_those_of_ask(chat, collamo, run):
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "8"]
    ethanol = collamo("ask", "CCO", RINGS, ACID, *options)[1]
    phenol = collamo("ask", "c1ccccc1O", RINGS, *options)[1]
    code, out, err = chat([RINGS, "", ACID, "/molecule c1ccccc1O", f"  {RINGS} "], "CCO")
    assert (code, out, err) == (0, ethanol + phenol, "")


def test_a_mistake_is_one_line_and_the_chat_goes_on(chat):
    lines = [RINGS, "/molecule C1CC", "/molecule", "/molecule CCO", "/molecule C1CC", RINGS]
    lines += ["/molcule C", "why " * 5000, "a <mol> b", RINGS]
    code, out, err = chat(lines)
    assert code == 0
    answers = out.splitlines()
    assert len(answers) == 2
    assert answers[0] == answers[1]  # a molecule that cannot be read changes nothing
    errors = err.splitlines()
    parts = ["no molecule yet", "unclosed ring", "empty", "unclosed ring", "did you mean"]
    parts += ["has 1024 positions", "take it out"]
    assert len(errors) == len(parts)
    for error, part in zip(errors, parts, strict=True):
        assert error.startswith("error: ")
        assert part in error


def test_quit_and_help(chat):
    code, out, err = chat(["/help", "/quit", RINGS], "CCO")
    assert (code, out) == (0, "")
    assert "/molecule SMILES" in err


def test_what_is_not_read_is_noted(chat):
    _, _, err = chat(["/molecule [Pd]"])
    assert err == "note: the 3D encoder reads Pd as [UNK]\n"


def test_a_bad_start_is_an_error_of_the_command(chat, collamo, tmp_path):
    assert_fails(chat([RINGS], "C1CC"), 1, "unclosed ring")
    assert_fails(collamo("chat", "CCO"), 4, "no trained weights", "make demo")


@pytest.mark.slow
def test_lines_come_through_a_pipe(run):
    options = ["--checkpoint", str(run.checkpoint), "--max-new-tokens", "8"]
    done = collamo_process("chat", "CCO", *options, input=f"{RINGS}\n/molecule C1CC\n{RINGS}\n")
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert done.stderr == ("error: SMILES 'C1CC' has an unclosed ring; fix it or drop the row\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of POSIX")
def test_an_interrupt_at_the_prompt_is_130(run):
    """At a terminal, which shows the prompt; answers go to stdout, a file here."""
    import pty

    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "collamo", "chat", "CCO", "--max-new-tokens", "4"]
    process = subprocess.Popen(
        [*command, "--checkpoint", str(run.checkpoint)],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        # Tests run in the background of a script ignore interrupts; children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(terminal)

    def wait_for_prompt():
        shown = ""
        while not shown.endswith("> "):
            shown += os.read(controller, 1024).decode()

    wait_for_prompt()
    os.write(controller, f"{RINGS}\n".encode())
    assert process.stdout.readline().endswith("\n")
    wait_for_prompt()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stdout.read() == ""
    os.close(controller)
