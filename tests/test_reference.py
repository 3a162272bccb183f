"""The pages of commands and recipe keys tell of what the program takes today."""

import re
import runpy
from pathlib import Path

import typer

from collamo.cli import app

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
MAKE = runpy.run_path(str(REFERENCE / "make.py"))
AGAIN = "run: python docs/reference/make.py"


def test_the_recipe_page_is_what_the_recipe_says():
    page = MAKE["recipe_keys"]()
    assert (REFERENCE / "recipe.md").read_text(encoding="utf-8") == page, AGAIN
    assert "| `relation_rates` | keys | below | Learning rates" in page
    assert "| `facts_weight` | number | `0.0` |" in page
    assert "| `quantization` | 4bit or null | `null` |" in page


def test_every_option_of_every_command_is_told_of():
    """By name alone: how typer words the rest is its own, and changes with its versions."""
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^## `collamo (\w+)`\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    group = typer.main.get_command(app)
    context = typer.Context(group)
    assert list(told) == group.list_commands(context), AGAIN
    for name, text in told.items():
        options = set(
            re.findall(r"--[a-z][a-z0-9-]*", " ".join(re.findall(r"^\* (`.*?`)", text, re.M)))
        )
        parameters = group.get_command(context, name).params
        taken = {o for p in parameters for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}
        assert options == taken - {"--help"}, f"{name}: {AGAIN}"
