"""What users of transformers expect of any of its models."""

import copy
import pickle

import pytest
import torch
from model_helpers import build, molecules_of

from collamo.model import CollamoConfig, CollamoForConditionalGeneration, CollamoModel

ASKED = {"output_attentions": True, "output_hidden_states": True}


# --- embeddings ------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_resizing_embeddings(tokenizer, inputs, tmp_path, tied):
    model, _ = build(tokenizer, tie_word_embeddings=tied)
    before, size = model(**inputs).logits, model.config.text_config.vocab_size
    model.resize_token_embeddings(size + 7)
    tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (tables[0] is tables[1]) == tied
    assert [len(table) for table in tables] == [size + 7] * 2
    assert model.config.text_config.vocab_size == size + 7
    after = model(**inputs, labels=inputs["input_ids"])  # the loss counts the new tokens too
    torch.testing.assert_close(after.logits[..., :size], before, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    again = CollamoForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, after.logits)
    model.resize_token_embeddings(size - 2)
    assert model(**inputs).logits.shape[-1] == size - 2
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model(**inputs).logits.shape[-1] % 64 == 0


@torch.no_grad()
def test_embeddings_in_the_place_of_ids(model, inputs):
    rest = {name: x for name, x in inputs.items() if name != "input_ids"}
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    expected = model(**inputs).logits
    torch.testing.assert_close(model(**rest, inputs_embeds=embeds).logits, expected)
    last = model(**inputs, logits_to_keep=1).logits
    torch.testing.assert_close(last, expected[:, -1:], atol=1e-5, rtol=0)


# --- configurations --------------------------------------------------------------------------


@pytest.mark.parametrize("part", CollamoConfig.sub_configs)
def test_a_part_of_the_configuration_saved_alone_and_within(model, tmp_path, part):
    config = getattr(model.config, part)
    config.save_pretrained(tmp_path / "alone")
    model.config.save_pretrained(tmp_path / "whole")
    alone, within = (type(config).from_pretrained(tmp_path / x) for x in ("alone", "whole"))
    assert alone.to_dict() == within.to_dict()
    assert alone.to_diff_dict() == config.to_diff_dict()


def test_a_copied_configuration_is_the_same(model):
    config = model.config
    copies = copy.deepcopy(config), pickle.loads(pickle.dumps(config))
    for other in (*copies, CollamoConfig.from_dict(config.to_dict())):
        assert other.to_dict() == config.to_dict()


def test_the_core_of_a_saved_model_and_a_model_around_a_saved_core(model, inputs, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "core")
    core = CollamoModel.from_pretrained(tmp_path / "whole")
    whole, loading = CollamoForConditionalGeneration.from_pretrained(
        tmp_path / "core", output_loading_info=True
    )
    assert not loading["missing_keys"]  # the head is tied to the embedding
    assert not loading["unexpected_keys"]
    assert model.can_generate()
    assert not core.can_generate()
    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(whole(**inputs).logits, expected)
        hidden = core(**prompt, molecules=molecules_of(inputs)).last_hidden_state
        assert torch.equal(model.lm_head(hidden), expected)


# --- what a forward returns ------------------------------------------------------------------


@torch.no_grad()
def test_eager_attention_is_sdpa(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    eager, sdpa = (
        CollamoForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=name)
        for name in ("eager", "sdpa")
    )
    real = inputs["attention_mask"].bool()
    ours, theirs = eager(**inputs).logits, sdpa(**inputs).logits
    torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("by", ["argument", "configuration", "the language model's"])
def test_attentions_and_hidden_states(tokenizer, inputs, by):
    model, _ = build(tokenizer)
    model.set_attn_implementation("eager")
    text = model.config.text_config
    if by != "argument":
        for name in ASKED:
            setattr(model.config if by == "configuration" else text, name, True)
    out = model(**inputs, **(ASKED if by == "argument" else {}))
    rows, length = inputs["input_ids"].shape
    heads, layers = text.num_attention_heads, text.num_hidden_layers
    assert [x.shape for x in out.attentions] == [(rows, heads, length, length)] * layers
    assert [x.shape[:2] for x in out.hidden_states] == [(rows, length)] * (layers + 1)
    real = inputs["attention_mask"].bool()
    for attention in out.attentions:
        sums = attention.sum(-1).transpose(1, 2)[real]
        torch.testing.assert_close(sums, torch.ones_like(sums))
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
    plain = model(**inputs, **dict.fromkeys(ASKED, False))
    assert plain.attentions is None
    assert plain.hidden_states is None


def test_gradients_of_what_was_returned(tokenizer, inputs):
    model, _ = build(tokenizer)
    model.set_attn_implementation("eager")
    out = model(**inputs, **ASKED)
    returned = out.hidden_states[0], out.attentions[0], out.molecule_hidden_states
    for x in returned:
        x.retain_grad()
    out.logits.sum().backward()
    assert all(x.grad.any() for x in returned)


def test_a_tuple_has_the_same_in_the_same_order(model, inputs):
    out = model(**inputs, labels=inputs["input_ids"])
    values = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], out.loss)
    assert torch.equal(values[1], out.logits)


# --- training and copies ---------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_reaches_every_parameter(tokenizer, inputs, reentrant):
    model, _ = build(tokenizer)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.gradient_checkpointing_disable()
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())


@torch.no_grad()
def test_a_deep_copy_answers_the_same(model, inputs):
    assert torch.equal(copy.deepcopy(model)(**inputs).logits, model(**inputs).logits)


# --- generate --------------------------------------------------------------------------------


def test_scores_of_beams(model, inputs):
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4}
    asked = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**inputs, **options, **asked, do_sample=False)
    rows = len(inputs["input_ids"])
    assert len(out.sequences) == len(out.sequences_scores) == 2 * rows
    assert {len(x) for x in (*out.scores, *out.logits)} == {3 * rows}
    scores = model.compute_transition_scores(
        out.sequences, out.scores, out.beam_indices, normalize_logits=False
    )
    lengths = (out.beam_indices >= 0).sum(1)  # the length penalty is 1
    expected = scores.sum(1) / lengths
    torch.testing.assert_close(out.sequences_scores, expected, atol=1e-4, rtol=0)


def test_the_ways_of_sampling(model, inputs):
    torch.manual_seed(0)
    for options in (
        {"num_beams": 3},
        {"top_k": 5, "top_p": 0.9, "temperature": 0.7, "repetition_penalty": 1.2},
        {"min_p": 0.1, "no_repeat_ngram_size": 2},
    ):
        out = model.generate(**inputs, do_sample=True, max_new_tokens=3, **options)
        assert len(out) == len(inputs["input_ids"])
        assert not (out[:, inputs["input_ids"].shape[1] :] == model.config.mol_token_id).any()
