"""Open a checkpoint and serve the page around it until told to stop."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import uvicorn
from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from collamo.errors import UsageError
from collamo.inference.checkpoint import find_checkpoint
from collamo.inference.serve.app import Service
from collamo.inference.serve.gate import LOOPBACK, App, Gate, Limits, Message, Receive, Scope, Send
from collamo.inference.serve.server import Options, open_service
from collamo.inference.serve.transformers_engine import TransformersEngine
from collamo.inference.web.attention import AtomAttention
from collamo.inference.web.desk import Desk

#: Where the password is looked for; one on the command line is seen by every user of the machine.
PASSWORD = "COLLAMO_WEB_PASSWORD"
#: The name to log in with, beside the password.
USER = "collamo"
#: Our choice: seconds that answers get to end; a page that is open holds its connection for ever.
GRACE = 5
#: 3Dmol.js 2.5.5 as npm has it (BSD-3-Clause), the element that shows a conformer with it, styles.
ASSETS = Path(__file__).parent / "assets"
#: The browser itself refuses whatever would be fetched from another host.
HEADERS = {
    "content-security-policy": (
        "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
        "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def serve_page(checkpoint: str | Path | None, options: Options, password: str | None) -> None:
    """Serve the page about a checkpoint until SIGINT or SIGTERM.

    Raises
    ------
    UsageError
        For an address that others reach, without a password.
    MissingDependencyError, CollamoError
        As `collamo.load`.
    """
    password = password or os.environ.get(PASSWORD) or None
    if options.host not in LOOPBACK and password is None:
        raise UsageError(
            f"others reach {options.host}: set {PASSWORD}, or give --password, with which they log "
            f"in as {USER}"
        )
    folder = find_checkpoint(checkpoint)
    with tempfile.TemporaryDirectory(prefix="collamo-web-") as uploads:
        # Before Gradio is imported, and its Hub client with it.
        os.environ |= {
            "GRADIO_TEMP_DIR": uploads,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        app = build_page_app(open_service(folder, options), str(folder), options, password)
        uvicorn.run(
            app,
            host=options.host,
            port=options.port,
            log_level="info",
            access_log=False,  # addresses have questions in them
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )


def build_page_app(
    service: Service, name: str, options: Options, password: str | None = None
) -> FastAPI:
    """Return the ASGI application, which closes engine and reader of `service` when it ends."""
    import gradio as gr

    from collamo.inference.web.page import page

    assistant = cast("TransformersEngine", service.engine).assistant
    soft = service.processor.molecules_as == "soft_tokens"
    desk = Desk(service, AtomAttention(assistant) if soft else None)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.engine.close()
        service.reader.close()

    app = FastAPI(title="CoLLaMo", lifespan=lifespan, openapi_url=None)
    app.add_middleware(Headers)
    local = options.host in LOOPBACK
    app.add_middleware(
        Gate,
        limits=Limits(body=desk.file_bytes, in_flight=service.limits.in_flight),
        metrics=service.metrics,
        api_key=None,
        hosts=LOOPBACK if local else None,
    )
    app.mount("/collamo", StaticFiles(directory=ASSETS))
    return gr.mount_gradio_app(
        app,
        page(desk, name),
        path="/",
        server_name=options.host,
        server_port=options.port,
        auth=None if password is None else (USER, password),
        max_file_size=desk.file_bytes,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        # The default theme's fonts are Google's.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css_paths=[ASSETS / "page.css"],
        head='<script src="collamo/page.js"></script>',
    )


class Headers:
    """ASGI middleware that adds `HEADERS` to every response."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        await self.app(scope, receive, with_headers)
