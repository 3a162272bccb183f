"""LoRA on the language model, the projector trained and saved whole, and opening it all again."""

import json
import shutil

import pytest
import torch
from model_helpers import build
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
)

from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.model import CollamoForConditionalGeneration, load_checkpoint
from collamo.model.checkpoints import load_molecule_parts
from collamo.model.checksums import CHECKSUMS
from collamo.model.merge import merge

LORA = LoraConfig(
    r=2,
    target_modules=r"model\.language_model\..*\.(q_proj|v_proj)",
    modules_to_save=["mol_projector"],
    task_type="CAUSAL_LM",
)


@pytest.fixture
def base(tokenizer, tmp_path):
    """A saved model: (folder, model, processor)."""
    model, processor = build(tokenizer)
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    model, _ = load_checkpoint(folder)
    return folder, model, processor


def stirred(peft_model):
    """Give every trainable parameter a value of its own."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return peft_model.eval()


def test_exactly_the_expected_parameters_train(base):
    """modules_to_save matches by suffix and ignores bare parameters without a word."""
    _, model, _ = base
    projector = {n for n, _ in model.model.mol_projector.named_parameters()}
    assert any("queries" in name for name in projector)
    peft_model = get_peft_model(model, LORA)
    trained = {n for n, p in peft_model.named_parameters() if p.requires_grad}
    prefix = "base_model.model.model."
    saved = f"{prefix}mol_projector.modules_to_save.default."
    expected = {saved + name for name in projector} | {
        f"{prefix}language_model.layers.{layer}.self_attn.{proj}.lora_{ab}.default.weight"
        for layer in range(2)
        for proj in ("q_proj", "v_proj")
        for ab in "AB"
    }
    assert trained == expected


def test_no_module_name_ends_like_another(base):
    """`modules_to_save` and `target_modules` match suffixes: the projector's name is unique."""
    _, model, _ = base
    names = [name for name, _ in model.named_modules()]
    assert sum(name.endswith("mol_projector") for name in names) == 1
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert all("language_model" in n for n in names if n.endswith(name))


def test_adapter_round_trip(base, inputs, tmp_path):
    folder, model, processor = base
    peft_model = stirred(get_peft_model(model, LORA))
    peft_model.peft_config["default"].base_model_name_or_path = str(folder)
    adapter = tmp_path / "adapter"
    peft_model.save_pretrained(adapter)
    assert (adapter / "adapter_model.safetensors").is_file()
    again, reopened = load_checkpoint(adapter)
    assert isinstance(again, PeftModel)
    assert reopened.num_query_tokens == processor.num_query_tokens
    ours, theirs = peft_model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        # Equal weights in other places of memory: BLAS may sum in another order, so not equal bits.
        ours, theirs = (m(**inputs).logits for m in (peft_model, again))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    options = {"max_new_tokens": 4, "do_sample": False}
    tokens = peft_model.generate(**inputs, **options)
    assert torch.equal(tokens, again.generate(**inputs, **options))


def test_merged_adapter_is_a_plain_checkpoint(base, inputs, tmp_path):
    _, model, processor = base
    peft_model = stirred(get_peft_model(model, LORA))
    with torch.no_grad():
        expected = peft_model(**inputs).logits
    merged = peft_model.merge_and_unload()
    merged.save_pretrained(tmp_path / "final")
    processor.save_pretrained(tmp_path / "final")
    again, _ = load_checkpoint(tmp_path / "final")
    assert isinstance(again, CollamoForConditionalGeneration)
    ours, theirs = merged.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        # Merging adds B·A to the weight before the product instead of after: rounding.
        torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-4, rtol=0)


