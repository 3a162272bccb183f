"""`collamo ask` on good and bad input: exit code, one clear line, nothing lost."""

import re
import shutil

import pytest
from command_line import BAD_SMILES, assert_fails

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_ask_answers_on_stdout(collamo, run):
    question = "How many hydroxyl groups does it have?"
    code, first, err = collamo("ask", "CCO", question, "--checkpoint", run.checkpoint)
    assert code == 0, err
    assert first.endswith("\n")
    assert "error" not in err
    # SELFIES, and the same answer again
    arguments = ["ask", "[C][C][O]", question, "--checkpoint", run.checkpoint]
    assert collamo(*arguments)[1] == first


def test_ask_takes_several_questions_and_gives_a_line_for_each(collamo, run):
    questions = ["How many rings does it have?", "Is it an acid?", "How many rings does it have?"]
    options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "8"]
    one_by_one = [collamo("ask", "CCO", question, *options)[1] for question in questions]
    code, out, err = collamo("ask", "CCO", *questions, *options)
    assert (code, out, err) == (0, "".join(one_by_one), "")
    assert_fails(collamo("ask", "CCO", *questions, " ", *options), 2, "empty")


def test_ask_finds_the_checkpoint_by_itself(collamo, run, monkeypatch, tmp_path):
    monkeypatch.setenv("COLLAMO_CHECKPOINT", str(run.checkpoint))
    assert collamo("ask", "CCO", "Describe it.", "--max-new-tokens", "4")[0] == 0
    monkeypatch.delenv("COLLAMO_CHECKPOINT")
    (tmp_path / "demo" / "stage2").mkdir(parents=True)
    (tmp_path / "demo" / "stage2" / "final").symlink_to(run.checkpoint)
    assert collamo("ask", "CCO", "Describe it.", "--max-new-tokens", "4")[0] == 0


def test_ask_without_weights_is_exit_4(collamo, tmp_path):
    assert_fails(collamo("ask", "CCO", "What?"), 4, "no trained weights", "make demo")
    missing = collamo("ask", "CCO", "What?", "--checkpoint", tmp_path / "nowhere")
    assert_fails(missing, 4, "does not exist")
    assert_fails(collamo("ask", "CCO", "What?", "--checkpoint", tmp_path), 4, "config.json")


@pytest.mark.parametrize("smiles", BAD_SMILES, ids=lambda s: repr(s[:12]))
def test_ask_about_no_molecule_is_one_line_and_exit_1(collamo, run, smiles):
    result = collamo("ask", smiles, "What?", "--checkpoint", run.checkpoint)
    assert_fails(result, 1)


def test_ask_an_empty_question_is_exit_2(collamo, run):
    assert_fails(collamo("ask", "CCO", " ", "--checkpoint", run.checkpoint), 2, "empty")


def test_ask_a_question_longer_than_the_positions_is_exit_2(collamo, run):
    code, out, err = collamo("ask", "CCO", "why " * 5000, "--checkpoint", run.checkpoint)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert re.match(r"error: prompt 0 '.{,80}' has \d+ tokens, .* has 1024 positions", last), err
    assert "Token indices sequence" not in err


def test_ask_with_a_placeholder_in_the_question_is_refused(collamo, run):
    code, out, err = collamo("ask", "CCO", "a <mol> b", "--checkpoint", run.checkpoint)
    assert code == 2
    assert out == ""
    assert "<mol>" in err.splitlines()[-1]


def test_a_molecule_too_large_for_a_conformer_is_answered_without(collamo, run):
    options = ["--checkpoint", run.checkpoint, "--time-limit", "1", "--max-new-tokens", "4"]
    code, _, err = collamo("ask", "C" * 300, "Describe it.", *options)
    assert code == 0
    assert "answered without 3D: no geometry within 1 s of processor time" in err


def test_a_damaged_checkpoint_is_one_line(collamo, run, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run.checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, out, err = collamo("ask", "CCO", "What?", "--checkpoint", broken)
    assert code in (1, 4)
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    weights.unlink()
    assert collamo("ask", "CCO", "What?", "--checkpoint", broken)[0] == 4
