"""What clients may ask: OpenAI's requests, with molecules and views beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from collamo.data.batch import MODALITIES
from collamo.inference.serve.engine import Sampling

#: Arguments of OpenAI's that change nothing at these values; any other value is refused, because it
#: would be left out without a word.
NO_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
#: Arguments that say something about the caller, none about the answer.
ABOUT_THE_CALLER = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    "parallel_tool_calls",
)
_REFUSED = {
    "prompt_embeds": "embeddings of strangers are not read; send molecules",
    "prompt_token_ids": "token ids are not read; send text and molecules",
}


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="ignore")  # include_obfuscation is about the network

    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=256)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    views: list[Literal["1d", "2d", "3d"]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_has_no_effect(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kept = {}
        for name, value in values.items():
            if name in _REFUSED:
                raise ValueError(f"{name}: {_REFUSED[name]}")
            if name in NO_EFFECT:
                # True == 1 in Python; of these no argument means both.
                if value is not None and value not in NO_EFFECT[name]:
                    raise ValueError(f"{name}={str(value)[:40]} is not supported; leave it out")
            elif name not in ABOUT_THE_CALLER:
                kept[name] = value
        return kept

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > 4 or not all(0 < len(text) <= 100 for text in texts):
            raise ValueError("at most 4 texts of 1 to 100 characters")
        return stop

    @field_validator("views")
    @classmethod
    def _some_view(cls, views: Sequence[str] | None) -> Sequence[str] | None:
        if views is not None and not views:
            raise ValueError(f"give one or more of {', '.join(MODALITIES)}")
        return views

    @property
    def modalities(self) -> tuple[str, ...]:
        """The views in the model's own order."""
        return tuple(m for m in MODALITIES if self.views is None or m in self.views)

    def sampling(self, longest: int) -> Sampling:
        """Return how to answer; greedily and in at most `longest` tokens unless told otherwise."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=self.longest or longest,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(stop),
        )

    @property
    def longest(self) -> int | None:
        """The longest answer that is asked for [tokens]."""
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def longest(self) -> int | None:
        """The longest answer that is asked for [tokens]."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Request):
    """``POST /v1/completions``: the prompt as it is, without a chat template."""

    prompt: str
