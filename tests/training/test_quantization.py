"""Both stages beside a language model of 4 bits, on the CPU; needs bitsandbytes."""

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file
from trained import CONFIGS, trained
from transformers import AutoModelForMultimodalLM

from collamo.errors import MissingDependencyError, UsageError
from collamo.model import build_model, language_model, load_checkpoint
from collamo.model.checksums import CHECKSUMS
from collamo.model.merge import merge
from collamo.training import stages
from collamo.training.recipe import load_recipe

installed = importlib.util.find_spec("bitsandbytes") is not None
needs = pytest.mark.skipif(not installed, reason="needs bitsandbytes: make test-quantization")
OPTIONS = (
    *("--bf16=true", "--use_cpu=true", "--learning_rate=1e-3", "--warmup_steps=0"),
    *("--facts_weight=0", "--train_encoders=false", "--save_steps=2"),
)


@pytest.fixture(scope="module")
def run():
    return trained()


@pytest.fixture(scope="module")
def llm(run, tmp_path_factory):
    """A language model as wide as a block of 64 weights, which share a scale."""
    sizes = ("--model.hidden_size=64", "--model.intermediate_size=64", "--max_steps=2")
    return stages.train(run.recipe("tiny_lm", tmp_path_factory.mktemp("llm"), *sizes))


@pytest.fixture(scope="module")
def options(llm):
    """Of an alignment that loads its language model in 4 bits."""
    return (*OPTIONS, f"--llm={llm}", "--quantization=4bit", "--dtype=bfloat16", "--max_steps=4")


@pytest.fixture(scope="module")
def aligned(run, options, tmp_path_factory):
    """What such an alignment leaves."""
    return stages.train(run.recipe("stage1", tmp_path_factory.mktemp("aligned"), *options))


def linears(model, kind):
    return [n for n, m in model.named_modules() if type(m).__name__ == kind]


@pytest.mark.slow
@needs
def test_alignment_leaves_four_bits_as_they_were(llm, aligned):
    model, _ = load_checkpoint(aligned)
    quantized = linears(model, "Linear4bit")
    assert len(quantized) == 2 * 7  # layers × linear maps of each
    assert all(".language_model." in name for name in quantized)
    assert not any(".language_model." in name for name in linears(model, "Linear"))
    source, _ = build_model(llm, dtype=torch.bfloat16, quantization="4bit")
    for name, parameter in source.model.language_model.named_parameters():
        if "proj" in name:
            assert torch.equal(parameter, model.get_parameter(f"model.language_model.{name}"))


@pytest.mark.slow
@needs
def test_a_resumed_alignment_gives_the_same_bits(run, options, aligned, tmp_path):
    shutil.copytree(aligned.parent, tmp_path / "again")
    for gone in ("checkpoint-4", "final"):
        shutil.rmtree(tmp_path / "again" / gone)
    again = stages.train(run.recipe("stage1", tmp_path / "again", *options), resume=True)
    once, resumed = (load_file(f / "model.safetensors") for f in (aligned, again))
    assert once.keys() == resumed.keys()
    assert [name for name in once if not torch.equal(once[name], resumed[name])] == []


@pytest.mark.slow
@needs
def test_tuning_beside_four_bits_and_what_can_be_merged(run, aligned, tmp_path):
    options = ("--bf16=true", "--use_cpu=true", "--max_steps=4", f"--init_from={aligned}")
    adapter = stages.train(run.recipe("stage2", tmp_path / "out", *options))
    assert adapter == tmp_path / "out" / "adapter"
    assert not (tmp_path / "out" / "final").exists()
    model, processor = load_checkpoint(adapter)
    weights = {n: p for n, p in model.named_parameters() if "lora_B" in n}
    targets = load_recipe(CONFIGS / "stage2.yaml").lora.targets
    assert len(weights) == 2 * len(targets)
    assert all(weight.any() for weight in weights.values())

    with pytest.raises(UsageError, match=r"held in 4 bits: .*rounded away"):
        merge(adapter, tmp_path / "no")
    merge(adapter, tmp_path / "merged", dequantize=True)
    merged = AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged")
    assert linears(merged, "Linear4bit") == []
    prompt = processor.prompt("What is its weight?")
    batch = processor(prompt, ["CCO"], modalities=("1d", "2d"))
    with torch.no_grad():
        ours, theirs = (m(**batch).logits.float() for m in (merged, model))
        model.disable_adapter_layers()
        without = model(**batch).logits.float()
    # Both compute in bfloat16: 8 bits, over two layers.
    assert (ours - theirs).abs().mean() < 0.02 * theirs.std()
    assert (ours - theirs).abs().mean() < 0.1 * (without - theirs).abs().mean()


@pytest.mark.slow
@needs
def test_an_alignment_goes_on_from_four_bits(run, aligned, tmp_path):
    options = (*OPTIONS, "--max_steps=1", "--llm=null", "--model={}", f"--init_from={aligned}")
    model, _ = load_checkpoint(stages.train(run.recipe("stage1", tmp_path, *options)))
    assert len(linears(model, "Linear4bit")) == 14


def test_without_bitsandbytes(run, monkeypatch, tmp_path):
    monkeypatch.setattr(language_model, "is_bitsandbytes_available", lambda: False)
    wanted = r"bitsandbytes: pip install 'collamo\[quantization\]'"
    with pytest.raises(MissingDependencyError, match=f"quantization 4bit needs {wanted}"):
        build_model(run.folder / "tiny_lm" / "final", quantization="4bit")
    folder = shutil.copytree(run.folder / "stage1" / "final", tmp_path / "final")
    (folder / CHECKSUMS).unlink()
    config = (folder / "config.json").read_text().rstrip().removesuffix("}")
    (folder / "config.json").write_text(config + ', "quantization_config": {}}')
    with pytest.raises(MissingDependencyError, match=f"saved in 4 bits, which needs {wanted}"):
        load_checkpoint(folder)
