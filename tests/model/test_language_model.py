"""Language models of other makes, LLaMA-2's form of a chat, attention and 4 bits."""

import copy
import json

import jinja2
import pytest
import torch
import transformers
from model_helpers import SMALL, foreign_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForMultimodalLM, LlamaForCausalLM, LlamaTokenizer

from collamo.errors import MissingDependencyError, UsageError
from collamo.model import build_model, language_model, load_checkpoint, tiny_llama_config
from collamo.training.freezing import assert_trained
from collamo.training.lora import add_lora, expected_with_lora
from collamo.training.recipe import LoraRecipe

NO_3D = ("1d", "2d")
GREEDY = {"max_new_tokens": 5, "do_sample": False}
SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1},
    **{"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128},
}
LONG_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 64},
    **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
MAKES = {
    "Llama-3": ("Llama", {"rope_parameters": LONG_ROPE}),
    "Llama-3.2": ("Llama", {"rope_parameters": LONG_ROPE, "tie_word_embeddings": True}),
    "Mistral": ("Mistral", {"sliding_window": 8}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True, "spare_rows": 9}),
    "Qwen3": ("Qwen3", {"head_dim": 16}),
}


@pytest.fixture(params=MAKES)
def folder(request, tmp_path):
    """A small random model of that make, and a tokenizer without `<mol>` and padding."""
    name, options = MAKES[request.param]
    tokenizer = foreign_tokenizer()
    # Qwen's embeddings have more rows than its tokenizer has tokens.
    rows = len(tokenizer) + (options := dict(options)).pop("spare_rows", 0)
    kind, config = (getattr(transformers, name + end) for end in ("ForCausalLM", "Config"))
    model = kind(config(vocab_size=rows, pad_token_id=None, **{**SIZES, **options}))
    model.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def test_another_make_end_to_end(folder, features, tmp_path):
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    model, processor = build_model(folder, SMALL)
    assert processor.tokenizer.pad_token == "</s>"
    assert model.config.mol_token_id == len(processor.tokenizer) - 1
    size = max(rows, len(processor.tokenizer))
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == size
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings == model.config.text_config.tie_word_embeddings

    prompts = [processor.prompt("What?" + " Why?" * i) for i in range(len(features))]
    batch = processor(prompts, list(features.values()))
    answers = model.generate(**batch, **GREEDY)
    assert torch.equal(answers, model.generate(**batch, **GREEDY, use_cache=False))
    length = batch["input_ids"].shape[1]
    for row, molecule in enumerate(features.values()):
        alone = model.generate(**processor(prompts[row], [molecule]), **GREEDY)
        assert torch.equal(answers[row, length:], alone[0, -(answers.shape[1] - length) :])

    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(answers, again.generate(**batch, **GREEDY))
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied


def test_lora_finds_its_targets_in_another_make(folder, features):
    model, processor = build_model(folder, SMALL)
    lora = LoraRecipe()
    expected = expected_with_lora(model, lora)
    adapted = add_lora(model, lora)
    assert_trained(adapted, expected, "tune")
    assert sum("lora_" in name for name in expected) == 2 * 2 * 2  # layers × (q, v) × (A, B)
    batch = processor([processor.prompt("What?")], [features["CCO"]], suffix=["12.5"])
    adapted.train()(**batch).loss.backward()
    moved = {n for n, p in adapted.named_parameters() if p.grad is not None and p.grad.any()}
    assert {n for n in expected if "lora_B" in n} <= moved


# --- LLaMA-2's chat ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_tokenizer():
    """Of LLaMA-2's kind: pieces with a blank in front, and bytes as a last resort."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
        show_progress=False,
    )
    learned = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(["[INST] [/INST] What is its weight? 12.5"] * 9, trainer)
    pieces = json.loads(learned.to_str())["model"]
    merges = [tuple(merge) for merge in pieces["merges"]]
    return LlamaTokenizer(vocab=pieces["vocab"], merges=merges)


@pytest.fixture
def chat(llama_tokenizer):
    """The processor of a small model with the preset's form of a chat."""
    source = LlamaForCausalLM(tiny_llama_config(len(llama_tokenizer), hidden_size=32))
    overrides = {**SMALL, "projector_config": {**SMALL["projector_config"], "num_layers": 1}}
    tokenizer = copy.deepcopy(llama_tokenizer)
    return build_model((source, tokenizer), overrides, preset="llama2-7b")[1]


