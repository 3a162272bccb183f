"""What strangers type, link to and send: shown as text, refused in a line, never run."""

import json
import urllib.parse

import pytest

pytest.importorskip("gradio", reason="make test-web")
playwright = pytest.importorskip("playwright.sync_api", reason="make test-web")
import httpx  # noqa: E402
from conftest import Site  # noqa: E402

expect = playwright.expect
expect.set_options(timeout=120_000)
pytestmark = pytest.mark.filterwarnings("ignore")
SCRIPTS = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"><svg onload='window.pwned=1'>",
    "${window.pwned=1}",
    "{{#with (lookup this 'constructor')}}{{/with}}{{value}}",
    "`};window.pwned=1;//",
    "[x](javascript:window.pwned=1)",
)


def field(page, name):
    return page.locator(f"#{name} textarea, #{name} input").first


@pytest.mark.parametrize("text", SCRIPTS)
def test_scripts_are_shown_as_text(look, text):
    page = look()
    field(page, "molecule").fill(text)
    alert = page.locator("#molecule-picture [role=alert]")
    expect(alert).to_contain_text(text[:10])
    field(page, "question").fill(text)
    page.click("#ask")
    expect(page.locator("#conversation .question")).to_contain_text(text[:10])
    expect(page.locator("#conversation .answer")).to_contain_text("Sorry")
    field(page, "molecule").fill("CCO")
    field(page, "question").fill(text)
    page.click("#ask")
    expect(page.locator("#conversation .question")).to_have_count(2)
    expect(page.locator("#conversation")).to_contain_text("read of CCO")


@pytest.mark.parametrize("text", SCRIPTS)
def test_scripts_in_a_link_are_text(look, text):
    fields = {"molecule": text, "question": text, "views": text}
    page = look("?" + urllib.parse.urlencode(fields))
    expect(page.locator("#conversation .answer")).to_contain_text("Sorry")
    assert field(page, "molecule").input_value() == text


def test_scripts_in_a_file_are_text(look, tmp_path):
    source = tmp_path / "<b>questions.jsonl"
    rows = [{"smiles": text, "question": text} for text in SCRIPTS]
    rows += [{"smiles": "CCO", "question": text} for text in SCRIPTS]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = look()
    page.get_by_role("tab", name="File").click()
    page.locator("#file input[type=file]").set_input_files(source)
    page.click("#answer-file")
    expect(page.locator("#rows")).to_contain_text("14 rows: 7 answered, 7 with errors")
    assert page.locator("#rows td script, #rows td img, #rows td svg").count() == 0


def test_a_megabyte_is_refused_in_a_line(look):
    page = look()
    page.evaluate("window.long = 'C'.repeat(1_000_000)")
    for name in ("molecule", "question"):
        page.evaluate(
            """name => { const box = document.querySelector(`#${name} textarea`);
            box.value = window.long; box.dispatchEvent(new Event('input')); }""",
            name,
        )
    expect(page.locator("#molecule-picture [role=alert]")).to_contain_text("1000000 characters")
    page.click("#ask")
    expect(page.locator("#conversation .answer")).to_contain_text("1000000 characters")
    field(page, "molecule").fill("CCO")
    page.click("#ask")
    expect(page.locator("#conversation .answer").last).to_contain_text("ask in 10000 at most")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("questions.txt", "CCO", "Invalid file type"),
        ("questions.csv", "smiles,question\n" + "CCO,why?\n" * 1001, "has 1001 rows"),
        ("questions.csv", "a,b\n1,2\n", "question"),
        ("questions.csv", "", "has no rows"),
    ],
)
def test_files_that_are_refused(look, tmp_path, name, content, reason):
    source = tmp_path / name
    source.write_text(content)
    page = look()
    page.get_by_role("tab", name="File").click()
    page.locator("#file input[type=file]").set_input_files(source)
    page.click("#answer-file")
    expect(page.locator("body")).to_contain_text(reason)


def test_what_is_sent_past_the_page(site):
    """Bodies, names and paths that no page of ours sends."""
    get = httpx.get(f"{site.url}/", headers={"host": "evil.example"})
    assert get.status_code == 403
    large = httpx.post(f"{site.url}/gradio_api/queue/join", content=b"x" * (11 * 2**20))
    assert large.status_code == 413
    for path in ("docs", "openapi.json", "gradio_api/info", "collamo/../server.py", "monitoring"):
        answer = httpx.get(f"{site.url}/{path}")
        assert answer.status_code >= 400 or "/ask" not in answer.text, path
    for path in ("/etc/passwd", "../../../../etc/passwd"):
        assert httpx.get(f"{site.url}/gradio_api/file={path}").status_code in (403, 404)
    policy = httpx.get(f"{site.url}/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "http" not in policy


def test_with_a_password_nothing_without_it(run):
    site = Site(run.checkpoint, password="sesame")
    try:
        for path in ("config", "gradio_api/queue/data?session_hash=x"):
            assert httpx.get(f"{site.url}/{path}").status_code == 401
        body = {"data": ["CCO", "", [], ""], "fn_index": 0, "session_hash": "x"}
        assert httpx.post(f"{site.url}/gradio_api/queue/join", json=body).status_code == 401
        wrong = {"username": "collamo", "password": "wrong"}
        assert httpx.post(f"{site.url}/login", data=wrong).status_code == 400
        right = {"username": "collamo", "password": "sesame"}
        assert httpx.post(f"{site.url}/login", data=right).status_code == 200
    finally:
        site.stop()
