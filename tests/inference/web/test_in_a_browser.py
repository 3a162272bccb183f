"""The page in a real Chromium: what it draws, answers, compares, takes and hands back."""

import csv
import re

import pytest

pytest.importorskip("gradio", reason="make test-web")
playwright = pytest.importorskip("playwright.sync_api", reason="make test-web")
expect = playwright.expect
expect.set_options(timeout=120_000)

pytestmark = pytest.mark.filterwarnings("ignore")
RINGS, ACID = "How many rings does it have?", "Is it an acid?"
ALL = ("1d", "2d", "3d")


def field(page, name):
    return page.locator(f"#{name} textarea, #{name} input").first


def said(page, number=1):
    """The answer of this number of the conversation, once its link is there."""
    expect(page.locator("#conversation a")).to_have_count(number)
    return page.locator("#conversation .answer").last.inner_text()


def ask(page, molecule, question):
    field(page, "molecule").fill(molecule)
    field(page, "question").fill(question)
    page.click("#ask")


def choose(page, name):
    page.locator("#gaze input").click()
    page.get_by_role("option", name=name, exact=True).click()


def atoms(page, name="molecule"):
    """How many atoms the conformer has that is shown."""
    shown = page.locator(f"#{name}-conformer collamo-conformer[data-atoms]")
    shown.wait_for()
    return int(shown.get_attribute("data-atoms"))


def test_a_molecule_is_drawn_and_stands_in_space(look):
    page = look()
    assert atoms(page) == 13  # aspirin, which the page begins with
    field(page, "molecule").fill("c1ccccc1")
    expect(page.locator("#molecule-conformer collamo-conformer")).to_have_attribute(
        "data-atoms", "6"
    )
    expect(page.locator("#molecule-conformer")).to_contain_text("etkdgv3+mmff, seed 0")
    expect(page.locator("#molecule-picture svg")).to_be_visible()
    assert page.locator("collamo-conformer canvas").count() == 1


def test_the_answer_is_that_of_ask_and_says_what_was_read(look, assistant):
    page = look()
    ask(page, "OCC(O)CO", RINGS)
    answer = said(page)
    assert answer
    assert answer == assistant.ask("OCC(O)CO", RINGS)
    expect(page.locator("#conversation")).to_contain_text("read of OCC(O)CO: 1D, 2D, 3D")


def test_views_are_switched_off(look, assistant):
    page = look()
    for view in ("1D", "3D"):
        page.get_by_label(view, exact=True).uncheck()
    expect(page.locator("#molecule-conformer")).to_contain_text("3D is switched off")
    ask(page, "c1ccccc1O", RINGS)
    assert said(page) == assistant.ask("c1ccccc1O", RINGS, modalities=("2d",))
    expect(page.locator("#conversation")).to_contain_text("read of c1ccccc1O: 2D")
    expect(page.locator("#conversation")).not_to_contain_text("3D")


@pytest.mark.parametrize(
    ("molecule", "question", "reason"),
    [
        ("C1CC", RINGS, "has an unclosed ring"),
        ("CCO", "  ", "please ask a question"),
        ("  ", RINGS, "there is no molecule"),
        ("CCO", "what is <mol>?", "take it out"),
    ],
)
def test_what_is_wrong_is_said_in_the_conversation(look, molecule, question, reason):
    page = look()
    ask(page, molecule, question)
    expect(page.locator("#conversation .answer")).to_contain_text(reason)


def test_without_any_view_it_says_so(look):
    page = look()
    for view in ("1D", "2D", "3D"):
        page.get_by_label(view, exact=True).uncheck()
    ask(page, "CCO", RINGS)
    expect(page.locator("#conversation .answer")).to_contain_text("switch one on")


