"""The server with the official client, and with clients that mean no good (`make test-serve`)."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

openai = pytest.importorskip("openai", reason="make test-serve")
uvicorn = pytest.importorskip("uvicorn", reason="make test-serve")
import httpx  # noqa: E402

from collamo.inference.serve import transformers_engine  # noqa: E402
from collamo.inference.serve.app import Service, build_app  # noqa: E402
from collamo.inference.serve.gate import LOOPBACK, Limits  # noqa: E402
from collamo.inference.serve.molecule_reader import MoleculeReader  # noqa: E402
from collamo.inference.serve.transformers_engine import TransformersEngine  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
RINGS, ACID = "How many rings does it have?", "Is it an acid?"
TOKENS = 12


class Server:
    """An application on a port of its own, in a thread."""

    def __init__(self, assistant, *, api_key=None, conformer_seconds=10.0, **limits):
        reader = MoleculeReader(seconds=conformer_seconds, workers=2)
        engine = TransformersEngine(assistant, batch_size=4)
        self.service = Service(
            engine, assistant.processor, reader, limits=Limits(**limits), created=7
        )
        app = build_app(self.service, api_key=api_key, hosts=LOOPBACK)
        config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=30)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self, key="none"):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def post(self, content, path="/v1/chat/completions", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        sent = {"content-type": "application/json", **headers}
        return httpx.post(self.url + path, content=body, headers=sent, timeout=60)

    def metric(self, name):
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def until(self, name, value):
        """Wait until a metric has a value; the test's own time limit ends what never comes."""
        while self.metric(name) != value:
            time.sleep(0.02)

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def server(assistant):
    server = Server(assistant)
    yield server
    server.stop()


@pytest.fixture
def serve(assistant):
    """``serve(**limits)``: a server of this test's own."""
    with contextlib.ExitStack() as stack:

        def start(**options):
            server = Server(assistant, **options)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def slow(assistant, monkeypatch):
    """Answers that do not end, at 50 tokens a second."""
    configuration = assistant.model.generation_config
    never = [*configuration.suppress_tokens, assistant.processor.tokenizer.eos_token_id]
    monkeypatch.setattr(configuration, "suppress_tokens", never)
    take = transformers_engine._Answer.take

    def slowly(self, *arguments):
        time.sleep(0.02)
        take(self, *arguments)

    monkeypatch.setattr(transformers_engine._Answer, "take", slowly)


def about(question, **molecule):
    parts = [{"type": "molecule", **molecule}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def asked(**more):
    return {"messages": about(RINGS, smiles="CCO"), "max_tokens": TOKENS, **more}


def joined(stream):
    """(text, first chunk, last chunk with a choice, usage)"""
    chunks = list(stream)
    choices = [chunk for chunk in chunks if chunk.choices]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in choices)
    return text, chunks[0], choices[-1], chunks[-1].usage


# --- the official client ------------------------------------------------------------------


def test_whole_and_streamed_are_what_ask_says(server, assistant):
    client = server.client()
    for smiles, question in (("CCO", RINGS), ("c1ccccc1O", ACID), ("CC(=O)O", "Describe it.")):
        expected = assistant.ask(smiles, question, max_new_tokens=TOKENS)
        arguments = {"model": "collamo", "max_tokens": TOKENS}
        arguments["messages"] = about(question, smiles=smiles)
        whole = client.chat.completions.create(**arguments)
        choice = whole.choices[0]
        assert choice.message.content == expected
        assert choice.finish_reason in ("stop", "length")
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        arguments["stream_options"] = {"include_usage": True}
        text, first, last, usage = joined(client.chat.completions.create(**arguments, stream=True))
        assert text == expected
        assert last.choices[0].finish_reason == choice.finish_reason
        assert usage == whole.usage
        assert first.molecules == whole.molecules


def test_every_way_to_give_a_molecule_is_the_same_question(server, assistant):
    block = assistant.features("CCO") and "\n".join(
        ["", "  made by hand", "", "  3  2  0  0  0  0  0  0  0  0999 V2000"]
        + [f"{i:10.4f}    0.0000    0.0000 {e}   0  0" for i, e in enumerate("CCO")]
        + ["  1  2  1  0", "  2  3  1  0", "M  END", ""]
    )
    ways = [
        about(RINGS, smiles="CCO"),
        about(RINGS, selfies="[C][C][O]"),
        about(RINGS, mol=block),
        [{"role": "user", "content": f'<mol smiles="CCO"/>{RINGS}'}],
        [{"role": "user", "content": f"<mol selfies='[C][C][O]'/>\n{RINGS}"}],
    ]
    expected = assistant.ask("CCO", RINGS, max_new_tokens=TOKENS)
    for messages in ways:
        answer = server.client().chat.completions.create(
            **asked(messages=messages, model="collamo")
        )
        assert answer.choices[0].message.content == expected
        assert [each["smiles"] for each in answer.molecules] == ["CCO"]


