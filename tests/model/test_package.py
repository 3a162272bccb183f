"""What importing costs and does, each in an interpreter of its own."""

import subprocess
import sys

import pytest

REGISTERED = (
    "from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor\n"
    "config = AutoConfig.for_model('collamo')\n"
    "print(type(config).__name__, AutoModelForMultimodalLM._model_mapping[type(config)].__name__)"
)
EXPECTED = "CollamoConfig CollamoForConditionalGeneration"


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    heavy = "{'torch', 'transformers', 'rdkit', 'numpy', 'peft'} & set(sys.modules)"
    assert run(f"import collamo, sys; print({heavy} or 'light')") == "light"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import transformers, collamo",
        # The other order, and peft only half imported when transformers, and so collamo, load.
        "import collamo, peft",
    ],
)
def test_auto_classes_know_the_model(imports):
    assert run(f"{imports}\n{REGISTERED}") == EXPECTED


def test_public_names():
    import collamo
    from collamo.model import CollamoConfig

    assert collamo.CollamoConfig is CollamoConfig
    assert set(collamo.__all__) <= set(dir(collamo))
    for name in collamo.__all__:
        assert getattr(collamo, name) is not None
    with pytest.raises(AttributeError, match="'collamo' has no attribute 'CollamoKonfig'"):
        collamo.CollamoKonfig  # noqa: B018
