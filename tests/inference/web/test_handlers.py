"""What the page's events do, without a browser: answers are those of `ask`, texts stay texts."""

import asyncio
import csv
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio", reason="make test-web")
import numpy as np  # noqa: E402
import torch  # noqa: E402

from collamo.data.batch import batch_molecules  # noqa: E402
from collamo.evaluation.examine.diagnosis.measures import attention_to_atoms  # noqa: E402
from collamo.evaluation.examine.diagnosis.observation import (  # noqa: E402
    observe,
    projector_in_use,
)
from collamo.inference.serve.app import Service  # noqa: E402
from collamo.inference.serve.gate import Limits  # noqa: E402
from collamo.inference.serve.molecule_reader import MoleculeReader  # noqa: E402
from collamo.inference.serve.transformers_engine import TransformersEngine  # noqa: E402
from collamo.inference.web import shown  # noqa: E402
from collamo.inference.web.attention import AtomAttention  # noqa: E402
from collamo.inference.web.desk import Desk, Turn  # noqa: E402
from collamo.inference.web.page import ALL, OFF, Handlers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
RINGS, ACID = "How many rings does it have?", "Is it an acid?"
VIEWS = ["1d", "2d", "3d"]


@pytest.fixture(scope="module")
def handlers(assistant):
    reader = MoleculeReader(workers=1)
    engine = TransformersEngine(assistant)
    service = Service(engine, assistant.processor, reader)
    yield Handlers(Desk(service, AtomAttention(assistant), rows=20))
    engine.close()
    reader.close()


def steps(stream):
    async def gathered():
        return [step async for step in stream]

    return asyncio.run(gathered())


def talk(handlers, *questions, molecule="CCO", memory=False, views=VIEWS):
    turns = []
    for question in questions:
        turns = steps(handlers.ask(molecule, question, views, memory, turns))[-1][-1]
    return turns


def test_an_answer_grows_to_that_of_ask(handlers, assistant):
    grown = steps(handlers.ask("OCC(O)CO", RINGS, VIEWS, False, []))
    answers = [turns[-1].answer for _, _, turns in grown]
    assert answers[-1] == assistant.ask("OCC(O)CO", RINGS)
    assert all(answers[-1].startswith(answer) for answer in answers)
    assert [turns[-1].done for _, _, turns in grown] == [False] * (len(grown) - 1) + [True]
    assert grown[0][1] == ""  # the field is empty for the next question


def test_views_and_memory(handlers, assistant):
    (one,) = talk(handlers, RINGS, views=["1d"])
    assert one.answer == assistant.ask("CCO", RINGS, modalities=("1d",))
    assert [molecule["views"] for molecule in one.read] == [["1d"]]
    alone = talk(handlers, RINGS, ACID)
    assert alone[1].answer == assistant.ask("CCO", ACID)
    first, second = talk(handlers, RINGS, ACID, memory=True)
    said = [
        {"role": "user", "content": [{"type": "molecule"}, {"type": "text", "text": RINGS}]},
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": ACID},
    ]
    assert second.answer == assistant.reply(said, "CCO")
    assert second.questions == [RINGS, ACID]


def test_what_failed_is_not_remembered(handlers):
    turns = talk(handlers, RINGS, "<mol>", ACID, memory=True)
    assert [turn.failed for turn in turns] == [False, True, False]
    assert turns[2].questions == [RINGS, ACID]
    failed = steps(handlers.ask("C1CC", RINGS, VIEWS, False, []))[-1]
    assert failed[1] == RINGS  # to be mended
    assert "unclosed ring" in failed[0]


def test_a_link_leads_to_the_same_conversation(handlers):
    turns = talk(handlers, RINGS, "and, & what?", memory=True, views=["2d", "3d"])
    address = shown.link("CCO", turns[-1].questions, turns[-1].views)
    address = address.split('href="')[1].split('"')[0].replace("&amp;", "&")
    opened = steps(handlers.opened(address))
    assert opened[0][:3] == ("CCO", ["2d", "3d"], True)
    assert [turn.answer for turn in opened[-1][-1]] == [turn.answer for turn in turns]
    assert len(steps(handlers.opened("?other=1"))) == 1


def test_two_molecules_side_by_side_and_together(handlers, assistant):
    each = steps(handlers.ask_each("CCO", "C1CC", ACID, VIEWS))[-1]
    assert each[0] == assistant.ask("CCO", ACID)
    assert "unclosed ring" in each[1]
    both = steps(handlers.ask_both("CCO", "CC(=O)O", ACID, VIEWS))[-1]
    assert both[0] == assistant.reply(ACID, ["CCO", "CC(=O)O"])
    assert both[1].count("read of") == 2