def test_training_the_adapter_moves_only_it(base, inputs):
    _, model, _ = base
    peft_model = get_peft_model(model, LORA)
    before = {n: p.clone() for n, p in peft_model.named_parameters()}
    statistics = {n: b.clone() for n, b in peft_model.named_buffers()}
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=1.0)
    peft_model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    moved = {n for n, p in peft_model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_B" in n or "mol_projector.modules_to_save" in n for n in moved)
    for name, buffer in peft_model.named_buffers():
        assert torch.equal(buffer, statistics[name]), name


# --- adapters on any part, as peft's users place them -------------------------------------

EMBEDDINGS = r".*\.((atom|bond)_embedding_list\.\d|gbf\.(means|stds))"
PLACES = {
    "every linear layer": {"target_modules": "all-linear"},
    "all but the projector": {
        "target_modules": "all-linear",
        "modules_to_save": ["mol_projector"],
    },
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "every bias": {"target_modules": "all-linear", "bias": "all"},
    "embeddings of the encoders": {"target_modules": EMBEDDINGS},
    "a whole encoder": {"target_modules": ["q_proj"], "modules_to_save": ["graph_encoder"]},
    "heads": {"target_modules": ["q_proj"], "modules_to_save": ["head"]},
}


@pytest.mark.parametrize("flavour", ["ogb", "pretrain-gnns"])
@pytest.mark.parametrize("place", PLACES)
def test_the_saved_adapter_is_the_trained_model(tokenizer, inputs, tmp_path, place, flavour):
    """Read past its adapter a layer is the frozen one; a drifting batch norm is in no file."""
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **PLACES[place])
    model, fresh = (build(tokenizer, {"gin_config.flavour": flavour})[0] for _ in range(2))
    peft_model = stirred(get_peft_model(model, config))
    frozen = {n: p.clone() for n, p in peft_model.named_parameters() if not p.requires_grad}
    learned = [p for p in peft_model.parameters() if p.requires_grad]
    for _ in range(2):
        peft_model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in learned)
    assert place == "every bias" or all(p.grad.any() for p in learned)  # of keys: nothing, truly
    peft_model.save_pretrained(tmp_path, save_embedding_layers=False)
    again = PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert all(torch.equal(again.get_parameter(name), p) for name, p in frozen.items())
    with torch.no_grad():
        expected, adapted = peft_model.eval()(**inputs).logits, again(**inputs).logits
        torch.testing.assert_close(adapted, expected, atol=1e-5, rtol=0)
        merged = again.merge_and_unload()(**inputs).logits  # weights alone, without adapters
        torch.testing.assert_close(merged, expected, atol=1e-4, rtol=0)


# --- merging -----------------------------------------------------------------------------


@pytest.fixture
def adapter(base, tmp_path):
    """A stirred adapter on disk: (folder, its model)."""
    folder, model, processor = base
    peft_model = stirred(get_peft_model(model, LORA))
    peft_model.peft_config["default"].base_model_name_or_path = str(folder)
    peft_model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", peft_model


def test_a_merged_model_stands_alone_and_answers_the_same(adapter, base, inputs, tmp_path):
    folder, peft_model = adapter
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = peft_model.generate(**inputs, **options)
    (tmp_path / "served").mkdir()
    merge(folder, tmp_path / "served")
    merge(folder, tmp_path / "new" / "served")
    shutil.rmtree(folder)
    shutil.rmtree(base[0])
    for served in (tmp_path / "served", tmp_path / "new" / "served"):
        assert {"model.safetensors", "processor_config.json"} <= {p.name for p in served.iterdir()}
        model = AutoModelForMultimodalLM.from_pretrained(served)
        assert isinstance(model, CollamoForConditionalGeneration)
        assert not any("lora" in name for name, _ in model.named_parameters())
        processor = AutoProcessor.from_pretrained(served)
        assert torch.equal(expected, model.generate(**inputs, **options))
        prompt = processor.prompt("What is it?")
        batch = processor(prompt, ["CCO"], modalities=("1d", "2d"))
        answers = [m.generate(**batch, **options) for m in (model, peft_model)]
        assert torch.equal(*answers)
    assert not list(tmp_path.glob(".served-*"))


def test_the_language_model_by_itself_goes_on_from_the_same_embeddings(
    adapter, base, inputs, tmp_path
):
    """A plain LLaMA with LoRA folded in, that transformers opens without collamo's classes."""
    folder, peft_model = adapter
    assert merge(folder, language_model=tmp_path / "llm") == [tmp_path / "llm"]
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    assert type(llm).__name__ == "LlamaForCausalLM"
    assert CHECKSUMS in {path.name for path in (tmp_path / "llm").iterdir()}
    core = peft_model.get_base_model().model
    embeds = []
    handle = core.language_model.register_forward_pre_hook(
        lambda *call: embeds.append(call[2]["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        expected = peft_model(**inputs).logits
        handle.remove()
        found = llm(inputs_embeds=embeds[0], attention_mask=inputs["attention_mask"]).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=0)
    assert llm.generation_config.suppress_tokens == [core.config.mol_token_id]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "llm")) == len(base[2].tokenizer)


def test_of_a_whole_model_the_language_model_can_be_written(base, tmp_path):
    whole, model, _ = base
    merge(whole, language_model=tmp_path / "llm")
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm").state_dict()
    own = model.model.language_model.state_dict()
    assert all(torch.equal(llm[f"model.{name}"], own[name]) for name in own)
    with pytest.raises(UsageError, match="nothing to write"):
        merge(whole)
    with pytest.raises(UsageError, match="give two folders"):
        merge(whole, tmp_path / "a", language_model=tmp_path / "a")
    with pytest.raises(UsageError, match="exists; nothing is overwritten"):
        merge(whole, language_model=tmp_path / "llm")


