"""Decoding as transformers offers it: with an assistant, from a cache, compiled."""

import pytest
import torch
from model_helpers import build
from transformers import CompileConfig, DynamicCache, StaticCache

from collamo.model.transformers_versions import CACHE

GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture
def inputs(processor, features):
    """Two prompts, each of its own length and with two molecules."""
    names = list(features)
    rows = [[features[n] for n in pair] for pair in (names[:2], names[2:4])]
    questions = ("Which is larger?", "Which of them is larger? Tell me.")
    return processor([processor.prompt(q, 2) for q in questions], rows)


@pytest.fixture
def encoded(model):
    """Counts how often molecules were encoded."""
    calls = []
    hook = model.model.mol_projector.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def row(inputs, number):
    return {name: x[number : number + 1] for name, x in inputs.items()}


def other(tokenizer, by):
    """The same model with weights that differ a little: it guesses some tokens right."""
    assistant, _ = build(tokenizer)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return assistant


@pytest.mark.parametrize("by", [0.0, 0.02, 0.5])
def test_an_assistant_that_reads_molecules_changes_no_answer(tokenizer, model, inputs, encoded, by):
    prompt = row(inputs, 1)
    expected = model.generate(**prompt, **GREEDY)
    del encoded[:]
    assistant = other(tokenizer, by)
    assert torch.equal(expected, model.generate(**prompt, **GREEDY, assistant_model=assistant))
    assert len(encoded) == 1
    lookup = model.generate(**prompt, **GREEDY, prompt_lookup_num_tokens=2)
    assert torch.equal(expected, lookup)


def begun(model, inputs, cache, tokens=4):
    """An answer's first tokens: the inputs with which it goes on, cache included."""
    options = {"do_sample": False, "max_new_tokens": tokens, "return_dict_in_generate": True}
    out = model.generate(**inputs, **options, **{CACHE: cache})
    more = torch.ones(len(out.sequences), tokens, dtype=torch.long)
    mask = torch.cat([inputs["attention_mask"], more], 1)
    return {**inputs, "input_ids": out.sequences, "attention_mask": mask, CACHE: out[CACHE]}


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("with_molecules", [True, False])
def test_going_on_from_a_cache(model, inputs, encoded, static, with_molecules):
    expected = model.generate(**inputs, **GREEDY)
    del encoded[:]
    cache = StaticCache(model.config, max_cache_len=99) if static else DynamicCache()
    following = begun(model, inputs, cache)
    if not with_molecules:
        kept = ("input_ids", "attention_mask", CACHE)
        following = {name: following[name] for name in kept}
    answer = model.generate(**following, do_sample=False, max_new_tokens=4)
    assert torch.equal(expected, answer)
    assert len(encoded) == 1


@torch.no_grad()
def test_a_prompt_of_which_the_cache_holds_the_first_part(model, inputs):
    """Before any molecule, between two of them, and with all of them in the cache."""
    expected = model.generate(**inputs, **GREEDY)
    prompt = row(inputs, 1)
    ids = prompt["input_ids"]
    assert prompt["attention_mask"].all()
    places = (ids[0] == model.config.mol_token_id).nonzero().flatten().tolist()
    b = model.config.projector_config.num_query_tokens
    first = {k: x if k.startswith("encoded") else x[:, :1] for k, x in prompt.items()}
    for end, molecules in ((places[0], {}), (places[b], first), (places[-1] + 1, prompt)):
        begin = {**molecules, "input_ids": ids[:, :end], "attention_mask": None}
        cache = model(**begin, use_cache=True)[CACHE]
        answer = model.generate(**prompt, **GREEDY, **{CACHE: cache})
        assert torch.equal(expected[1:], answer)


@torch.no_grad()
def test_placeholders_after_a_cache_need_their_molecules(model, inputs):
    """They would be read as words."""
    prompt = row(inputs, 1)
    mask, ids = prompt["attention_mask"], prompt["input_ids"]
    cache = model(input_ids=ids[:, :1], use_cache=True)[CACHE]
    with pytest.raises(ValueError, match="no molecules were given"):
        model.generate(input_ids=ids, attention_mask=mask, **{CACHE: cache}, **GREEDY)
    cache = model(input_ids=ids[:, :1], use_cache=True)[CACHE]
    lost = {**prompt, "molecule_valid": torch.tensor([[True, False]])}
    with pytest.raises(ValueError, match="prompt 0 has 6 <mol> tokens, but its 1 molecules"):
        model.generate(**lost, **{CACHE: cache}, **GREEDY)


def test_compiled_decoding_is_one_graph(tokenizer, inputs):
    """fullgraph=True raises at a graph break."""
    model, _ = build(tokenizer)
    assert model._can_compile_fullgraph
    expected = model.generate(**inputs, **GREEDY)
    config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True  # transformers' own switch for its tests
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of every test before
    options = {"cache_implementation": "static", "compile_config": config}
    assert torch.equal(expected, model.generate(**inputs, **GREEDY, **options))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
