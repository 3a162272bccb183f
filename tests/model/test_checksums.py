"""What we saved is opened only as it was saved: in one file, in shards, or as an adapter."""

import hashlib
import json
import re
import shutil
import subprocess

import pytest
import torch
from model_helpers import build
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMultimodalLM, LlamaForCausalLM

from collamo.errors import CollamoError
from collamo.model import CollamoForConditionalGeneration, load_checkpoint, tiny_llama_config
from collamo.model.checksums import CHECKSUMS, verify_checksums, write_checksums
from collamo.model.language_model import load_language_model
from collamo.training.manifest import MANIFEST, write_manifest


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """(model, folder with one file, folder with shards)"""
    model, processor = build(tokenizer)
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "sharded")]
    for folder, size in zip(folders, ("5GB", "60KB"), strict=True):
        model.save_pretrained(folder, max_shard_size=size)
        processor.save_pretrained(folder)
    return model, *folders


def flip(file, share=0.7):
    """Flip the lowest bit of one byte of the tensors: a number that looks like any other."""
    content = bytearray(file.read_bytes())
    content[int(len(content) * share)] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_a_flipped_bit_is_refused_however_the_model_is_opened(saved, tmp_path, kind):
    folder = tmp_path / "model"
    shutil.copytree(saved[1 if kind == "whole" else 2], folder)
    ways = (
        load_checkpoint,
        AutoModel.from_pretrained,
        AutoModelForMultimodalLM.from_pretrained,
        CollamoForConditionalGeneration.from_pretrained,
        lambda path: AutoModel.from_pretrained(path.parent, subfolder=path.name),
    )
    for way in ways:
        way(folder)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 1 if kind == "whole" else len(files) > 2
    expected = hashlib.sha256(files[-1].read_bytes()).hexdigest()
    flip(files[-1])
    found = hashlib.sha256(files[-1].read_bytes()).hexdigest()
    for way in ways:
        with pytest.raises(CollamoError) as caught:
            way(folder)
        for part in (str(files[-1]), found[:16], expected[:16], "copy or save the checkpoint"):
            assert part in str(caught.value)
    (folder / CHECKSUMS).unlink()  # as an older version left it: nothing to compare with
    for way in ways:
        way(folder)


def test_every_bit_counts_and_sha256sum_reads_the_file(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved[2], folder)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", CHECKSUMS], cwd=folder, check=True)
    for file in folder.glob("*.safetensors*"):
        for share in (0, 0.3, 0.999):
            flip(file, share)
            with pytest.raises(CollamoError, match=file.name):
                verify_checksums(folder)
            flip(file, share)
    verify_checksums(folder)
    for damage in ("x", " ", "\x00"):
        content = (folder / CHECKSUMS).read_text()
        (folder / CHECKSUMS).write_text(damage + content[1:])
        with pytest.raises(CollamoError, match="SHA256SUMS' is damaged"):
            load_checkpoint(folder)
        (folder / CHECKSUMS).write_text(content)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_a_flipped_bit_in_any_file_is_refused(saved, tmp_path, kind):
    """Configurations, tokenizer, chat template, stub: each changes what is answered or run."""
    base, folder = tmp_path / "base", tmp_path / "base"
    shutil.copytree(saved[1], base)
    if kind == "adapter":
        model, processor = load_checkpoint(base)
        folder = tmp_path / "adapter"
        get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
        write_checksums(folder)
        processor.save_pretrained(folder)
    load_checkpoint(folder)
    listed = {line.split()[1] for line in (folder / CHECKSUMS).read_text().splitlines()}
    assert listed == {file.name for file in folder.iterdir()} - {CHECKSUMS, "README.md"}
    assert len(listed) > 5
    for file in sorted(folder.iterdir()):
        if file.name in listed:
            for share in (0.1, 0.8):
                flip(file, share)
                with pytest.raises(CollamoError, match=f"'{file}' is damaged"):
                    load_checkpoint(folder)
                flip(file, share)
            file.rename(tmp_path / "elsewhere")
            with pytest.raises(CollamoError, match=re.escape(file.name)):
                load_checkpoint(folder)
            (tmp_path / "elsewhere").rename(file)
    (folder / "README.md").write_text("What I did with it.\n")  # a card is for people
    load_checkpoint(folder)


def test_a_lost_shard(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved[2], folder)
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CollamoError, match=lost.name):
        load_checkpoint(folder)


def test_saving_again_writes_new_checksums(saved, tmp_path):
    model, *_ = saved
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    model.save_pretrained(tmp_path)
    listed = {line.split()[1] for line in (tmp_path / CHECKSUMS).read_text().splitlines()}
    assert {name for name in listed if name.endswith(".safetensors")} == {"model.safetensors"}
    AutoModel.from_pretrained(tmp_path)


def test_an_adapter_and_its_base(saved, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(saved[1], folder)
    model, _ = load_checkpoint(folder)
    adapter = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    load_checkpoint(adapter)
    write_checksums(adapter)
    load_checkpoint(adapter)
    for file in (adapter / "adapter_model.safetensors", folder / "model.safetensors"):
        flip(file)
        with pytest.raises(CollamoError, match=str(file)):
            load_checkpoint(adapter)
        flip(file)


def test_a_checkpoint_of_the_trainer_is_checked_by_its_manifest(saved, tmp_path):
    folder = tmp_path / "checkpoint-5"
    shutil.copytree(saved[1], folder)
    (folder / CHECKSUMS).unlink()
    write_manifest(folder)
    load_checkpoint(folder)
    flip(folder / "model.safetensors")
    with pytest.raises(CollamoError, match="is damaged"):
        load_checkpoint(folder)
    for other in ("[]", "{", json.dumps({"files": ["model.safetensors"]})):
        (folder / MANIFEST).write_text(other)  # somebody else's manifest says nothing
        load_checkpoint(folder)


def test_a_language_model_of_ours(tokenizer, tmp_path):
    LlamaForCausalLM(tiny_llama_config(len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_language_model(tmp_path)
    write_checksums(tmp_path)
    load_language_model(tmp_path)
    flip(tmp_path / "model.safetensors")
    with pytest.raises(CollamoError, match="is damaged"):
        load_language_model(tmp_path)


def test_weights_replaced_on_purpose(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved[1], folder)
    file = folder / "model.safetensors"
    weights = {name: torch.zeros_like(x) for name, x in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CollamoError, match="replaced on purpose, delete SHA256SUMS"):
        load_checkpoint(folder)
    (folder / CHECKSUMS).unlink()
    load_checkpoint(folder)


def test_a_flipped_bit_in_the_list_is_not_blamed_on_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write_checksums(tmp_path)
    sums = tmp_path / CHECKSUMS
    digest = sums.read_text()
    sums.write_text(digest[:20] + ("0" if digest[20] != "0" else "1") + digest[21:])
    with pytest.raises(CollamoError, match=r"SHA256SUMS' or manifest.json beside it is damaged"):
        verify_checksums(tmp_path)
