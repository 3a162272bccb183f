"""Answers made together are those of `ask`, whoever comes, goes or fails beside them."""

import asyncio
import time

import pytest
import torch

from collamo.errors import CollamoError
from collamo.inference.serve import transformers_engine
from collamo.inference.serve.engine import Sampling
from collamo.inference.serve.transformers_engine import TransformersEngine

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
QUESTIONS = ["How many rings does it have?", "Is it an acid?", "Describe this molecule.", "Why?"]
MOLECULES = ["CCO", "c1ccccc1O", "CC(=O)Oc1ccccc1C(=O)O"]
TOKENS = 24


@pytest.fixture
def engine(assistant):
    engine = TransformersEngine(assistant, batch_size=3)
    yield engine
    engine.close()


async def answer(engine, prompt, sampling=Sampling(TOKENS)):  # noqa: B008 - frozen
    pieces = [piece async for piece in engine.stream(prompt, sampling)]
    assert all(piece.finish is None for piece in pieces[:-1])
    return "".join(piece.text for piece in pieces), pieces[-1]


@pytest.fixture
def talkative(assistant, monkeypatch):
    """No answer ends by itself, so that all of them are as long as they may be."""
    suppressed = assistant.model.generation_config.suppress_tokens
    never = [*suppressed, assistant.processor.tokenizer.eos_token_id]
    monkeypatch.setattr(assistant.model.generation_config, "suppress_tokens", never)


@pytest.mark.slow
def test_together_they_are_what_ask_says(assistant, engine, prompt, talkative):
    """Eight answers, three at a time: batches end early for those who wait, and go on."""
    pairs = [(m, q) for m in MOLECULES for q in QUESTIONS][:8]
    expected = [assistant.ask(*pair, max_new_tokens=TOKENS) for pair in pairs]
    made = []
    generate = engine._generate

    def counted(batch):
        made.append(len(batch))
        generate(batch)

    engine._generate = counted

    async def ask_all():
        lengths = [TOKENS, 5, TOKENS, 11] * 2
        asked = (
            answer(engine, prompt(q, m), Sampling(length))
            for (m, q), length in zip(pairs, lengths, strict=True)
        )
        return lengths, await asyncio.gather(*asked)

    lengths, found = asyncio.run(ask_all())
    for (text, last), length, whole in zip(found, lengths, expected, strict=True):
        assert (last.tokens, last.finish) == (length, "length")
        assert whole.startswith(text)
        assert length < TOKENS or text == whole
    assert max(made) == 3
    assert len(made) > 4  # some were taken up again


def test_views_and_ends_are_those_of_ask(assistant, engine, prompt):
    async def ask_all():
        views = [("1d", "2d", "3d"), ("1d",), ("2d", "3d")]
        return await asyncio.gather(
            *(answer(engine, prompt(QUESTIONS[0], "CCO", v)) for v in views)
        )

    found = asyncio.run(ask_all())
    assert found[0][0] == assistant.ask("CCO", QUESTIONS[0], max_new_tokens=TOKENS)
    assert found[0][1].finish in ("stop", "length")


def test_draws_are_the_seeds_whoever_draws_beside_them(engine, prompt, talkative):
    async def ask(*seeds):
        samplings = [Sampling(8, 1.0, 0.95, seed) for seed in seeds]
        asked = (answer(engine, prompt(QUESTIONS[0]), sampling) for sampling in samplings)
        return [text for text, _ in await asyncio.gather(*asked)]

    alone = [asyncio.run(ask(seed))[0] for seed in (1, 2)]
    assert asyncio.run(ask(2, 1, 3))[:2] == alone[::-1]
    assert alone[0] != alone[1]


def test_a_draw_takes_the_likeliest_of_a_narrow_top(engine, prompt, talkative):
    async def ask(sampling):
        return (await answer(engine, prompt(QUESTIONS[0]), sampling))[0]

    greedy = asyncio.run(ask(Sampling(8)))
    assert asyncio.run(ask(Sampling(8, 2.0, top_p=1e-6, seed=5))) == greedy


def test_it_stops_before_a_text(engine, prompt, talkative):
    async def ask(*stop):
        return await answer(engine, prompt(QUESTIONS[2]), Sampling(TOKENS, stop=stop))

    whole, _ = asyncio.run(ask())
    middle = whole[len(whole) // 2 :][:2]
    text, last = asyncio.run(ask(middle))
    assert (text, last.finish) == (whole[: whole.index(middle)].rstrip(), "stop")
    assert last.tokens < TOKENS


def test_who_goes_makes_room(engine, prompt, talkative, monkeypatch):
    """An answer of a thousand tokens that nobody reads does not keep the next one waiting."""
    steps = []
    take = transformers_engine._Answer.take

    def slowly(self, *arguments):
        time.sleep(0.01)
        steps.append(self)
        take(self, *arguments)

    monkeypatch.setattr(transformers_engine._Answer, "take", slowly)

    async def leave():
        stream = engine.stream(prompt(QUESTIONS[2]), Sampling(900))
        await anext(stream)
        await stream.aclose()
        return await answer(engine, prompt(QUESTIONS[0]), Sampling(4))

    assert asyncio.run(leave())[1].tokens == 4
    assert len(steps) < 100


def test_one_without_numbers_fails_alone(assistant, engine, prompt, monkeypatch):
    spliced = assistant.spliced

    def spoiled(ids, soft):
        embeds = spliced(ids, soft)
        return embeds * torch.nan if ids.tolist() == list(bad.ids) else embeds

    bad, good = prompt(QUESTIONS[1]), prompt(QUESTIONS[0])
    expected = assistant.ask("CCO", QUESTIONS[0], max_new_tokens=TOKENS)
    monkeypatch.setattr(assistant, "spliced", spoiled)

    async def ask_both():
        return await asyncio.gather(
            answer(engine, bad), answer(engine, good), return_exceptions=True
        )

    failed, (text, _) = asyncio.run(ask_both())
    assert isinstance(failed, CollamoError)
    assert "NaN or infinite" in str(failed)
    assert text == expected


def test_a_batch_that_fails_is_made_one_by_one(assistant, engine, prompt, monkeypatch):
    """Out of memory, say: what fails by itself fails, the others are answered."""
    soft_tokens = assistant.soft_tokens

    def refuses(features, **options):
        if any(each.smiles == "CN" for each in features):
            raise RuntimeError("out of memory")
        return soft_tokens(features, **options)

    prompts = [prompt(QUESTIONS[0], "CN"), prompt(QUESTIONS[0], "CCO")]
    expected = assistant.ask("CCO", QUESTIONS[0], max_new_tokens=TOKENS)
    monkeypatch.setattr(assistant, "soft_tokens", refuses)

    async def ask_both():
        asked = (answer(engine, each) for each in prompts)
        return await asyncio.gather(*asked, return_exceptions=True)

    failed, (text, _) = asyncio.run(ask_both())
    assert isinstance(failed, RuntimeError)
    assert text == expected


def test_closing_ends_what_runs(assistant, prompt, talkative):
    engine = TransformersEngine(assistant)

    async def close():
        stream = engine.stream(prompt(QUESTIONS[2]), Sampling(900))
        await anext(stream)
        await asyncio.to_thread(engine.close)
        with pytest.raises(CollamoError, match="stopping"):
            [_ async for _ in stream]
        with pytest.raises(CollamoError, match="stopping"):
            await answer(engine, prompt(QUESTIONS[2]))

    asyncio.run(close())
