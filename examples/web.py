"""A page in the browser that asks a trained model about a molecule, with its drawing beside.

    pip install 'collamo[web]'
    python examples/web.py --checkpoint demo/stage2/final

It is served on this machine alone, http://127.0.0.1:7860, unless `--host 0.0.0.0` is given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from collamo.chem.draw import draw_molecules_svg
from collamo.chem.molecule import parse_molecule
from collamo.errors import CollamoError, MissingDependencyError
from collamo.inference.assistant import Assistant, load
from collamo.inference.molecules import molecule_features, notes, read_molecule

EXAMPLES = [
    ["CC(=O)Oc1ccccc1C(=O)O", "How many rings does it have?"],
    ["CCO", "How many hydroxyl groups does it have?"],
]
LONGEST_QUESTION = 1000  # characters; whoever sees the page may type into it
NOTHING = '<p style="color: gray">no molecule</p>'

Answerer = Callable[[str, str], tuple[str, str]]


def drawing(smiles: str) -> str:
    """Return the molecule as SVG, or the reason why it cannot be read, as HTML."""
    from html import escape

    if not smiles.strip():
        return NOTHING
    try:
        svg = draw_molecules_svg([parse_molecule(smiles)])
    except CollamoError as error:
        return f'<p style="color: firebrick">{escape(str(error))}</p>'
    return svg[svg.index("<svg") :]  # HTML has no place for the XML declaration


def answerer(assistant: Assistant, seconds: float = 10.0) -> Answerer:
    """Return the function (SMILES, question) → (drawing, answer); what is wrong is an answer too.

    One question at a time: the model's train/eval mode is switched for each.
    """
    lock = Lock()

    def ask(smiles: str, question: str) -> tuple[str, str]:
        picture = drawing(smiles)
        try:
            if not question.strip():
                return picture, "Please ask a question."
            if len(question) > LONGEST_QUESTION:
                return picture, f"Please ask in at most {LONGEST_QUESTION} characters."
            (features,) = molecule_features([read_molecule(smiles)], seconds=seconds)
            with lock:
                text = assistant.ask(features, question)
        except CollamoError as error:
            return picture, f"Sorry: {error}"
        return picture, "\n".join([text, *(f"({note})" for note in notes(features))])

    return ask


def page(ask: Answerer):
    """Return the Gradio page around `ask`."""
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "gradio is not installed; pip install 'collamo[web]'"
        ) from error

    with gr.Blocks(title="CoLLaMo", analytics_enabled=False) as blocks:
        gr.Markdown("# CoLLaMo\nAsk about a molecule. Answers of a small model are often wrong.")
        with gr.Row():
            with gr.Column():
                smiles = gr.Textbox(label="Molecule (SMILES or SELFIES)", value=EXAMPLES[0][0])
                question = gr.Textbox(label="Question", value=EXAMPLES[0][1])
                button = gr.Button("Ask", variant="primary")
                text = gr.Textbox(label="Answer", interactive=False)
                gr.Examples(EXAMPLES, [smiles, question])
            picture = gr.HTML(drawing(EXAMPLES[0][0]))
        smiles.change(drawing, smiles, picture, show_progress="hidden")
        for event in (button.click, question.submit):
            event(ask, [smiles, question], [picture, text], api_name="ask")
    return blocks


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and serve until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", type=Path, help="default: the newest in demo/")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)
    try:
        blocks = page(answerer(load(options.checkpoint)))
    except CollamoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    blocks.launch(server_name=options.host, server_port=options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
