"""Write commands.md and recipe.md beside this file, from what the program itself says.

python docs/reference/make.py
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import typer
from typer.cli import get_docs_for_click

from collamo.cli import app
from collamo.training import recipe

HERE = Path(__file__).parent
NOTE = "<!-- Written by `python docs/reference/make.py`. -->"
RECIPE = """# Recipe keys

What a recipe of `collamo train` may say. On the command line a key is an option
(`--tasks.per_molecule 2`, or `--per_molecule 2` where only one key ends so); an unknown one is an
error with a suggestion. `configs/` has a recipe for each stage.
"""


def main() -> None:
    """Write both pages."""
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return file name → text of both pages."""
    return {"commands.md": commands(), "recipe.md": recipe_keys()}


def commands() -> str:
    """Return the page of all commands with their options, as typer documents them."""
    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="collamo")
    text = text.replace("# `collamo`\n", f"# Commands\n\n{NOTE}\n", 1)
    # A line for each command stands below, under its own heading, and whole.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text, count=1)
    return re.sub(r"^\* `--help`.*\n", "", text, flags=re.MULTILINE).rstrip() + "\n"


def recipe_keys() -> str:
    """Return the page of all keys of a recipe: type, default, and the text at the field."""
    parts = [RECIPE.replace("\n", f"\n\n{NOTE}\n", 1)]
    for title, cls in (
        ("A stage", recipe.Recipe),
        ("`tasks`: which questions are trained on", recipe.TaskRecipe),
        ("`lora`: adapters of the language model", recipe.LoraRecipe),
        ("`relation_rates`: learning rates of Φ2d and Φ3d", recipe.RelationRates),
    ):
        parts += [f"## {title}\n", *_about(cls), "| key | type | default | |", "|---|---|---|---|"]
        texts = _texts(cls)
        parts += [
            f"| `{field.name}` | {_type(field)} | {_default(field)} | {texts[field.name]} |"
            for field in dataclasses.fields(cls)
        ]
        parts.append("")
    return "\n".join(parts)


def _about(cls: type) -> list[str]:
    """Return what a class's docstring says beyond its first line."""
    rest = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[2]
    return [rest + "\n"] if rest else []


def _texts(cls: type) -> dict[str, str]:
    """Return field → the string that stands below it in the source."""
    body = ast.parse(dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(text.value.value.split()).replace("|", "\\|")
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _type(field: dataclasses.Field) -> str:
    """Return the annotation, in the words of whoever writes YAML."""
    words = {"Whole": "whole number", "Number": "number", "str": "text", "None": "null"}
    words |= {"bool": "true or false", "Any": "anything", "tuple": "list", "dict": "mapping"}
    words |= {"AnswerWeight": "length, root or one", "Stage": "language_model, align or tune"}
    if dataclasses.is_dataclass(field.default_factory):
        return "keys"
    text = str(field.type).replace('"', "")
    text = re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace(", ", " or "), text).replace(
        "'", ""
    )
    text = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", text)
    text = re.sub(r"dict\[(\w+), (\w+)\]", r"mapping of \1 to \2", text)
    text = re.sub(r"\w+", lambda match: words.get(match[0], match[0]), text)
    return text.replace(" | ", " or ")


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = list(field.default) if isinstance(field.default, tuple) else field.default
        return f"`{json.dumps(value)}`"
    return "" if field.default_factory is dataclasses.MISSING else "below"


if __name__ == "__main__":
    main()
