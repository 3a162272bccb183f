"""The notebooks and their pages: the same code, every picture there. `make notebooks` runs them."""

import ast
import re
import runpy
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
MAKE = runpy.run_path(str(PAGES / "make.py"))
AGAIN = "run: make notebooks"


@pytest.mark.parametrize("name", MAKE["NAMES"])
def test_a_page_shows_its_notebook(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    shown = [line.rstrip() for line in page.splitlines()]
    source = (MAKE["SOURCES"] / f"{name}.py").read_text(encoding="utf-8")
    ast.parse(source)
    lines = [line for line in source[source.index("# %%") :].splitlines() if line.strip()]
    for line in lines:
        text = re.sub(r"^# ?(!?)", r"\1", line).rstrip()
        if not line.startswith("# %%") and text:
            assert text in shown or line.rstrip() in shown, f"{line!r}: {AGAIN}"


@pytest.mark.parametrize("name", MAKE["NAMES"])
def test_every_picture_of_a_page_is_there(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    pictures = set(re.findall(r"\((\w+_files/[\w.]+)\)", page))
    there = {str(path.relative_to(PAGES)) for path in (PAGES / f"{name}_files").glob("*")}
    assert pictures == there, AGAIN
    assert pictures or name == "train_your_own"
    assert "/tmp" not in page


def test_every_notebook_is_made():
    assert sorted(path.stem for path in MAKE["SOURCES"].glob("*.py")) == sorted(MAKE["NAMES"])
