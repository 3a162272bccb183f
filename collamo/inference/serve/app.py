"""The application: OpenAI's paths over an engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from collamo.chem.features import MoleculeFeatures
from collamo.data.batch import MODALITIES
from collamo.errors import CollamoError, MoleculeError
from collamo.inference.conversation import (
    MoleculeText,
    prompt_of,
    read_conversation,
    split_text,
)
from collamo.inference.molecules import reading
from collamo.inference.serve.engine import Engine, Piece, Prompt
from collamo.inference.serve.errors import RequestError, error_object, request_error
from collamo.inference.serve.gate import Gate, Limits
from collamo.inference.serve.metrics import Metrics
from collamo.inference.serve.molecule_reader import MoleculeReader
from collamo.inference.serve.requests import ChatRequest, CompletionRequest, Request
from collamo.model import CollamoProcessor

logger = logging.getLogger(__name__)
#: Longest answer where a request names none, as for `collamo ask` [tokens].
LONGEST = 128
#: The media type of a stream.
_EVENTS = "text/event-stream"


@dataclass
class Service:
    """What answers requests.

    Attributes
    ----------
    engine
        Makes the answers.
    processor
        Of the model.
    reader
        Of molecules.
    name
        The model's, in requests and answers.
    modalities
        Views that the model reads at all.
    limits
        Of requests.
    created
        When the model was made, in seconds since 1970.
    """

    engine: Engine
    processor: CollamoProcessor
    reader: MoleculeReader
    name: str = "collamo"
    modalities: Sequence[str] = MODALITIES
    limits: Limits = field(default_factory=Limits)
    created: int = 0
    metrics: Metrics = field(default_factory=Metrics)

    async def chat(self, request: ChatRequest, molecules: Sequence[MoleculeText] = ()) -> Work:
        """Return the answer to a conversation, which has not begun.

        `molecules` stand where a message's part of type "molecule" gives none.
        """
        conversation = read_conversation(request.messages, molecules)
        texts = [m for m in conversation.molecules if isinstance(m, MoleculeText)]
        features = await self._features(request, texts)
        return self._work(request, prompt_of(self.processor, conversation.messages), features)

    async def completion(self, request: CompletionRequest) -> Work:
        """Return what follows a prompt, which has not begun."""
        pieces = split_text(request.prompt, "prompt")
        texts = [piece for piece in pieces if isinstance(piece, MoleculeText)]
        features = await self._features(request, texts)
        mol = self.processor.mol_token
        text = "".join(mol if isinstance(piece, MoleculeText) else piece for piece in pieces)
        if not text:
            raise RequestError(400, "the prompt is empty", param="prompt")
        return self._work(request, text, features)

    async def _features(
        self, request: Request, texts: Sequence[MoleculeText]
    ) -> list[MoleculeFeatures]:
        if request.model not in (None, self.name):
            raise RequestError(
                404,
                f"the model {request.model!r:.80} is not served here; {self.name!r} is",
                "model_not_found",
                "model",
            )
        if len(texts) > self.limits.molecules:
            raise RequestError(
                400,
                f"{len(texts)} molecules are asked about; at most {self.limits.molecules} may be",
                "too_many_molecules",
            )
        try:
            async with asyncio.TaskGroup() as group:  # the first that fails ends the others
                tasks = [
                    group.create_task(self.reader.read(text, request.modalities)) for text in texts
                ]
        except* MoleculeError as errors:
            self.metrics.rejected.inc()
            raise errors.exceptions[0] from None
        features = [task.result() for task in tasks]
        self.metrics.molecules(features)
        return features

    def _work(self, request: Request, text: str, features: Sequence[MoleculeFeatures]) -> Work:
        views = request.modalities
        inputs = self.processor(text, [list(features)] if features else None, modalities=views)
        ids = tuple(inputs["input_ids"][0].tolist())
        as_text = self.processor.molecules_as == "smiles"
        prompt = Prompt(ids, () if as_text else tuple(features), views)
        seen = [] if as_text else [view for view in views if view in self.modalities]
        read = [reading(each, seen) for each in features]
        return Work(self, prompt, request, read)


@dataclass
class Work:
    """An answer that is to be made: its prompt, and what the model reads of the molecules."""

    service: Service
    prompt: Prompt
    request: Request
    read: list[dict[str, Any]]

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the answer, counted."""
        metrics, started, last = self.service.metrics, time.monotonic(), None
        metrics.tokens.labels("prompt").inc(len(self.prompt.ids))
        stream = self.service.engine.stream(self.prompt, self.request.sampling(LONGEST))
        async with contextlib.aclosing(stream):  # type: ignore[type-var]  # engines have generators
            try:
                async for piece in stream:
                    if last is None:
                        metrics.first.observe(time.monotonic() - started)
                    last = piece
                    yield piece
            finally:
                metrics.tokens.labels("answer").inc(last.tokens if last else 0)

    def usage(self, tokens: int) -> dict[str, int]:
        """Return the count of tokens."""
        prompt = len(self.prompt.ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
        }


