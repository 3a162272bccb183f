"""CoLLaMo: a molecular language model over relation-aware attention.

Light on purpose: names below load on first use, and the model registers with transformers' Auto
classes as soon as transformers itself is imported, before or after this package.
"""

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version

import wrapt

try:
    __version__ = version("collamo")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

_WHERE = {
    "CollamoConfig": "collamo.model",
    "CollamoForConditionalGeneration": "collamo.model",
    "CollamoModel": "collamo.model",
    "CollamoProcessor": "collamo.model",
    "Conformer": "collamo.chem.conformer",
    "Molecule": "collamo.chem.molecule",
    "MoleculeFeatureExtractor": "collamo.model",
    "MoleculeFeatures": "collamo.chem.features",
    "SelfiesVocabulary": "collamo.model",
    "build_model": "collamo.model",
    "load_checkpoint": "collamo.model",
    "parse_molecule": "collamo.chem.molecule",
}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'collamo' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_WHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@wrapt.when_imported("transformers")
def _register(transformers) -> None:
    """Import collamo.model, which registers itself, unless that import is what brought us here."""
    if "collamo.model" not in sys.modules:
        importlib.import_module("collamo.model")
