"""The extras of the installation: what each one gives, and which one holds a missing package.

The lists themselves stand in pyproject.toml alone; they come back from the installed metadata. This
file imports the standard library only, because it speaks where nothing else is installed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re

#: What a user gets from each extra, in the words of ``collamo doctor``.
GIVES = {
    "model": "the model: load it, ask it, prepare data, train it",
    "evaluation": "scores of answers and files, judges, comparisons",
    "train": "learning curves while training",
    "web": "a page in the browser: ask, compare, answer files",
    "serve": "a server like OpenAI's that reads molecules",
    "vllm": "vLLM, which opens the model by a plugin; in an environment of its own",
    "ray": "data preparation over several machines",
    "quantization": "a language model of 4 bits",
    "gguf": "a language model in a GGUF file",
    "smollm2": "SmolLM2-135M-Instruct, a language model that speaks English (93 MB)",
    "iupac": "IUPAC names compared as structures (Java)",
    "pyg": "GPSConv of PyTorch Geometric with an attention that reads relations",
    "trl": "questions as a datasets.Dataset, and trl's trainers over it",
    "qm9": "QM9, 130,831 molecules with DFT geometries and properties (104 MB)",
    "gpu": "fused attention on an NVIDIA GPU (triton), in the language model too (flash-attn)",
    "cluster": "neighbours in structures of over 512 atoms",
    "docs": "this documentation as a site",
}
#: Modules that are not called as their package is.
PACKAGE_OF_MODULE = {"yaml": "pyyaml", "pydantic_core": "pydantic"}
NAMED = 3  # missing packages that a message names


@functools.cache
def packages() -> dict[str, tuple[str, ...]]:
    """Return the packages of each extra, those that every install has under an empty name.

    Empty in a source tree that nobody has installed.

    Examples
    --------
    >>> packages()[""]
    ('torch', 'numpy')
    """
    try:
        requirements = importlib.metadata.requires("collamo") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    lists: dict[str, list[str]] = {}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"""extra == ["']([\w-]+)["']""", requirement)
        if name != "collamo":  # an extra that takes in another one
            lists.setdefault(extra[1] if extra else "", []).append(name)
    return {extra: tuple(names) for extra, names in lists.items()}


def version(package: str) -> str | None:
    """Return the version that is installed, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


#: Of this package; a source tree that is not installed has none.
VERSION = version("collamo") or "0+unknown"


def extra_of(module: str) -> str | None:
    """Return the extra whose package a module comes with, or None where there is none.

    Examples
    --------
    >>> extra_of("rouge_score.rouge_scorer")
    'evaluation'
    """
    top = module.partition(".")[0]
    package = PACKAGE_OF_MODULE.get(top, top.replace("_", "-").lower())
    return next((extra for extra in GIVES if package in packages().get(extra, ())), None)


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra.

    Examples
    --------
    >>> how_to_install("iupac")
    "pip install 'collamo[iupac]'"
    """
    return f"pip install 'collamo[{extra}]'"


def missing_extra(extra: str, module: str) -> str:
    """Say in one line that an extra is missing, what is not there of it, and how to get it.

    `module`, which could not be imported, is named where all packages are installed.
    """
    absent = [name for name in packages().get(extra, ()) if version(name) is None] or [module]
    names = ", ".join(absent[:NAMED]) + (" …" if len(absent) > NAMED else "")
    verb = "is" if len(absent) == 1 else "are"
    return f"collamo needs the extra {extra!r} ({names} {verb} missing): {how_to_install(extra)}"


def missing_module(module: str) -> str:
    """Say in one line what to install so that a module can be imported."""
    extra = extra_of(module)
    if extra is None:
        return f"package {module!r} is not installed; `collamo doctor` says what it gives"
    return missing_extra(extra, module)
