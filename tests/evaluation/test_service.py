"""A service with every fault we could think of."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from fake_service import RESET, Reply, fake_service

from collamo.errors import UsageError
from collamo.evaluation.service import (
    Limits,
    Service,
    ServiceDownError,
    ServiceError,
    retry_after,
)


def read(answer):
    if not isinstance(answer, dict) or "x" not in answer:
        raise ValueError("no x")
    return answer["x"]


def first(*faults):
    """Answer with `faults`, one a request, then well."""
    return lambda body, number: faults[number] if number < len(faults) else {"x": body["ask"]}


FAULTS = {
    "busy": Reply({}, 429),
    "broken": Reply(b"oops", 500),
    "garbage": Reply(b"\xff\xfe<html>"),
    "other JSON": Reply({"y": 1}),
    "no object": Reply([1]),
    "deep": Reply(b"[" * 100_000),
    "slow": Reply({"x": 0}, seconds=5),
    "reset": RESET,
}


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_is_asked_again(name):
    with fake_service(first(FAULTS[name])) as server:
        with Service(server.url, Limits(timeout=0.3)) as service:
            assert service.ask({"ask": 7}, read) == 7
        assert server.bodies == [{"ask": 7}] * 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_is_an_error_after_the_stated_attempts(name):
    with fake_service(lambda *_: FAULTS[name]) as server:
        with (
            Service(server.url, Limits(timeout=0.3, attempts=2)) as service,
            pytest.raises(ServiceError, match=server.url),
        ):
            service.ask({}, read)
        assert len(server.bodies) == 2


def test_nobody_asks_before_the_server_wants_it():
    with fake_service(first(Reply({}, 429, {"Retry-After": "1"}))) as server:
        with Service(server.url, Limits(concurrency=1)) as service:
            service.ask({"ask": 1}, read)
        assert server.times[1] - server.times[0] >= 1.0
    with fake_service(first(Reply({}, 503, {"Retry-After": "3600"}))) as server:
        with Service(server.url) as service, pytest.raises(ServiceDownError, match="wait 3600 s"):
            service.ask({"ask": 1}, read)
        assert len(server.bodies) == 1


def test_a_pause_holds_for_every_thread():
    with fake_service(first(Reply({}, 429, {"Retry-After": "1"}))) as server:
        with Service(server.url, Limits(concurrency=1)) as service:
            thread = threading.Thread(target=service.ask, args=({"ask": 1}, read))
            thread.start()
            while not server.bodies:
                time.sleep(0.01)
            time.sleep(0.1)
            service.ask({"ask": 2}, read)
            thread.join()
        assert server.times[1] - server.times[0] >= 1.0


def test_any_text_can_be_asked():
    with fake_service(first()) as server, Service(server.url) as service:
        assert service.ask({"ask": "\ud800\x00ü"}, read) == "\ud800\x00ü"


def test_every_thread_gives_the_first_reason():
    def answer(body, _):
        return Reply({}, 401) if body["ask"] == 3 else Reply({"x": 1}, seconds=0.3)

    with fake_service(answer) as server, Service(server.url, Limits(concurrency=4)) as service:
        with pytest.raises(ServiceDownError, match="answers 401"):
            service.map(lambda i: service.ask({"ask": i}, read), range(20))
        assert len(server.bodies) == 4


def test_retry_after_is_seconds_or_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 97 < retry_after(later) <= 100
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for odd in (None, "", "soon", "-3", "nan", "inf"):
        assert retry_after(odd) is None


def test_the_pace_and_the_number_at_one_time_are_kept():
    with fake_service(lambda body, _: Reply({"x": body["ask"]}, seconds=0.05)) as server:
        with Service(server.url, Limits(concurrency=3)) as service:
            asked = service.map(lambda i: service.ask({"ask": i}, read), range(12))
        assert asked == list(range(12))
        assert 1 < server.most <= 3
    with fake_service(first()) as server:
        with Service(server.url, Limits(per_minute=600, concurrency=8)) as service:
            service.map(lambda i: service.ask({"ask": i}, read), range(6))
        assert server.times[-1] - server.times[0] >= 0.45


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_a_refusal_for_all_ends_everything(status):
    with fake_service(lambda *_: Reply({"error": "no"}, status)) as server:
        with (
            Service(server.url, Limits(concurrency=1)) as service,
            pytest.raises(ServiceDownError, match=f"answers {status}"),
        ):
            service.map(lambda i: service.ask({}, read), range(100))
        assert len(server.bodies) == 1


def ask_all(server, limits, numbers):
    """Return the answers, None for a request that failed."""
    with Service(server.url, limits) as service:

        def ask(number):
            try:
                return service.ask({"ask": number}, read)
            except ServiceError:
                return None

        return service.map(ask, numbers)


def test_a_refusal_of_one_request_is_that_requests():
    def answer(body, _):
        return Reply({"error": "too long"}, 400) if body["ask"] else {"x": 0}

    limits = Limits(concurrency=1)
    with fake_service(answer) as server:
        asked = ask_all(server, limits, [0, *range(1, 20), 0])
        assert asked == [0, *[None] * 19, 0]
        assert len(server.bodies) == 21  # a refusal is not asked again
        with pytest.raises(ServiceDownError, match=r"5 times in a row.*too long"):
            ask_all(server, limits, range(1, 20))  # it never took one: the address is wrong


def test_a_dead_service_is_given_up():
    with fake_service(lambda *_: RESET) as server:
        with pytest.raises(ServiceDownError, match="5 times in a row"):
            ask_all(server, Limits(attempts=2, concurrency=1), range(100))
        assert len(server.bodies) == 10


def test_the_key_is_sent_and_never_said():
    answer = Reply(b"your key s3cret is odd", 500)
    with fake_service(lambda *_: answer) as server:
        with (
            Service(server.url, Limits(attempts=1), key="s3cret") as service,
            pytest.raises(ServiceError, match=r"your key \*\*\* is odd"),
        ):
            service.ask({}, read)
        assert server.headers[0]["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "url", ["", "localhost:80", "ftp://x", "http://", "http://a:b@c", "http://x:y"]
)
def test_addresses(url):
    with pytest.raises(UsageError) as error:
        Service(url)
    assert "a:b" not in str(error.value)


def test_limits():
    for options in ({"attempts": 0}, {"concurrency": 0}, {"timeout": 0}, {"per_minute": -1}):
        with pytest.raises(UsageError, match="must be"):
            Limits(**options)