def test_it_says_what_was_read(server):
    create = server.client().chat.completions.create
    whole = create(model="collamo", **asked())
    assert whole.molecules[0]["views"] == ["1d", "2d", "3d"]
    assert whole.molecules[0]["conformer"] == {
        "method": "etkdgv3+mmff",
        "seed": 0,
        "converged": True,
        "reason": None,
    }
    part = create(model="collamo", **asked(extra_body={"views": ["1d", "2d"]}))
    assert part.molecules[0]["views"] == ["1d", "2d"]
    assert part.molecules[0]["conformer"]["reason"] == "3D not requested"
    heavy = create(model="collamo", **asked(messages=about(RINGS, smiles="[Pd]")))
    assert heavy.molecules[0]["notes"] == ["the 3D encoder reads Pd as [UNK]"]


def test_a_conversation_and_a_plain_prompt(server, assistant):
    client, processor = server.client(), assistant.processor
    turns = [*about(RINGS, smiles="CCO"), {"role": "assistant", "content": "0"}]
    turns += [{"role": "user", "content": "Sure?"}]
    options = {"model": "collamo", "max_tokens": TOKENS}
    chatted = client.chat.completions.create(messages=turns, **options).choices[0].message.content
    prompt = processor.prompt(RINGS).replace("<mol>", '<mol smiles="CCO"/>') + "0</s>"
    prompt += "<user>Sure?<assistant>"
    completed = client.completions.create(prompt=prompt, **options)
    assert completed.choices[0].text == chatted
    chunks = list(client.completions.create(prompt=prompt, stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == chatted


def test_the_model_is_listed(server):
    (model,) = server.client().models.list().data
    assert (model.id, model.owned_by, model.created) == ("collamo", "collamo", 7)
    assert server.client().models.retrieve("collamo") == model
    with pytest.raises(openai.NotFoundError, match="not served here"):
        server.client().models.retrieve("gpt")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"messages": about(RINGS, smiles="C1CC")}, openai.BadRequestError, "unclosed ring"),
        ({"messages": about(" ", smiles="C")}, openai.BadRequestError, "the question is empty"),
        ({"messages": about("why " * 5000, smiles="C")}, openai.BadRequestError, "positions"),
        ({"messages": about("a <mol> b", smiles="C")}, openai.BadRequestError, "is no molecule"),
        ({"messages": about("a", smiles="C" * 20_000)}, openai.BadRequestError, "4,?000"),
        ({"messages": about("a", smiles="C") * 9}, openai.BadRequestError, "at most 8"),
        ({"model": "gpt"}, openai.NotFoundError, "not served here"),
        ({"n": 2}, openai.BadRequestError, "not supported"),
        ({"extra_body": {"prompt_embeds": "AAAA"}}, openai.BadRequestError, "are not read"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature: there is no such"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"messages": about("x" * 1_000_000, smiles="C")}, openai.APIStatusError, "larger than"),
    ],
    ids=str,
)
def test_what_is_wrong_is_openais_error(server, arguments, error, said):
    with pytest.raises(error, match=said) as caught:
        server.client().chat.completions.create(**{"model": "collamo", **asked(), **arguments})
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert len(caught.value.body["message"]) < 400


# --- clients that mean no good ------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 200_000,
        b'{"messages": ' + b"[" * 100_000,
        b"[]",
        b"7",
        b'{"messages": {}}',
        b'{"messages": [[]]}',
        b'{"messages": [{"role": "user", "content": "\\ud800 a"}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "molecule", "smiles": "\\ud800"}]}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "\\ud800": 1}',
        b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1e999}',
        b'{"messages": [{"role": "user", "content": "a"}], "model": NaN}',
        b"\xff\xfe\x00",
    ],
    ids=lambda body: body[:40],
)
def test_a_body_that_is_no_request_is_a_400(server, body):
    answer = server.post(body)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["error"]["message"]


def test_a_script_comes_back_as_json_alone(server):
    script = "<script>alert(1)</script>"
    answer = server.post(asked(messages=about(RINGS, smiles=script)))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert script[:10] in answer.json()["error"]["message"]


def test_a_page_of_another_name_is_refused(server):
    """A browser that was led here by a stranger's name (DNS rebinding), or by a form."""
    assert server.post(asked(), host="evil.example").status_code == 403
    assert server.post(asked(), host="127.0.0.1:1").status_code == 200
    assert server.post(asked(), **{"content-type": "text/plain"}).status_code in (400, 415)