def test_llama2_reads_prompts_in_the_form_it_learned(chat):
    assert chat.prompt("What?") == "<s>[INST] <mol>\nWhat? [/INST]"
    assert chat.further_prompt(" Why? ") == "<s>[INST] Why? [/INST]"
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "molecule"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Ethanol."},
        {"role": "user", "content": "Why?"},
    ]
    assert chat.apply_chat_template(turns) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<mol>\nWhat? [/INST] Ethanol. </s>"
        "<s>[INST] Why? [/INST]"
    )
    with pytest.raises(jinja2.TemplateError, match="must alternate"):
        chat.apply_chat_template(turns[2:])


def test_llama2_learns_the_answer_alone_after_one_bos(chat):
    tokenizer = chat.tokenizer
    prompt = chat.prompt("What is its weight?")
    batch = chat([prompt], ["C"], suffix=["12.5"], modalities=NO_3D)
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    scored = [label for label in labels if label != -100]
    assert tokenizer.convert_ids_to_tokens(scored) == ["▁12.5", "</s>"]
    asked = chat(prompt, ["C"], modalities=NO_3D)["input_ids"][0].tolist()
    assert ids == asked + scored
    # The same tokens as the whole chat rendered at once, but for the blank in front of </s>.
    whole = tokenizer(f"{prompt} 12.5 </s>", add_special_tokens=False)["input_ids"]
    mol = whole.index(chat.mol_token_id)
    whole[mol : mol + 1] = [chat.mol_token_id] * chat.num_query_tokens
    assert tokenizer.convert_ids_to_tokens(whole)[-2] == "▁"
    assert [*whole[:-2], whole[-1]] == ids


def test_whose_chat_template_is_taken(llama_tokenizer):
    tokenizer = copy.deepcopy(llama_tokenizer)
    for_llama2 = language_model.LLAMA2_CHAT_TEMPLATE
    assert language_model.chat_template(tokenizer, "llama2-7b", "x") == for_llama2
    assert language_model.chat_template(tokenizer, None, "/a/Llama-2-7b-chat-hf") == for_llama2
    assert language_model.chat_template(tokenizer, None, "mistralai/Mistral-7B-v0.3") is None
    tokenizer.chat_template = "its own"
    assert language_model.chat_template(tokenizer, "llama2-7b", "x") == "its own"


# --- attention ------------------------------------------------------------------------------------


@pytest.fixture
def llama(tokenizer, tmp_path):
    source = LlamaForCausalLM(tiny_llama_config(len(tokenizer), **SIZES))
    source.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def attention(model):
    return model.model.language_model.config._attn_implementation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flash_attention_where_it_is_installed_and_serves_the_weights(
    llama, dtype, monkeypatch, tmp_path
):
    taken = []

    def take(model, name):
        taken.append(name)

    model, processor = build_model(llama, SMALL, dtype=dtype)
    assert attention(model) == "sdpa"
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    monkeypatch.setattr(language_model, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(LlamaForCausalLM, "set_attn_implementation", take)
    language_model.load_language_model(llama, dtype)
    monkeypatch.setattr(type(model), "set_attn_implementation", take)
    load_checkpoint(tmp_path / "saved")
    assert taken == 2 * ["flash_attention_2"] * (dtype == torch.bfloat16)


def test_attention_that_was_asked_for(llama, tmp_path):
    model, processor = build_model(llama, SMALL, attn_implementation="eager")
    assert attention(model) == "eager"
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again, _ = load_checkpoint(tmp_path / "saved", attn_implementation="eager")
    assert attention(again) == "eager"
    for load in (
        lambda name: build_model(llama, SMALL, attn_implementation=name),
        lambda name: load_checkpoint(tmp_path / "saved", attn_implementation=name),
    ):
        with pytest.raises(MissingDependencyError, match=r"flash_attention_2.*collamo\[gpu\]"):
            load("flash_attention_2")
        with pytest.raises(UsageError, match="attn_implementation 'fast'"):
            load("fast")
