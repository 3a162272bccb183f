"""How an evaluation was made: the part of its report that names hashes, settings, versions."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

from collamo.evaluation.report.page import Section

PACKAGES = ("collamo", "nltk", "rouge-score", "rapidfuzz", "pint", "rdkit", "tokenizers", "numpy")


def versions(further: Iterable[str] = ()) -> dict[str, str | None]:
    """Return the versions of `PACKAGES` and `further` ones; None for one that is not installed."""
    return {name: _version(name) for name in (*PACKAGES, *further)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def not_scored(manifest: Mapping[str, Any]) -> list[Section]:
    """Return the section of scores that are absent, if any are."""
    absent = [[name, reason] for name, reason in manifest["absent"].items()]
    return [Section("Not scored", header=["score", "why"], rows=absent)] if absent else []


def how_measured(manifest: Mapping[str, Any], text: str = "") -> Section:
    """Return the section of hashes, settings and versions."""
    rows = [
        [name, str(value)]
        for name, value in {**manifest, **manifest["versions"]}.items()
        if name not in ("absent", "versions") and value is not None
    ]
    return Section("How it was measured", text, header=["what", "which"], rows=rows)
