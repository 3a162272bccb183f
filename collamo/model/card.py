"""The README.md that is saved beside a model: what it was built from, and whose choice each
constant is."""

from __future__ import annotations

import inspect
import re

import transformers

from collamo import extras
from collamo.model.configuration import CollamoConfig

_PARTS = ("selfies_config", "gin_config", "unimol_config", "projector_config")
_DATA = "follows from the data"
_ENCODER = "the published encoder's"
_HEAD = """---
library_name: transformers
{license}tags: [chemistry, molecules, collamo]
---
# CoLLaMo

A molecular language model that reads SELFIES, graph and conformer (arXiv 2601.12256), built with
collamo {collamo} on transformers {transformers}:

    from collamo import load_checkpoint
    model, processor = load_checkpoint("this/folder")

It answers in fluent text whether right or wrong: check what it says. `collamo evaluate` compares it
with two baselines.
"""


def model_card(config: CollamoConfig) -> str:
    """Return the card of a model with `config`, as Markdown with a front matter."""
    versions = {"collamo": extras.VERSION, "transformers": transformers.__version__}
    license_of_llm = (config.sources or {}).get("llm", {}).get("license")
    line = f"license: {license_of_llm}\n" if license_of_llm else ""
    lines = [_HEAD.format(**versions, license=line), "## Built from", "", *_sources(config), ""]
    lines += ["## Constants", "", "| constant | value | whose choice |", "| --- | --- | --- |"]
    for part in _PARTS:
        chosen = getattr(config, part)
        loaded = part.removesuffix("_config") in (config.sources or {})
        for name, text in documented(type(chosen)).items():
            value, default = getattr(chosen, name), getattr(type(chosen), name)
            choice = whose_value(text, value, default)
            if loaded and name not in ("dropout", "min_sigma"):  # sizes of the weights given
                choice = _ENCODER
            lines.append(f"| {part}.{name} | {value} | {choice} |")
    lines.append(f"| modalities | {', '.join(config.modalities)} | {_modalities(config)} |")
    return "\n".join([*lines, ""])


def documented(config_class: type) -> dict[str, str]:
    """Return field → text of the Parameters section of a configuration's docstring."""
    section = (inspect.getdoc(config_class) or "").partition("Parameters\n----------\n")[2]
    section = section.partition("\n\n")[0]
    fields: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", section):
        names, _, text = entry.partition("\n")
        fields |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return fields


def whose(text: str) -> str:
    """Return whose choice a documented constant is.

    >>> whose("Attention heads H. Our choice: 8, because it suits the kernels.")
    'ours'
    """
    text = text.lower()
    if "our choice" in text or "ours:" in text:
        return "ours"
    if "release" in text:
        return _ENCODER
    return "the paper's" if "paper" in text else _DATA


def whose_value(text: str, value: object, default: object) -> str:
    """Return whose choice a value is: that of the documentation holds of the default alone.

    >>> whose_value("Attention heads H. Our choice: 8, because it suits the kernels.", 4, 8)
    'set for this model (ours: 8)'
    """
    choice = whose(text)
    if value == default or choice == _DATA:
        return choice
    return f"set for this model ({choice}: {default})"


def _sources(config: CollamoConfig) -> list[str]:
    sources = config.sources or {}
    llm = sources.get("llm", {})
    line = f"- Language model: {llm.get('name') or 'not recorded (given in memory)'}"
    if "file" in llm:
        line += (
            f" ({llm['file']}, SHA-256 `{llm['sha256']}`, {llm['license'] or 'no licence named'})"
        )
    lines = [line]
    for part, title in (("unimol", "3D encoder (Uni-Mol)"), ("gin", "2D encoder (GIN)")):
        if part in sources:
            lines.append(f"- {title}: {sources[part]['file']}, SHA-256 `{sources[part]['sha256']}`")
        else:
            lines.append(f"- {title}: no published weights, trained from nothing")
    return lines


def _modalities(config: CollamoConfig) -> str:
    return "the paper's" if len(config.modalities) == 3 else "an ablation"
