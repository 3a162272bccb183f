"""A JSON service over HTTP that may be busy, slow or down: paced and retried.

The caller names the address; none is built in. Redirects are not followed.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from collamo.errors import CollamoError, UsageError

Item = TypeVar("Item")
T = TypeVar("T")

# Worth another attempt: too early, too many, or the server's own fault. 529 is "overloaded".
RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504, 529))
# The same for every request: wrong key, wrong address.
HOPELESS = frozenset((301, 302, 303, 307, 308, 401, 402, 403, 404, 405))
GIVE_UP = 5  # requests that fail one after another, each with all its attempts
LARGEST_ANSWER = 16 * 2**20  # bytes
FIRST_WAIT = 0.5  # s; doubled with every attempt


class ServiceError(CollamoError):
    """One request got no usable answer; others may."""


class ServiceDownError(CollamoError):
    """The service refuses everything, or does not answer at all: more requests are useless."""


@dataclass(frozen=True)
class Limits:
    """How hard a service is asked.

    `per_minute` requests are started at most (None: no limit), `concurrency` wait for their answer
    at one time. A request may take `timeout` s; it is made `attempts` times at most, with growing
    pauses of random length between or as long as the server asks (``Retry-After``), but no pause is
    longer than `longest_wait` s.
    """

    per_minute: float | None = None
    concurrency: int = 4
    timeout: float = 60.0
    attempts: int = 5
    longest_wait: float = 120.0

    def __post_init__(self):
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("per_minute", "timeout", "longest_wait"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} {value} must be positive and finite")


class _PassingError(Exception):
    """What another attempt may mend."""


class Service:
    """Posts JSON to one address, from several threads.

    Parameters
    ----------
    url
        ``http://`` or ``https://``, without a user name or password in it.
    key
        Sent as ``Authorization: Bearer``. It is in no message of ours, not even where the server
        repeats it.

    Raises
    ------
    UsageError
        If `url` is not an http(s) address.
    """

    def __init__(self, url: str, limits: Limits | None = None, key: str | None = None):
        import httpx2

        self.url = check_url(url)
        self.limits = limits or Limits()
        self._key = key
        try:
            headers = {"Content-Type": "application/json"}
            headers |= {"Authorization": f"Bearer {key}"} if key else {}
            self._client = httpx2.Client(headers=headers, timeout=self.limits.timeout)
        except (ValueError, UnicodeError):
            raise UsageError(f"the key for {self.url} cannot be sent in an HTTP header") from None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._reason = "is not asked any more"
        self._next_start = self._not_before = 0.0
        self._failures = 0  # in a row
        self._useful = False  # has answered at all

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wake all who wait, and close the connections."""
        self._closed.set()
        self._client.close()

    def ask(self, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """Post `body` and return ``read(answer)``, where `answer` is the parsed JSON.

        `read` raises ValueError for JSON that is not an answer; then, as after a refusal for a
        while, a time-out or a broken connection, it is asked again.

        Raises
        ------
        ServiceError
            When no attempt brought an answer, or the service will not take this body.
        ServiceDownError
            When more requests are useless: a refused key or address, a longer pause asked for than
            `Limits.longest_wait`, `GIVE_UP` requests in a row without an answer, or as many bodies
            refused before the first was taken.
        """
        from tenacity import (
            Retrying,
            retry_if_exception_type,
            stop_after_attempt,
            wait_random_exponential,
        )

        attempts = Retrying(
            stop=stop_after_attempt(self.limits.attempts),
            retry=retry_if_exception_type(_PassingError),
            wait=wait_random_exponential(FIRST_WAIT, max=self.limits.longest_wait),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            answer = attempts(self._once, body, read)
        except _PassingError as error:
            raise self._failed(str(error)) from None
        with self._lock:
            self._failures, self._useful = 0, True
        return answer

    def map(self, function: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
        """Return ``function(item)`` of every item, in order, `concurrency` at a time.

        An exception ends the others too: those under way after their present attempt.
        """
        pool = ThreadPoolExecutor(self.limits.concurrency)
        try:
            return list(pool.map(function, items))
        except BaseException:
            self._closed.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _sleep(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def _once(self, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        self._await_turn()
        if self._closed.is_set():
            raise ServiceDownError(f"{self.url} {self._reason}")
        status, headers, content = self._post(body)
        if status in HOPELESS:
            raise self._down(f"answers {status}: {self._excerpt(content)}")
        if status in RETRIED:
            wait = retry_after(headers.get("Retry-After"))
            if wait is not None and wait > self.limits.longest_wait:
                raise self._down(f"answers {status} and asks to wait {wait:.0f} s; run again later")
            self._postpone(wait or 0)
            raise _PassingError(f"answers {status}: {self._excerpt(content)}")
        if status != 200:
            raise self._failed(
                f"answers {status}: {self._excerpt(content)}", counts=not self._useful
            )
        try:
            return read(json.loads(content))
        except (ValueError, RecursionError) as error:
            reason = f"gives no answer in {self._excerpt(content)!r} ({type(error).__name__})"
            raise _PassingError(reason) from None

    def _failed(self, reason: str, counts: bool = True) -> CollamoError:
        """Return the error of a request that has used up its attempts."""
        with self._lock:
            self._failures += counts
            failures = self._failures
        if failures >= GIVE_UP:
            return self._down(f"failed {failures} times in a row, the last time: {reason}")
        return ServiceError(f"{self.url} {reason}")

    def _down(self, reason: str) -> ServiceDownError:
        with self._lock:
            if not self._closed.is_set():  # all threads give the first reason
                self._reason = reason
            self._closed.set()
        return ServiceDownError(f"{self.url} {self._reason}")

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        import httpx2

        end = time.monotonic() + self.limits.timeout
        content = bytearray()
        asked = json.dumps(body)  # ASCII: whatever the texts hold can be sent
        try:
            with self._client.stream("POST", self.url, content=asked) as response:
                for part in response.iter_bytes():
                    content += part
                    if time.monotonic() > end:  # the client's own limit is for each part
                        raise _PassingError(f"gave no whole answer in {self.limits.timeout:g} s")
                    if len(content) > LARGEST_ANSWER:
                        raise _PassingError(f"answers with more than {LARGEST_ANSWER} bytes")
                return response.status_code, response.headers, bytes(content)
        except httpx2.RequestError as error:
            raise _PassingError(
                f"failed: {type(error).__name__}, {self._clean(str(error))}"
            ) from None

    def _await_turn(self) -> None:
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 60 / (self.limits.per_minute or math.inf)
        while (wait := max(start, self._not_before) - time.monotonic()) > 0:
            if self._closed.wait(wait):
                return

    def _postpone(self, seconds: float) -> None:
        """Let no request of any thread start before the server wants one."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def _excerpt(self, content: bytes) -> str:
        return self._clean(content[:2000].decode("utf-8", "replace"))[:200]

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def check_url(url: str) -> str:
    """Return `url` where it is an http or https address that tells no secret, else UsageError."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UsageError(
            f"{url!r} is not an http(s) address; write http://HOST:PORT/PATH or https://…"
        )
    if parts.username or parts.password:
        raise UsageError(
            f"the address of {parts.hostname} holds a user name or password; take it out"
        )
    return url


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for (a number or a date), else None.

    >>> retry_after("7"), retry_after("soon")
    (7.0, None)
    """
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return seconds if 0 <= seconds < math.inf else None
    with contextlib.suppress(ValueError, TypeError):
        when = parsedate_to_datetime(value)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    return None
