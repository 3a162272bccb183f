import copy
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from model_helpers import SMALL, build, foreign_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from collamo.errors import CollamoError, MissingDependencyError, UsageError
from collamo.model import build_model, language_model, tiny_llama_config


def llm(tokenizer, **options):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "intermediate_size": 32}
    return LlamaForCausalLM(tiny_llama_config(len(tokenizer), **{**sizes, **options}))


def test_from_a_folder(tokenizer, tmp_path):
    source = llm(tokenizer)
    source.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, processor = build_model(tmp_path, SMALL, selfies_tokens=["[C]", "[O]"])
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, source.eval()(input_ids=ids).logits)
    assert model.config.selfies_config.vocab_size == 4
    assert model.config.mol_token_id == processor.mol_token_id == 3
    assert model.generation_config.suppress_tokens == [3]
    assert not model.training


def test_the_placeholder_is_added_and_embeddings_widen(tokenizer):
    """A language model that never heard of `<mol>`, its tokenizer neither."""
    stranger = foreign_tokenizer()
    source = llm(stranger)
    rows = source.get_input_embeddings().num_embeddings
    model, processor = build_model((source, stranger), SMALL)
    assert model.config.mol_token_id == rows
    assert model.get_input_embeddings().num_embeddings == rows + 1
    assert model.config.text_config.vocab_size == model.lm_head.out_features == rows + 1
    batch = processor("<mol> a", ["C"], modalities=("1d", "2d"))
    assert model(**batch).logits.shape[-1] == rows + 1
    assert processor.tokenizer.pad_token == "</s>"


def test_the_language_model_is_taken_over_not_built_again(tokenizer, monkeypatch):
    """Of LLaMA-2-7B a second one, in float32, would take 27 GB."""
    source = llm(tokenizer)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    monkeypatch.setattr("collamo.model.modeling.AutoModel.from_config", pytest.fail)
    model, _ = build_model((source, tokenizer), SMALL)
    assert model.model.language_model is source.base_model
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(tokenizer, tied):
    model, _ = build_model((llm(tokenizer, tie_word_embeddings=tied), tokenizer), SMALL)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_another_architecture(tokenizer, tmp_path):
    """GPT-2 calls its embedding otherwise."""
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    config.bos_token_id, config.eos_token_id = 1, 2
    model, processor = build_model((GPT2LMHeadModel(config), copy.deepcopy(tokenizer)), SMALL)
    batch = processor(processor.prompt("What?"), ["C"], modalities=("1d", "2d"))
    assert model(**batch).logits.isfinite().all()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_model_that_scales_its_logits_is_refused(tokenizer):
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        logit_scale=0.1,
    )
    with pytest.raises(UsageError, match="linear map"):
        build_model((CohereForCausalLM(config), copy.deepcopy(tokenizer)), SMALL)


def test_missing_language_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # elsewhere somebody may have made the demonstration
    # What can only be a folder is spoken of as a folder, with what makes one.
    for name in (tmp_path / "nothing", str(tmp_path / "nothing"), "demo/tiny_lm/final", "./lm"):
        with pytest.raises(MissingDependencyError, match=r"does not exist; .*tiny_lm") as error:
            build_model(name)
        assert str(error.value).startswith(f"language model folder '{name}'")
        assert error.value.exit_code == 4
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingDependencyError, match="folder 'demo/tiny_lm' does not exist"):
        build_model("demo/tiny_lm")
    for name in ("nowhere", "nobody/nothing"):
        with pytest.raises(MissingDependencyError, match=rf"'{name}' is neither .*_OFFLINE forbid"):
            build_model(name)
    (tmp_path / "lm" / "final").mkdir(parents=True)
    with pytest.raises(MissingDependencyError, match=r"has no config\.json; .*tiny_lm"):
        build_model(tmp_path / "lm")
    (tmp_path / "lm" / "final" / "config.json").touch()
    with pytest.raises(MissingDependencyError, match=r"did you mean '.*/lm/final'"):
        build_model(tmp_path / "lm")
    with pytest.raises(MissingDependencyError, match="Llama-2-7b-chat-hf"):
        build_model()  # tests have no network
    with pytest.raises(UsageError, match="tiny_lm"):
        build_model(preset="tiny")


@pytest.mark.slow
@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_without_a_network_the_hub_is_asked_once(tmp_path, address):
    """In a process of its own: the hub's settings are read when it is imported."""
    code = "from collamo.model import build_model; build_model('nobody/nothing')"
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,  # ends a hang; the imports alone take half a minute on a busy machine
    )
    assert "Retrying" not in result.stderr
    assert f"cache of downloads, and {address} cannot be reached (" in result.stderr


def test_what_the_hub_says_of_a_name(monkeypatch):
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    monkeypatch.setattr(language_model, "AutoTokenizer", None)  # not even tried

    def unknown(self, name, timeout):
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(language_model.HfApi, "model_info", unknown)
    with pytest.raises(MissingDependencyError, match="knows no such model, or it is a private one"):
        build_model("nobody/nothing")


def test_pickled_language_model_is_not_opened(tokenizer, tmp_path):
    source = llm(tokenizer)
    source.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingDependencyError, match="safetensors"):
        build_model(tmp_path, SMALL)


def test_a_broken_language_model_is_called_broken(tokenizer):
    source = llm(tokenizer)
    with torch.no_grad():
        source.model.layers[0].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(CollamoError, match="NaN or infinite numbers: its weights are damaged"):
        build_model((source, tokenizer), SMALL)


def test_unknown_override(tokenizer):
    with pytest.raises(UsageError, match=r"did you mean 'num_layers'"):
        build(tokenizer, {"projector_config": {"num_layer": 3}})


def test_tiny_preset_sizes(tokenizer):
    """The sizes the demo is tuned for; a change should be a decision."""
    torch.manual_seed(0)
    model, _ = build_model((LlamaForCausalLM(tiny_llama_config(1024)), tokenizer))
    parts = {n: sum(p.numel() for p in m.parameters()) for n, m in model.model.named_children()}
    assert parts["language_model"] < 1.5e6
    assert sum(parts.values()) < 3e6


def test_language_model_can_be_taken_out_again(tokenizer, tmp_path):
    """The text configuration stays that of an ordinary causal LM."""
    model, _ = build(tokenizer)
    plain = AutoModelForCausalLM.from_config(model.config.text_config)
    plain.model.load_state_dict(model.model.language_model.state_dict())
    ids = torch.arange(4, 9)[None]
    with torch.no_grad():
        plain.lm_head.load_state_dict(model.lm_head.state_dict())
        assert torch.equal(plain.eval()(input_ids=ids).logits, model(input_ids=ids).logits)