@pytest.mark.parametrize("place", ["every linear layer", "a whole encoder"])
def test_parts_without_a_language_model_take_what_was_trained_whole(base, tmp_path, place):
    folder, model, processor = base
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **PLACES[place])
    peft_model = stirred(get_peft_model(model, config))
    peft_model.peft_config["default"].base_model_name_or_path = str(folder)
    peft_model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    processor.save_pretrained(tmp_path / "adapter")
    if place == "every linear layer":
        with pytest.raises(UsageError, match="LoRA outside the language model's layers"):
            load_molecule_parts(tmp_path / "adapter")
        return
    parts, _ = load_molecule_parts(tmp_path / "adapter")
    trained = peft_model.get_base_model().model.graph_encoder.modules_to_save["default"]
    trained, own = trained.state_dict(), parts.graph_encoder.state_dict()
    assert own.keys() == trained.keys()
    assert all(torch.equal(own[name], trained[name]) for name in own)


def test_merging_overwrites_nothing(adapter, base, tmp_path):
    folder, _ = adapter
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for out in (tmp_path / "full", tmp_path / "full" / "mine", folder):
        with pytest.raises(UsageError, match="exists; nothing is overwritten"):
            merge(folder, out)
    with pytest.raises(UsageError, match="holds no adapter: it is a whole model"):
        merge(base[0], tmp_path / "out")
    with pytest.raises(UsageError, match="not quantized"):
        merge(folder, tmp_path / "out", dequantize=True)
    with pytest.raises(MissingDependencyError, match="does not exist"):
        merge(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- what cannot be opened ------------------------------------------------------------


def test_missing_folder(tmp_path):
    with pytest.raises(MissingDependencyError, match=r"does not exist; .*stage1"):
        load_checkpoint(tmp_path / "nothing")
    with pytest.raises(MissingDependencyError, match=r"no config\.json"):
        load_checkpoint(tmp_path)


def test_another_kind_of_model(base, tmp_path):
    _, model, _ = base
    model.config.text_config.save_pretrained(tmp_path / "llm")
    with pytest.raises(UsageError, match="'llama', not a CoLLaMo checkpoint"):
        load_checkpoint(tmp_path / "llm")


def test_pickled_weights_are_not_opened(base):
    folder, model, _ = base
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(MissingDependencyError, match="pickled weights"):
        load_checkpoint(folder)


def test_broken_config_and_missing_processor(base):
    folder, _, _ = base
    (folder / CHECKSUMS).unlink()  # as somebody else left it
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).unlink()
        with pytest.raises(CollamoError, match=rf"processor in .* it has no {name}"):
            load_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CollamoError, match="not valid JSON"):
        load_checkpoint(folder)


def test_weights_that_do_not_fit_their_configuration(base):
    """A layer that no file has would be drawn at random, and answer."""
    folder, _, _ = base
    path, weights = folder / "config.json", folder / "model.safetensors"
    (folder / CHECKSUMS).unlink()  # what follows is done on purpose
    config = json.loads(path.read_text())
    for field, value, words in (
        (
            "num_layers",
            3,
            r"lack \d+ tensors that .* describes, such as model\.graph_encoder\.batch_norms\.2",
        ),
        ("hidden_size", 40, "have other sizes than its config.json says"),
        ("flavour", "obg", r"config\.json' is no configuration: .*'flavour'"),
    ):
        changed = {**config, "gin_config": {**config["gin_config"], field: value}}
        path.write_text(json.dumps(changed))
        with pytest.raises(CollamoError, match=words):
            load_checkpoint(folder)
    path.write_text(json.dumps(config))
    load_checkpoint(folder)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CollamoError, match="truncated or damaged"):
        load_checkpoint(folder)


def test_adapter_without_its_base(base, tmp_path, monkeypatch):
    (tmp_path / "else" / "where").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "else" / "where")  # nothing of that name beside it
    folder, model, _ = base
    peft_model = get_peft_model(model, LORA)
    adapter = tmp_path / "adapter"
    peft_model.save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../base"  # relative to the adapter
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert isinstance(load_checkpoint(adapter)[0], PeftModel)
    shutil.rmtree(folder)
    with pytest.raises(MissingDependencyError, match=r"trained on '\.\./base', which is not there"):
        load_checkpoint(adapter)
