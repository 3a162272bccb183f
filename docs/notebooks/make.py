"""Run the notebooks of examples/notebooks, and write them with what they show as pages beside this.

    python docs/notebooks/make.py [NAME …]

Each runs in a kernel of this Python, in one working folder, one after the other: the second trains
what the third asks, unless COLLAMO_CHECKPOINT names a better one. What a page shows therefore comes
from its code.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "examples" / "notebooks"
NAMES = ("replace_attention", "train_your_own", "ask_a_molecule", "where_time_goes")
SECONDS = 900  # of one cell: a busy machine is ten times as slow
SCRIPT = "../assets/3Dmol-min.js"  # mkdocs puts it there: docs/notebooks/hooks.py


def run(name: str, folder: Path) -> None:
    """Execute a notebook in a folder and write its page, pictures in ``<name>_files``."""
    import jupytext
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter

    notebook = jupytext.read(SOURCES / f"{name}.py")
    resources = {"metadata": {"path": str(folder)}}
    options = {"timeout": SECONDS, "kernel_name": "python3", "resources": resources}
    # What a shell writes comes in pieces of a hundred characters.
    NotebookClient(notebook, **options, coalesce_streams=True).execute()
    files = f"{name}_files"
    exporter = MarkdownExporter()
    body, found = exporter.from_notebook_node(notebook, {"output_files_dir": files})
    body = body.replace(f"{folder}/", "")
    (HERE / files).mkdir(exist_ok=True)
    for old in (HERE / files).iterdir():
        old.unlink()
    for path, content in found["outputs"].items():
        (HERE / path).write_bytes(content)
    (HERE / f"{name}.md").write_text(page(body, name), encoding="utf-8")


def page(body: str, name: str) -> str:
    """Return a page of what nbconvert gives, without whole libraries of scripts and colours."""
    body = re.sub(r"\x1b\[[0-9;]*m", "", body)
    body = re.sub(r"<script>(.*?)</script>", _shorter, body, flags=re.S)
    body = re.sub(r"^.*(TqdmWarning|notebook_tqdm$|Loading weights:).*\n", "", body, flags=re.M)
    body = re.sub(r"^ *USDT:.*\n", "", body, flags=re.M)  # what torch's profiler says of itself
    body = body.replace(str(HERE.parents[1]), "…").replace("/tmp/", "…/")
    lines = [line.rstrip() for line in body.strip().splitlines()]
    title, rest = lines[0], "\n".join(lines[1:])
    source = f"examples/notebooks/{name}.py"
    note = (
        f"A notebook, run by `make notebooks`. Its source is `{source}`; "
        f"`jupytext --to ipynb {source}` makes what Jupyter opens."
    )
    return f"{title}\n\n{note}\n{rest}\n"


def _shorter(script: re.Match) -> str:
    """Return a script, or where the site has it where it is the whole of a library."""
    return script[0] if len(script[1]) < 9999 else f'<script src="{SCRIPT}"></script>'


def main(names: list[str]) -> None:
    """Run the named notebooks, all of them without names."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("NOTEBOOKS", temporary))  # where to go on with some of them
        for name in names or NAMES:
            start = time.monotonic()
            run(name, folder)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
