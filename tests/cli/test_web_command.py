"""`collamo web`: what it refuses at once, and a start and a stop as a user does them."""

import importlib.util
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

there = bool(importlib.util.find_spec("gradio"))
needs_gradio = pytest.mark.skipif(not there, reason="make test-web")


@pytest.mark.skipif(there, reason="Gradio is here")
def test_without_gradio_the_extra_is_named(collamo):
    assert_fails(collamo("web"), 4, "collamo[web]", "gradio")


@needs_gradio
def test_what_it_refuses(collamo, run, monkeypatch, tmp_path):
    monkeypatch.delenv("COLLAMO_WEB_PASSWORD", raising=False)
    assert_fails(collamo("web", run.checkpoint, "--host", "0.0.0.0"), 2, "COLLAMO_WEB_PASSWORD")
    assert_fails(collamo("web", tmp_path / "nowhere"), 4, "does not exist")


@needs_gradio
def test_a_user_starts_and_stops_it(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "collamo", "web", str(run.checkpoint), "--port", str(port)],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while True:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode()
                break
            except urllib.error.URLError:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.2)
        assert str(run.checkpoint) in page
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) in (0, 130, -signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
