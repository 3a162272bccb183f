"""What every request passes before it is read: key, sizes, times, and how many there may be."""

from __future__ import annotations

import asyncio
import hmac
import math
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from collamo.inference.serve.errors import RequestError, error_object
from collamo.inference.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The names of this machine in a Host header; with another one a page in the browser has sent the
#: request to a name of its own that leads here (DNS rebinding).
LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Answers whose time says how long a client should wait.
_RECENT = 32


@dataclass(frozen=True)
class Limits:
    """What strangers may ask of the server; all are our choice.

    Attributes
    ----------
    body
        Bytes of a request. A mol block of 512 atoms has 60,000.
    body_seconds
        Time for a client to send it [s].
    molecules
        Molecules of a request.
    in_flight
        Requests that are answered or wait; the next one is told to come again (429).
    seconds
        Time for an answer, a slow reader's pauses included [s].
    """

    body: int = 256 * 1024
    body_seconds: float = 30.0
    molecules: int = 8
    in_flight: int = 64
    seconds: float = 300.0


class Gate:
    """ASGI middleware around everything.

    The body is read here, whole, because only then does a client that hangs up show: its request is
    cancelled, streamed or not.

    Parameters
    ----------
    app
        What answers.
    limits, metrics
        Of the server.
    api_key
        What ``Authorization: Bearer …`` must hold, but for ``/health``; None lets everybody in.
    hosts
        Names that a Host header may hold; None takes any.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        metrics: Metrics,
        api_key: str | None,
        hosts: tuple[str, ...] | None,
    ):
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.hosts = hosts
        self._key = api_key.encode() if api_key is not None else None
        self._in_flight = 0
        self._recent: deque[float] = deque(maxlen=_RECENT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with what is wrong."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        started = monotonic()
        try:
            self._check(scope)
            if scope["method"] == "POST":
                await self._work(scope, receive, answer)
            else:
                await self.app(scope, receive, answer.send)
        except RequestError as error:
            if answer.status is None:
                headers = {"retry-after": str(self._wait())} if error.status == 429 else None
                if error.status == 401:
                    headers = {"www-authenticate": "Bearer"}
                body = JSONResponse(error_object(error), error.status, headers)
                await body(scope, receive, answer.send)
        finally:
            self.metrics.request(scope, answer.status, monotonic() - started)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _name_of(host) not in self.hosts:
            raise RequestError(403, f"host {host!r:.80} is not served here", "unknown_host")
        if self._key is None or scope["path"] == "/health":
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
            raise RequestError(401, "the API key is missing or wrong", "invalid_api_key")

    async def _work(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Count the request, read its body, and let it work until it is done or given up."""
        if self._in_flight >= self.limits.in_flight:
            raise RequestError(
                429, f"{self._in_flight} requests are being answered; try again", "overloaded"
            )
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        started = monotonic()
        try:
            body = await self._body(scope, receive)
            await self._until_done(scope, body, receive, answer)
            self._recent.append(monotonic() - started)
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        too_large = RequestError(
            413, f"the request is larger than {self.limits.body} bytes", "too_large"
        )
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.limits.body:
            raise too_large
        body = b""
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(499, "the client is gone")
                    body += message.get("body", b"")
                    if len(body) > self.limits.body:
                        raise too_large
                    if not message.get("more_body"):
                        return body
        except TimeoutError:
            limit = self.limits.body_seconds
            raise RequestError(408, f"the request took longer than {limit:g} s to come") from None

    async def _until_done(
        self, scope: Scope, body: bytes, receive: Receive, answer: _Answer
    ) -> None:
        unread: deque[Message] = deque([{"type": "http.request", "body": body}])
        never = asyncio.Event()

        async def replay() -> Message:
            if not unread:
                await never.wait()
            return unread.popleft()

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        work = asyncio.ensure_future(self.app(scope, replay, answer.send))
        watcher = asyncio.ensure_future(gone())
        try:
            await asyncio.wait(
                {work, watcher},
                timeout=self.limits.seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work.done():
                await work
            elif watcher.done():
                raise RequestError(499, "the client is gone")
            else:
                limit = self.limits.seconds
                raise RequestError(504, f"there was no answer within {limit:g} s", "timeout")
        finally:
            watcher.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)

    def _wait(self) -> int:
        """Seconds after which a slot should be free: the mean answer's, between 1 and 60."""
        mean = sum(self._recent) / len(self._recent) if self._recent else 1.0
        return min(60, max(1, math.ceil(mean)))


def _name_of(host: str) -> str | None:
    """Return the name of a Host header, without its port; None where it has none.

    >>> _name_of("[::1]:8000"), _name_of("LocalHost:80"), _name_of("a]b")
    ('::1', 'localhost', None)
    """
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


class _Answer:
    """Passes a response on, and knows its status once it has begun."""

    def __init__(self, send: Send):
        self._send = send
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
