"""A JSON service on this machine that answers as a test says, faults included."""

import json
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RESET = "reset"  # the connection is torn down instead of an answer


class Reply:
    """Status, body (bytes as they are, all else as JSON), headers, and how long it takes [s]."""

    def __init__(self, body=None, status=200, headers=None, seconds=0.0):
        self.content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.headers, self.seconds = status, headers or {}, seconds


@contextmanager
def fake_service(answer):
    """Serve ``answer(body, number)`` (a `Reply`, `RESET` or a JSON value) and yield the service.

    It has `url`, `bodies` (every request's JSON), `headers`, `times` and `most` (at one time).
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
                server.times.append(time.monotonic())
                server.now += 1
                server.most = max(server.most, server.now)
            try:
                self._reply(answer(body, number))
            finally:
                with server.lock:
                    server.now -= 1

        def _reply(self, reply):
            if reply is RESET:
                linger = struct.pack("ii", 1, 0)  # close with a reset, not with a farewell
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                self.connection.close()
                return
            reply = reply if isinstance(reply, Reply) else Reply(reply)
            server.closing.wait(reply.seconds)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        def handle(self):
            with suppress(OSError, ValueError):  # the client gave up, or we did
                super().handle()

        def finish(self):
            with suppress(OSError, ValueError):
                super().finish()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock, server.closing = threading.Lock(), threading.Event()
    server.bodies, server.headers, server.paths, server.times = [], [], [], []
    server.now = server.most = 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
