"""The Python file in a saved folder with which transformers opens it by ``trust_remote_code=True``,
where nobody has imported collamo; without collamo it says what to install.

Without it AutoProcessor would take the tokenizer alone, and say nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from collamo.files import write_text

_MODULE = "modeling_collamo"
_CLASSES = {
    "AutoConfig": "CollamoConfig",
    "AutoModel": "CollamoModel",
    "AutoModelForMultimodalLM": "CollamoForConditionalGeneration",
    "AutoProcessor": "CollamoProcessor",
}
#: Of config.json and processor_config.json: which class of the stub an Auto class takes.
AUTO_MAP = {auto: f"{_MODULE}.{name}" for auto, name in _CLASSES.items()}

_STUB = f'''\
"""Opens this folder by ``trust_remote_code=True``; the model itself is in the package collamo.

    pip install 'collamo[model]'
"""

from collamo.model import {", ".join(sorted(_CLASSES.values()))}
'''


def write_stub(folder: str | os.PathLike[str]) -> None:
    """Write the file that `AUTO_MAP` names."""
    write_text(Path(folder) / f"{_MODULE}.py", _STUB)


class OpenedByStub:
    """A class that a saved folder names in its `AUTO_MAP`: it saves that map, and no sources.

    transformers copies the file of a class that it opened as remote code into what is saved; this
    one stays where it is installed.
    """

    @classmethod
    def register_for_auto_class(cls, *_: Any, **__: Any) -> None:
        """Do nothing."""
