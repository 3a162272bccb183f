"""Photograph `collamo web` for the README: a question about caffeine, and the atoms looked at.

    .venv-web/bin/python docs/figures/web_page.py CHECKPOINT

needs what `make test-web` installs, and a Chromium on the path (or in COLLAMO_CHROMIUM).
"""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PICTURE = Path(__file__).with_name("web_page.png")
CAFFEINE = "CN1C=NC2=C1C(=O)N(C(=O)N2C)C"
QUESTION = "How many rings does this molecule have?"
PORT = 7861
SHOWN = {"x": 100, "y": 108, "width": 980, "height": 637}  # below the name of the checkpoint
MILLISECONDS = 300_000  # a busy machine takes minutes for what an idle one does in seconds
COLOURS = 64  # of the picture's palette: a quarter of the size, and no visible difference
CHROMIUM = (os.environ.get("COLLAMO_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")


def main(checkpoint: str) -> None:
    """Start the page with a checkpoint, ask, and write the picture."""
    command = [sys.executable, "-m", "collamo", "web", checkpoint, "--port", str(PORT)]
    with subprocess.Popen(command) as server:
        try:
            wait()
            photograph()
        finally:
            server.terminate()


def wait() -> None:
    """Wait for the server, which loads its model first."""
    for _ in range(MILLISECONDS // 500):
        try:
            socket.create_connection(("127.0.0.1", PORT)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.5)
    raise SystemExit("error: the page did not open")


def photograph() -> None:
    """Open the page, ask the question, and write what is seen."""
    path = next(filter(None, map(shutil.which, filter(None, CHROMIUM))), None)
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.set_default_timeout(MILLISECONDS)
        page.goto(f"http://127.0.0.1:{PORT}")
        ask(page)
        shot = Image.open(io.BytesIO(page.screenshot(clip=SHOWN))).convert("RGB")
        shot.quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
        print(f"{PICTURE}: {PICTURE.stat().st_size // 1000} kB")
        browser.close()


def ask(page: Page) -> None:
    """Ask the question, and mark the atoms that all soft tokens look at."""
    for name, text in (("molecule", CAFFEINE), ("question", QUESTION)):
        page.locator(f"#{name} textarea, #{name} input").first.fill(text)
    page.click("#ask")
    page.locator("#conversation a").wait_for()
    page.locator("#gaze input").click()
    page.get_by_role("option", name=re.compile("all", re.I)).first.click()
    page.locator("#molecule-conformer collamo-conformer[data-atoms]").wait_for()
    page.wait_for_timeout(3000)  # the drawing with its marks
    page.evaluate("window.scrollTo(0, 0)")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