def test_pages_that_fetch_from_others_are_off(server):
    for path in ("/docs", "/redoc", "/openapi.json", "/"):
        answer = httpx.get(server.url + path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_a_large_body_is_not_kept(server):
    def endless():
        for _ in range(1000):
            yield b"x" * 65536

    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it may hang up first
        answer = httpx.post(server.url + "/v1/completions", content=endless(), timeout=60)
        assert answer.status_code == 413
    assert server.post(asked()).status_code == 200


def test_a_body_that_never_ends_is_given_up(serve):
    server = serve(body_seconds=0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_hanging_molecule_costs_its_own_request(serve, assistant):
    server = serve(conformer_seconds=0.5)
    chain = asked(messages=about(RINGS, smiles="C" * 300))
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(server.post, chain)
        quick = server.post(asked())
        assert quick.json()["choices"][0]["message"]["content"] == assistant.ask(
            "CCO", RINGS, max_new_tokens=TOKENS
        )
        answer = hanging.result().json()
    assert answer["molecules"][0]["views"] == ["1d", "2d"]
    assert "no geometry within" in answer["molecules"][0]["conformer"]["reason"]


def test_without_the_key_nothing_but_health(serve):
    server = serve(api_key="sesame")
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    for path in ("/v1/models", "/metrics", "/nowhere"):
        assert httpx.get(server.url + path).status_code == 401
    for key in ("sesam", "sesamee", "none", "sésame"):
        sent = {"authorization": f"Bearer {key}".encode()}
        assert httpx.get(f"{server.url}/v1/models", headers=sent).status_code == 401
    with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
        server.client("wrong").models.list()
    assert server.client("sesame").models.list().data


# --- too many, too slow, gone -------------------------------------------------------------


def test_one_more_than_there_may_be_is_told_to_come_again(serve, slow):
    server = serve(in_flight=1)
    stream = server.client().chat.completions.create(
        model="collamo", **asked(max_tokens=900), stream=True
    )
    next(iter(stream))
    refused = server.post(asked())
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["type"] == "rate_limit_error"
    stream.close()
    server.until("collamo_requests_in_flight", 0)
    assert server.post(asked()).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_is_not_answered_on(serve, slow, stream):
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        body = json.dumps(asked(max_tokens=900, stream=stream))
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        while not server.service.engine._going_on:
            time.sleep(0.01)
    server.until("collamo_requests_in_flight", 0)
    while server.service.engine._going_on:
        time.sleep(0.01)
    assert server.metric('collamo_tokens_total{kind="answer"}') < 900


def test_who_takes_too_long_is_told_so(serve, slow):
    server = serve(seconds=0.5)
    answer = server.post(asked(max_tokens=900))
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    server.until("collamo_requests_in_flight", 0)


def test_many_at_once_are_all_answered(server, assistant):
    pairs = [(m, q) for m in ("CCO", "CC", "c1ccccc1", "CC(=O)O") for q in (RINGS, ACID)] * 3
    expected = {pair: assistant.ask(*pair, max_new_tokens=TOKENS) for pair in pairs}

    async def ask_all():
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        create = client.chat.completions.create
        options = {"model": "collamo", "max_tokens": TOKENS}
        waiting = (create(messages=about(q, smiles=m), **options) for m, q in pairs)
        return await asyncio.gather(*waiting)

    answers = asyncio.run(ask_all())
    assert [a.choices[0].message.content for a in answers] == [expected[pair] for pair in pairs]


def test_what_fails_in_a_stream_is_an_error_in_it(serve, monkeypatch):
    server = serve()
    take = transformers_engine._Answer.take

    def fails(self, *arguments):
        if len(self.text.ids) == 2:
            raise RuntimeError("broken")
        take(self, *arguments)

    monkeypatch.setattr(transformers_engine._Answer, "take", fails)
    arguments = asked(messages=about("Describe it.", smiles="CCO"), seed=1, temperature=2)
    stream = server.client().chat.completions.create(model="collamo", **arguments, stream=True)
    with pytest.raises(openai.APIError, match="its log says why"):
        list(stream)


def test_metrics_count(serve):
    server = serve()
    server.post(asked())
    server.post(asked(messages=about(RINGS, smiles="C1CC")))
    httpx.get(f"{server.url}/some/scanner")
    path = '{path="/v1/chat/completions"'
    assert server.metric(f'collamo_requests_total{path},status="200"}}') == 1
    assert server.metric(f'collamo_requests_total{path},status="400"}}') == 1
    assert server.metric('collamo_requests_total{path="other",status="404"}') == 1
    assert server.metric('collamo_conformers_total{method="etkdgv3+mmff"}') == 1
    assert server.metric("collamo_rejected_molecules_total") == 1
    assert server.metric("collamo_first_piece_seconds_count") == 1


def test_a_stop_lets_answers_end(assistant, slow):
    server = Server(assistant)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(server.post, asked(max_tokens=40))
        while not server.service.engine._going_on:
            time.sleep(0.01)
        server.stop()
        answer = running.result()
    assert answer.json()["usage"]["completion_tokens"] == 40
    with pytest.raises(httpx.ConnectError):
        server.post(asked())
