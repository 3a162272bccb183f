"""CoLLaMo: a molecular language model over relation-aware attention.

Light on purpose: names below load on first use, and the model registers with transformers' Auto
classes as soon as transformers itself is imported, before or after this package.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

from collamo import extras

__version__ = extras.VERSION

_WHERE = {
    "Assistant": "collamo.inference.assistant",
    "CollamoConfig": "collamo.model",
    "CollamoForConditionalGeneration": "collamo.model",
    "CollamoModel": "collamo.model",
    "CollamoProcessor": "collamo.model",
    "Conformer": "collamo.chem.conformer",
    "Molecule": "collamo.chem.molecule",
    "MoleculeFeatureExtractor": "collamo.model",
    "MoleculeFeatures": "collamo.chem.features",
    "PromptEncoder": "collamo.inference.prompt_encoder",
    "SelfiesVocabulary": "collamo.model",
    "build_model": "collamo.model",
    "load": "collamo.inference.assistant",
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


def _register(transformers) -> None:
    """Import collamo.model, which registers itself, unless that import is what brought us here."""
    if "collamo.model" not in sys.modules:
        importlib.import_module("collamo.model")


if all(map(importlib.util.find_spec, ("transformers", "wrapt"))):
    import wrapt

    wrapt.register_post_import_hook(_register, "transformers")
elif sys.argv[0] != "-m" and Path(sys.argv[0]).stem != "collamo":
    # The program, `collamo` or `python -m collamo`, says the same without a traceback: __main__.py.
    raise ImportError(extras.missing_module("transformers"), name=__name__)
