"""`collamo chat`: a line in, a line out, and no mistake ends it."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from command_line import assert_fails, collamo_process

from collamo.inference.assistant import load

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
RINGS, ACID = "How many rings does it have?", "Is it an acid?"


@pytest.fixture
def chat(collamo, run, monkeypatch):
    """Chat in this process; returns (exit code, stdout, stderr)."""

    def call(lines, *arguments):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return collamo("chat", run.checkpoint, *arguments, "--max-new-tokens", "8")

    return call


def test_answers_are_those_of_ask(chat, collamo, run):
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "8"]
    ethanol = collamo("ask", "CCO", RINGS, ACID, *options)[1]
    phenol = collamo("ask", "c1ccccc1O", RINGS, *options)[1]
    code, out, err = chat([RINGS, "", ACID, "/mol c1ccccc1O", f"  {RINGS} "], "--mol", "CCO")
    assert (code, out, err) == (0, ethanol + phenol, "")


def test_a_mistake_is_one_line_and_the_chat_goes_on(chat):
    lines = [RINGS, "/mol C1CC", "/mol", "/mol CCO", "/mol C1CC", RINGS]
    lines += ["/moll C", "why " * 5000, "a <mol> b", RINGS]
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
    code, out, err = chat(["/help", "/quit", RINGS], "--mol", "CCO")
    assert (code, out) == (0, "")
    assert "/mol SMILES" in err


def test_what_is_not_read_is_noted(chat):
    _, _, err = chat(["/mol [Pd]"])
    assert err == "note: the 3D encoder reads Pd as [UNK]\n"


def test_a_bad_start_is_an_error_of_the_command(chat, collamo, tmp_path):
    assert_fails(chat([RINGS], "--mol", "C1CC"), 1, "unclosed ring")
    assert_fails(collamo("chat", "--mol", "CCO"), 4, "no trained weights", "make demo")
    assert_fails(collamo("chat", "CCO"), 2, "'CCO' is a molecule: give it by --mol")
    assert_fails(collamo("chat", "nowhere"), 4, "does not exist")


def test_the_model_sees_the_views_that_are_asked_for(chat, run, tmp_path):
    lines = [RINGS, "/views 2D, 1d", RINGS, "/views 4d", "/views", "/save chat.jsonl", "/quit"]
    code, out, err = chat(lines, "--mol", "CCO")
    assert code == 0
    assert err.splitlines()[2:] == ["note: 2 answers in chat.jsonl"]
    assert err.count("give one or more of 1d, 2d, 3d") == 2
    said = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert [each["views"] for each in said] == [["1d", "2d", "3d"], ["1d", "2d"]]
    assert [each["answer"] for each in said] == out.splitlines()
    assistant = load(run.checkpoint)
    options = {"max_new_tokens": 8, "modalities": ("1d", "2d")}
    assert said[1]["answer"] == assistant.ask("CCO", RINGS, **options)
    assert said[0]["conformer"]["method"] == "etkdgv3+mmff"


def test_with_memory_questions_see_those_before_them(chat, run):
    lines = ["/mol CCO", "/memory on", RINGS, ACID, "/mol CC", ACID, "/memory", "/memory off", ACID]
    code, out, err = chat(lines)
    assert (code, err) == (0, "error: /memory : say on or off\n")
    first, second, third, fourth = out.splitlines()
    assistant = load(run.checkpoint)
    turns = [{"role": "user", "content": [{"type": "molecule"}, {"type": "text", "text": RINGS}]}]
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": ACID}]
    assert second == assistant.reply(turns, "CCO", max_new_tokens=8)
    # Another molecule is another conversation.
    assert third == fourth == assistant.ask("CC", ACID, max_new_tokens=8)


def test_saving_writes_over_nothing_but_its_own(chat, tmp_path):
    (tmp_path / "mine").write_text("mine")
    lines = ["/save", "/save mine", "/save no/folder", "/save a", "/mol CCO", RINGS, "/save a"]
    code, _, err = chat(lines)
    assert code == 0
    assert (tmp_path / "mine").read_text() == "mine"
    assert len((tmp_path / "a").read_text().splitlines()) == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    for error, part in zip(errors, ("needs a file", "nothing is overwritten", "no/"), strict=True):
        assert part in error


@pytest.mark.slow
def test_lines_come_through_a_pipe(run):
    options = ["--mol", "CCO", "--max-new-tokens", "8"]
    lines = f"{RINGS}\n/mol C1CC\n{RINGS}\n"
    done = collamo_process("chat", str(run.checkpoint), *options, input=lines)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert done.stderr == ("error: SMILES 'C1CC' has an unclosed ring; fix it or drop the row\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of POSIX")
def test_an_interrupt_at_the_prompt_is_130(run, tmp_path):
    """At a terminal, which shows the prompt; answers go to stdout, a file here. Lines are kept."""
    import pty

    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "collamo", "chat", str(run.checkpoint), "--mol", "CCO"]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "4"],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
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
    assert (tmp_path / "collamo" / "chat_history").is_file()