def test_with_memory_a_question_sees_those_before(look, assistant):
    page = look()
    page.get_by_label("Questions see those before them").check()
    ask(page, "CCO", RINGS)
    first = said(page)
    field(page, "question").fill(ACID)
    page.click("#ask")
    answer = said(page, 2)
    link = page.locator("#conversation a").last.get_attribute("href")
    conversation = [
        {"role": "user", "content": [{"type": "molecule"}, {"type": "text", "text": RINGS}]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": ACID},
    ]
    assert answer == assistant.reply(conversation, "CCO")
    assert said(look(link), 2) == answer


def test_what_the_soft_tokens_look_at_is_marked(look):
    page = look()
    atoms(page)
    assert page.locator("#molecule-picture ellipse").count() == 0
    choose(page, "all soft tokens")
    expect(page.locator("#molecule-picture ellipse")).to_have_count(13)
    expect(page.locator("#molecule-picture")).to_contain_text(re.compile(r"1D \d+ %, 2D \d+ %"))
    together = page.locator("#molecule-picture svg").inner_html()
    choose(page, "soft token 1")
    expect(page.locator("#molecule-picture svg")).not_to_have_js_property("innerHTML", together)
    for view in ("2D", "3D"):
        page.get_by_label(view, exact=True).uncheck()
    expect(page.locator("#molecule-picture ellipse")).to_have_count(0)  # no atom is read


def test_two_molecules_are_compared(look, assistant):
    page = look()
    page.get_by_role("tab", name="Compare").click()
    field(page, "molecule-1").fill("CCO")
    field(page, "molecule-2").fill("CC(=O)O")
    assert (atoms(page, "molecule-1"), atoms(page, "molecule-2")) == (3, 4)
    field(page, "compared-question").fill(ACID)
    page.click("#ask-each")
    expect(field(page, "answer-1")).to_have_value(assistant.ask("CCO", ACID))
    expect(field(page, "answer-2")).to_have_value(assistant.ask("CC(=O)O", ACID))
    expect(page.locator("#compared-status")).to_contain_text("read of CC(=O)O: 1D, 2D, 3D")
    page.click("#ask-both")
    both = assistant.reply(ACID, ["CCO", "CC(=O)O"])
    expect(field(page, "answer-both")).to_have_value(both)


def test_a_file_is_answered_and_handed_back(look, assistant, tmp_path):
    page = look()
    rows = [("CCO", RINGS, "a"), ("C1CC", RINGS, "<i>b</i>"), ("c1ccccc1", ACID, "c")]
    source = tmp_path / "questions.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([("smiles", "question", "name"), *rows])
    page.get_by_role("tab", name="File").click()
    page.locator("#file input[type=file]").set_input_files(source)
    expect(page.locator("#file")).to_contain_text("questions")
    page.click("#answer-file")
    expect(page.locator("#rows")).to_contain_text("3 rows: 2 answered, 1 with errors")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "questions.answers.csv"
    with open(download.value.path(), newline="") as file:
        answered = list(csv.DictReader(file))
    assert [row["name"] for row in answered] == ["a", "<i>b</i>", "c"]
    assert [row["status"] for row in answered] == ["ok", "error", "ok"]
    assert [answered[place]["answer"] for place in (0, 2)] == [
        assistant.ask("CCO", RINGS),
        assistant.ask("c1ccccc1", ACID),
    ]
    assert "row 2: " in answered[1]["reason"]


def test_a_link_asks_again(look, assistant):
    page = look()
    page.get_by_label("2D", exact=True).uncheck()
    ask(page, "O=C(O)c1ccccc1", "Is it an acid, & what else?")
    answer = said(page)
    link = page.locator("#conversation a").get_attribute("href")
    again = look(link)
    assert said(again) == answer
    assert field(again, "molecule").input_value() == "O=C(O)c1ccccc1"
    expect(again.locator("#conversation .question")).to_contain_text("Is it an acid, & what else?")
    expect(again.get_by_label("2D", exact=True)).not_to_be_checked()
    assert again.locator("#conversation a").get_attribute("href") == link


def test_a_phone(look):
    page = look(width=375)
    ask(page, "CC(=O)Oc1ccccc1C(=O)O", RINGS)
    said(page)
    atoms(page)
    choose(page, "all soft tokens")
    expect(page.locator("#molecule-picture ellipse")).to_have_count(13)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_by_keyboard_alone(look, assistant):
    page = look()

    def tab_to(inside):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => !!document.activeElement.closest(s)", inside):
                return
        raise AssertionError(f"Tab never came to {inside}")

    tab_to("#molecule")
    page.keyboard.press("Control+A")
    page.keyboard.type("OCCO")
    assert atoms(page) in (4, 13)
    expect(page.locator("collamo-conformer")).to_have_attribute("data-atoms", "4")
    tab_to("collamo-conformer")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("collamo-conformer")).to_have_attribute("data-turned", "ArrowLeft")
    tab_to("#question")
    page.keyboard.press("Control+A")
    page.keyboard.type(RINGS)
    page.keyboard.press("Enter")
    assert said(page) == assistant.ask("OCCO", RINGS)
