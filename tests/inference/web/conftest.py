"""The page of the trained model, and a real browser that looks at it (`make test-web`)."""

import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

#: Where each test leaves what it saw.
SCREENSHOTS = Path("build/web").absolute()
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
#: What the browser waits for anything; a busy machine takes long to load a page.
SECONDS = 120
#: WebGL without a GPU; as root Chromium has no sandbox.
ARGUMENTS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


class Site:
    """A page on a port of its own, in a thread."""

    def __init__(self, checkpoint, password=None, **options):
        uvicorn = pytest.importorskip("uvicorn", reason="make test-web")
        pytest.importorskip("gradio", reason="make test-web")
        from collamo.inference.serve.server import Options, open_service
        from collamo.inference.web.server import build_page_app

        chosen = Options(port=0, **options)
        self.service = open_service(checkpoint, chosen)
        app = build_page_app(self.service, "the <b>small</b> model", chosen, password)
        self.server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="session")
def site(run, tmp_path_factory):
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("uploads"))
    site = Site(run.checkpoint)
    yield site
    site.stop()


@pytest.fixture(scope="session")
def browser():
    pytest.importorskip("playwright", reason="make test-web")
    from playwright.sync_api import sync_playwright

    names = [os.environ.get("COLLAMO_CHROMIUM", ""), *CHROMIUM]
    path = next(filter(None, map(shutil.which, filter(None, names))), None)
    if path is None:
        pytest.skip("no Chromium on the path; COLLAMO_CHROMIUM names one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def look(browser, site, request):
    """``look(path="", width=1280)``: a new page, which must run no script of others, fetch nothing
    from elsewhere and raise nothing; a screenshot of each stays in build/web."""
    opened, trouble = [], []

    def see(path="", width=1280, url=None):
        context = browser.new_context(viewport={"width": width, "height": 900})
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()
        opened.append((context, page))
        page.on("request", lambda sent: _elsewhere(sent.url, site.url, trouble))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append("a dialog"), dialog.dismiss()))
        page.on("console", lambda said: _refused(said.text, trouble))
        page.goto((url or site.url) + "/" + path)
        page.locator("#ask").wait_for()
        return page

    yield see
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "_", request.node.name).strip("_")[:80]
    for number, (context, page) in enumerate(opened, 1):
        page.screenshot(path=SCREENSHOTS / f"{name}_{number}.png", full_page=True)
        assert page.evaluate("window.pwned") is None
        context.close()
    assert trouble == []


def _elsewhere(url, own, trouble):
    if not url.startswith((own, "data:", "blob:")):
        trouble.append(f"asked for {url}")


def _refused(text, trouble):
    """What the policy stopped: the browser says so in its console alone."""
    if "Content Security Policy" in text or "Refused to" in text:
        trouble.append(text)