@dataclass(frozen=True)
class Form:
    """How a kind of answer looks, whole and in chunks."""

    prefix: str
    whole: str
    chunk: str
    choice: Callable[[str], dict[str, Any]]
    delta: Callable[[str, bool], dict[str, Any]]


def _chat_delta(text: str, first: bool) -> dict[str, Any]:
    role = {"role": "assistant"} if first else {}
    return {"delta": {**role, "content": text} if text or first else {}}


CHAT = Form(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    _chat_delta,
)
COMPLETION = Form(
    "cmpl-",
    "text_completion",
    "text_completion",
    lambda text: {"text": text},
    lambda text, first: {"text": text},
)


async def respond(work: Work, form: Form) -> Response:
    """Return the response: whole, or a stream of events."""
    stream = work.pieces()
    first = await anext(stream)  # what fails at once is an error with its status
    name = work.service.name
    head = {"id": form.prefix + uuid.uuid4().hex, "created": int(time.time()), "model": name}
    if work.request.stream:
        events = _events(work, form, head, first, stream)
        return StreamingResponse(events, media_type=_EVENTS, headers={"cache-control": "no-cache"})
    text, piece = first.text, first
    async for piece in stream:
        text += piece.text
    choice = {"index": 0, **form.choice(text), "finish_reason": piece.finish, "logprobs": None}
    return JSONResponse(
        {
            **head,
            "object": form.whole,
            "choices": [choice],
            "usage": work.usage(piece.tokens),
            "molecules": work.read,
        }
    )


async def _events(
    work: Work, form: Form, head: dict[str, Any], first: Piece, stream: AsyncIterator[Piece]
) -> AsyncIterator[str]:
    """Yield the events of a stream; what was read of the molecules comes with the first."""

    def event(text: str, finish: str | None, begins: bool = False) -> str:
        choice = {"index": 0, **form.delta(text, begins), "finish_reason": finish, "logprobs": None}
        extra = {"molecules": work.read} if begins else {}
        return _event({**head, "object": form.chunk, "choices": [choice], **extra})

    piece = first
    try:
        yield event(first.text, first.finish, begins=True)
        async for piece in stream:
            yield event(piece.text, piece.finish)
        if work.request.wants_usage:
            usage = {"choices": [], "usage": work.usage(piece.tokens)}
            yield _event({**head, "object": form.chunk, **usage})
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status has been sent: clients look for an error in the stream
        logger.warning("a stream failed: %s", error)
        yield _event(error_object(request_error(error)))


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def build_app(
    service: Service, *, api_key: str | None = None, hosts: tuple[str, ...] | None = None
) -> FastAPI:
    """Return the ASGI application.

    It closes engine and reader when it ends. Its own pages of documentation are off: they fetch
    scripts from other people's servers.

    Parameters
    ----------
    service
        What answers.
    api_key, hosts
        As for `Gate`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.engine.close)
        await asyncio.to_thread(service.reader.close)

    app = FastAPI(title="CoLLaMo", lifespan=lifespan, openapi_url=None)
    app.add_middleware(
        Gate,
        limits=service.limits,
        metrics=service.metrics,
        api_key=api_key,
        hosts=hosts,
    )
    _add_paths(app, service)
    _add_errors(app)
    return app


def _add_paths(app: FastAPI, service: Service) -> None:
    model = {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "collamo",
        "views": list(service.modalities),
        "max_model_len": service.processor.tokenizer.model_max_length,
    }

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise RequestError(404, f"the model {name!r:.80} is not served here", "model_not_found")
        return model

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Response:
        return await respond(await service.chat(request), CHAT)

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest) -> Response:
        return await respond(await service.completion(request), COMPLETION)


def _add_errors(app: FastAPI) -> None:
    """Tell every error as OpenAI does."""

    def response(error: RequestError) -> Response:
        return JSONResponse(error_object(error), error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            reason = "there is no such argument"
        elif first["type"] == "json_invalid":
            place, reason = "", f"the body is no JSON: {first['ctx']['error']}"
        message = f"{place[:80]}: {reason}" if place else reason
        return response(RequestError(400, message, param=place[:80] or None))

    @app.exception_handler(HTTPException)
    async def refused(_: HttpRequest, error: HTTPException) -> Response:
        return response(RequestError(error.status_code, str(error.detail)))

    @app.exception_handler(CollamoError)
    @app.exception_handler(ValueError)
    async def wrong(_: HttpRequest, error: Exception) -> Response:
        return response(request_error(error))

    @app.exception_handler(Exception)
    async def failed(_: HttpRequest, error: Exception) -> Response:
        return response(request_error(error))
