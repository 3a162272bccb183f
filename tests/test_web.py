"""The page in the browser: drawings, answers and refusals, and with Gradio the page itself."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
from trained import trained

from collamo.errors import MissingDependencyError
from collamo.inference.assistant import load

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
EXAMPLE = Path(__file__).parents[1] / "examples/web.py"
QUESTION = "How many rings does it have?"


@pytest.fixture(scope="module")
def web():
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def assistant():
    return load(trained().checkpoint)


def test_a_drawing_is_svg_or_the_reason(web):
    assert web["drawing"]("CCO").startswith("<svg")
    assert "no molecule" in web["drawing"]("  ")
    refused = web["drawing"]("<script>alert(1)</script>")
    assert "&lt;script&gt;" in refused
    assert "<script" not in refused


def test_answers_are_those_of_the_model(web, assistant):
    ask = web["answerer"](assistant)
    picture, text = ask("c1ccccc1", QUESTION)
    assert picture.startswith("<svg")
    assert text == assistant.ask("c1ccccc1", QUESTION)


@pytest.mark.parametrize(
    ("smiles", "question", "said"),
    [
        ("C1CC", QUESTION, "has an unclosed ring"),
        ("CCO", " ", "ask a question"),
        ("CCO", "why " * 300, "at most 1000 characters"),
        ("CCO", "<mol>?", "take it out"),
    ],
)
def test_what_is_wrong_is_said_and_not_raised(web, assistant, smiles, question, said):
    assert said in web["answerer"](assistant)(smiles, question)[1]


def test_without_gradio_the_extra_is_named(web, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingDependencyError, match=r"collamo\[web\]"):
        web["page"](None)


def test_without_weights_is_exit_4(web, tmp_path, capsys):
    assert web["main"](["--checkpoint", str(tmp_path / "nowhere")]) == 4
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.skipif(
    not importlib.util.find_spec("gradio"), reason="needs pip install 'collamo[web]'"
)
def test_the_page_asks(web):
    asked = []

    def ask(smiles, question):
        asked.append((smiles, question))
        return "<svg/>", "seven"

    blocks = web["page"](ask)
    functions = [f for f in blocks.fns.values() if f.api_name and f.api_name.startswith("ask")]
    assert len(functions) == 2  # the button, and Enter in the question
    for function in functions:
        assert function.fn("CCO", QUESTION) == ("<svg/>", "seven")
        labels = [b.label for b in function.inputs]
        assert labels == ["Molecule (SMILES or SELFIES)", "Question"]
    assert asked == [("CCO", QUESTION)] * 2