def test_pictures(handlers):
    on_paper, whole = steps(handlers.show("c1ccccc1O", VIEWS, OFF))
    assert "<svg" in on_paper[0]
    assert "<collamo-conformer" in whole[1]
    assert "etkdgv3+mmff, seed 0" in whole[1]
    assert "<ellipse" not in whole[0]
    marked = steps(handlers.show("c1ccccc1O", VIEWS, ALL))[-1][0]
    assert marked.count("<ellipse") == 7
    assert steps(handlers.show("c1ccccc1O", VIEWS, "soft token 2"))[-1][0] != marked
    assert "3D is switched off" in steps(handlers.show("CCO", ["1d"], ALL))[-1][1]
    assert steps(handlers.show(" ", VIEWS, ALL)) == [(shown.NOTHING, "")]


@pytest.mark.parametrize("views", [("1d", "2d", "3d"), ("2d",), ("1d", "3d")])
def test_the_gaze_is_what_the_diagnosis_sees(assistant, views):
    (features,) = assistant.features(["CC(=O)Oc1ccccc1"])
    vocabulary = assistant.processor.feature_extractor.vocabulary
    batch = batch_molecules([[features]], vocabulary, views)
    model = assistant.model
    with torch.no_grad():
        seen = attention_to_atoms(observe(model, projector_in_use(model, batch), batch))
    gaze = AtomAttention(assistant).look(features, views)
    assert set(gaze.shares) == set(views)
    assert 0 < sum(gaze.shares.values()) <= 1 + 1e-6
    weights = {m: gaze.shares[m] for m in seen}
    expected = sum(seen[m] * weights[m] for m in seen) / sum(weights.values())
    # Numbers around 1 in float32, added up in another order: one rounding apart as measured.
    assert np.allclose(gaze.atoms, expected, rtol=0, atol=8 * np.finfo(np.float32).eps)


def test_without_atoms_nothing_is_looked_at(assistant):
    (features,) = assistant.features(["CCO"])
    assert AtomAttention(assistant).look(features, ("1d",)) is None


def test_a_file(handlers, assistant, tmp_path):
    source = tmp_path / "questions.csv"
    rows = [("CCO", RINGS), ("C1CC", RINGS), ("InChI=1S/CH4/h1H4", ACID)]
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([("smiles", "question"), *rows])
    moves, copies = [], []

    async def answered():
        stream = handlers.answer_file(str(source), VIEWS, lambda done, **_: moves.append(done))
        async for button, table in stream:
            copies.append(Path(button.value["path"]).read_text() if button.value else None)
            yield table

    (table,) = steps(answered())
    assert "3 rows: 2 answered, 1 with errors" in table
    assert moves == [(1, 3), (2, 3), (3, 3)]
    read = list(csv.DictReader(copies[0].splitlines()))
    assert [row["status"] for row in read] == ["ok", "error", "ok"]
    assert read[0]["answer"] == assistant.ask("CCO", RINGS)
    assert read[2]["answer"] == assistant.ask("C", ACID)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "smiles,question\n" + "CCO,why?\n" * 21, "has 21 rows; at most 20"),
        ("a.txt", "CCO", "is none of .csv"),
        ("a.csv", "", "has no rows"),
    ],
)
def test_files_that_are_refused(handlers, tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    (step,) = steps(handlers.answer_file(str(tmp_path / name), VIEWS, lambda *_, **__: None))
    assert said in step[1]
    assert not step[0].interactive


@pytest.mark.parametrize("text", ["<script>x</script>", "${x}", "{{x}}", "`", "a\\b", '" onload="'])
def test_nothing_a_stranger_says_is_html_or_a_template(text):
    turns = [Turn(text, text, VIEWS, answer=text, done=True)]
    html = shown.conversation(turns) + shown.wrong(text) + shown.picture("", text)
    for mark in ("<script", "${", "{{", "`", "\\", '" onload'):
        assert mark not in html


@pytest.mark.parametrize("length", [10_001, 1_000_000])
def test_what_is_too_long_is_refused_at_once(handlers, length):
    (turn,) = talk(handlers, "C" * length)
    assert f"{length} characters" in turn.answer
    html = steps(handlers.ask("C" * 1_000_000, RINGS, VIEWS, False, []))[-1][0]
    assert "1000000 characters" in html
    assert len(html) < 2000


def test_an_answer_that_takes_too_long_is_given_up(handlers, monkeypatch):
    monkeypatch.setattr(handlers.desk.service, "limits", Limits(seconds=0.0))
    (turn,) = talk(handlers, RINGS)
    assert "no answer in time" in turn.answer
