"""`collamo serve`: what it refuses at once, and a start and a stop as an operator does them."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from command_line import assert_fails

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))), reason="make test-serve"
)


def test_what_it_refuses(collamo, run, monkeypatch, tmp_path):
    monkeypatch.delenv("COLLAMO_API_KEY", raising=False)
    assert_fails(collamo("serve", run.checkpoint, "--host", "0.0.0.0"), 2, "COLLAMO_API_KEY")
    assert_fails(collamo("serve", run.checkpoint, "--engine", "transformer"), 2, "did you mean")
    assert_fails(collamo("serve", tmp_path / "nowhere"), 4, "does not exist")
    assert_fails(collamo("serve", run.checkpoint, "--max-body", "0"), 2, "max-body")


def test_an_operator_starts_and_stops_it(run, collamo):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "collamo", "serve", str(run.checkpoint), "--port", str(port)],
        env={**os.environ, "COLLAMO_API_KEY": "sesame"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        content = '<mol smiles="CCO"/>How many rings does it have?'
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": "Bearer sesame"},
        )
        while True:
            try:
                answer = json.load(urllib.request.urlopen(request))
                break
            except urllib.error.URLError:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.2)
        options = ["--checkpoint", run.checkpoint, "--max-new-tokens", "8"]
        expected = collamo("ask", "CCO", "How many rings does it have?", *options)[1].strip()
        assert answer["choices"][0]["message"]["content"] == expected
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) in (0, -signal.SIGTERM)
    finally:
        process.kill()
    log = process.stderr.read()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
