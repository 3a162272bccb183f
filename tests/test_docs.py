"""The pages of docs/: their Python runs, their commands take what is shown, messages exist."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"(?: *<!-- (needs|not run): (.*?) -->\n)?( *)```(\w+)\n(.*?)```", re.S)
#: Folders that a page speaks of, each with a trained checkpoint in it.
CHECKPOINTS = {"demo/stage2/final": "final", "demo/stage2/adapter": "adapter"}


def blocks(page, language):
    """Return the blocks of a page in a language, as (condition, its text, block)."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        (condition, text, re.sub(f"^{indent}", "", code, flags=re.M))
        for condition, text, indent, name, code in found
        if name == language
    ]


def commands(page):
    """Return the calls of collamo in a page's shell blocks."""
    lines = "\n".join(code for _, _, code in blocks(page, "bash")).replace("\\\n", " ")
    calls = re.findall(r"^collamo (.*?)(?:\s#.*)?$", lines, re.M)
    return [(call.split()[0], re.findall(r"--[a-zA-Z][\w.-]*", call)) for call in calls]


def keys():
    """Return the last part of every key that a recipe may have, those of transformers too."""
    from transformers import TrainingArguments

    from collamo.training import recipe

    classes = (recipe.Recipe, recipe.TaskRecipe, recipe.LoraRecipe, recipe.RelationRates)
    return {f.name for cls in (*classes, TrainingArguments) for f in dataclasses.fields(cls)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the checkpoints that pages speak of are a small trained model."""
    from trained import trained

    folder = tmp_path_factory.mktemp("reader")
    for name, kind in CHECKPOINTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(trained().folder / "stage2" / kind)
    (folder / "demo" / "data").symlink_to(trained().data)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_the_python_of_a_page_runs(page, place, monkeypatch):
    monkeypatch.chdir(place)
    names = {"__name__": "page"}
    for condition, text, code in blocks(page, "python"):
        if condition == "not run":
            continue
        if condition == "needs" and importlib.util.find_spec(text) is None:
            continue
        exec(compile(code, f"{page.name}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_take_what_is_shown(page):
    from collamo.cli import app

    group = typer.main.get_command(app)
    context = typer.Context(group)
    for name, options in commands(page):
        command = group.get_command(context, name)
        assert command is not None, f"collamo {name}"
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        others = [option.removeprefix("--") for option in options if option not in known]
        if name in ("train", "ablate", "doctor"):  # keys of a recipe, by their last part or whole
            others = [option for option in others if option.split(".")[-1] not in keys()]
        assert others == [], f"collamo {name}"


def test_every_page_is_in_the_site():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/]+\.md", text))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert pages == named


def test_the_messages_of_the_help_page_are_those_of_the_program():
    sources = [p for name in ("collamo", "collamo_kernels") for p in (ROOT / name).rglob("*.py")]
    text = " ".join(path.read_text(encoding="utf-8") for path in [*sources, ROOT / "setup.py"])
    text = re.sub(r'"\s*f?"', "", text)  # a message on two lines
    help_page = (DOCS / "help.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.*?)`", help_page, re.M)
    assert messages
    for message in messages:
        for part in re.split(r" ?… ?", message):
            assert part.strip() in text, message
