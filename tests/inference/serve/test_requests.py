"""Arguments that are taken, those that change nothing, and those that are refused by name."""

import pytest
from pydantic import ValidationError

from collamo.inference.serve.engine import Sampling
from collamo.inference.serve.requests import ChatRequest, CompletionRequest

MESSAGES = [{"role": "user", "content": "a"}]


def chat(**arguments):
    return ChatRequest.model_validate({"messages": MESSAGES, **arguments})


def test_without_arguments_it_answers_as_ask_does():
    assert chat().sampling(128) == Sampling(128, temperature=0.0, top_p=1.0)
    assert chat().modalities == ("1d", "2d", "3d")


def test_arguments_reach_the_engine():
    request = chat(max_completion_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop="x")
    assert request.sampling(128) == Sampling(7, 0.5, 0.9, 3, ("x",))
    assert chat(max_tokens=5).sampling(128).max_tokens == 5
    assert chat(views=["3d", "1d"]).modalities == ("1d", "3d")
    assert chat(stream_options={"include_usage": True, "include_obfuscation": False}).wants_usage


def test_what_changes_nothing_is_taken():
    nothing = {"n": 1, "logprobs": None, "tools": [], "response_format": {"type": "text"}}
    assert chat(**nothing, user="me", metadata={"a": 1}, presence_penalty=0.0) == chat()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n": 2}, "n=2 is not supported"),
        ({"logprobs": True}, "logprobs=True is not supported"),
        ({"tools": [{"type": "function"}]}, "tools=.* is not supported"),
        ({"prompt_embeds": "x"}, "embeddings of strangers are not read"),
        ({"temprature": 1}, "Extra inputs"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ["a"] * 5}, "at most 4 texts"),
        ({"stop": ""}, "at most 4 texts of 1 to"),
        ({"views": []}, "one or more of 1d"),
        ({"views": ["4d"]}, "views"),
        ({"messages": []}, "messages"),
        ({"messages": "a"}, "messages"),
        ({"stream": "maybe"}, "stream"),
    ],
    ids=str,
)
def test_what_would_be_left_out_is_refused(arguments, said):
    with pytest.raises(ValidationError, match=said):
        chat(**arguments)


def test_several_prompts_are_refused():
    with pytest.raises(ValidationError, match="prompt"):
        CompletionRequest.model_validate({"prompt": ["a", "b"]})
