"""Saved folders in the hands of those who never imported collamo, or have not installed it."""

import json
import os
import stat
import subprocess
import sys

import pytest
from model_helpers import build
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from collamo.model import CollamoModel, load_checkpoint

OPEN = """\
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor
import sys
assert "collamo" not in sys.modules
for auto in (AutoConfig, AutoModelForMultimodalLM, AutoModel, AutoProcessor):
    print(type(auto.from_pretrained(sys.argv[1], **OPTIONS)).__name__)
"""
#: Before anything else: as if collamo were not installed.
HIDE = """\
import sys
class Hidden:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "collamo":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""
SAVE_AGAIN = """\
from transformers import AutoModelForMultimodalLM, AutoProcessor
import sys
for auto in (AutoModelForMultimodalLM, AutoProcessor):
    auto.from_pretrained(sys.argv[1], **OPTIONS).save_pretrained(sys.argv[1] + "-again")
"""
PROCESSOR = """\
from transformers import AutoProcessor
import sys
print(type(AutoProcessor.from_pretrained(sys.argv[1], **OPTIONS)).__name__)
"""


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    model, processor = build(tokenizer)
    folder = tmp_path_factory.mktemp("stub") / "saved"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(script, folder, tmp_path, **options):
    """A process of its own, without a terminal to ask at: what it printed and complained of."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", f"OPTIONS = {options}\n{script}", folder],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    return done.stdout.split(), done.stderr


def test_trusting_the_stub_opens_what_collamo_would(saved, tmp_path):
    names, complaints = run(OPEN, saved, tmp_path, trust_remote_code=True)
    expected = ["CollamoConfig", "CollamoForConditionalGeneration", "CollamoModel"]
    assert names == [*expected, "CollamoProcessor"], complaints


def test_without_collamo_the_stub_says_what_to_install(saved, tmp_path):
    for script in (OPEN, PROCESSOR):
        names, complaints = run(HIDE + script, saved, tmp_path, trust_remote_code=True)
        assert names == []
        assert "pip install collamo" in complaints


def test_a_processor_is_never_a_bare_tokenizer(saved, tmp_path):
    printed, complaints = run(HIDE + PROCESSOR + "print('opened')\n", saved, tmp_path)
    assert "opened" not in printed  # but transformers' question, which nobody answers
    assert "trust_remote_code=True" in complaints


def test_what_was_opened_by_the_stub_is_saved_as_before(saved, tmp_path):
    """transformers would copy collamo's sources beside it, and map the Auto classes to them."""
    _, complaints = run(SAVE_AGAIN, saved, tmp_path, trust_remote_code=True)
    again = saved.with_name("saved-again")
    assert {p.name for p in again.iterdir()} == {p.name for p in saved.iterdir()}, complaints
    for name in ("config.json", "processor_config.json"):
        maps = [json.loads((folder / name).read_text())["auto_map"] for folder in (saved, again)]
        assert maps[0] == maps[1]


def test_opening_with_collamo_asks_nothing(saved):
    assert type(AutoConfig.from_pretrained(saved)).__module__ == "collamo.model.configuration"
    assert type(AutoModelForMultimodalLM.from_pretrained(saved)).__module__.startswith("collamo.")
    assert type(AutoProcessor.from_pretrained(saved)).__name__ == "CollamoProcessor"
    load_checkpoint(saved)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_says_who_may_read(tokenizer, tmp_path, umask):
    """safetensors makes its files for their owner alone."""
    model, processor = build(tokenizer)
    before = os.umask(umask)
    try:
        model.save_pretrained(tmp_path / "saved", max_shard_size="100kB")
        processor.save_pretrained(tmp_path / "saved")
        model.model.save_pretrained(tmp_path / "core")
    finally:
        os.umask(before)
    files = [*(tmp_path / "saved").iterdir(), *(tmp_path / "core").iterdir()]
    assert sum(file.suffix == ".safetensors" for file in files) > 2
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file.name
    CollamoModel.from_pretrained(tmp_path / "core")
