"""The page: Gradio's components, and what each event does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from collamo.inference.web import shown
from collamo.inference.web.desk import FILE_TYPES, Desk, Reply, Turn, reason_of

EXAMPLES = (
    ("CC(=O)Oc1ccccc1C(=O)O", "How many rings does it have?"),
    ("OCC(O)CO", "How many hydroxyl groups does it have?"),
)
OFF, ALL = "nothing", "all soft tokens"
#: Our choice: events that wait or run; a click more is told so.
WAITING = 64
#: Our choice: events of one kind that run together; the engine makes their answers in one batch.
TOGETHER = 16
#: Uploads and downloads are looked at this often, and go when they are as old [s].
KEPT = (600, 3600)
#: Turns of a conversation that stay on the page.
REMEMBERED = 100
#: Questions of a link.
LINKED = 20


def page(desk: Desk, name: str) -> gr.Blocks:
    """Return the page about the model of this name; `desk` does the work."""
    handlers = Handlers(desk)
    with gr.Blocks(title="CoLLaMo", analytics_enabled=False, delete_cache=KEPT) as blocks:
        gr.HTML(
            f"<h1>CoLLaMo</h1><p>Ask {shown.escaped(name)} about molecules. Answers of a small "
            "model are often wrong.</p>",
            padding=False,
        )
        with gr.Row():
            views = gr.CheckboxGroup(
                [(view.upper(), view) for view in desk.service.modalities],
                value=list(desk.service.modalities),
                label="Views that the model may see",
                elem_id="views",
            )
            gaze = gr.Dropdown(
                _gazes(desk),
                value=OFF,
                label="Mark the atoms that are looked at by",
                elem_id="gaze",
            )
        with gr.Tab("Ask"):
            _ask(blocks, handlers, views, gaze)
        with gr.Tab("Compare"):
            _compare(handlers, views, gaze)
        with gr.Tab("File"):
            _file(handlers, views)
    blocks.queue(max_size=WAITING, default_concurrency_limit=TOGETHER, api_open=False)
    return blocks


def _gazes(desk: Desk) -> list[str]:
    tokens = desk.attention.tokens if desk.attention is not None else 0
    several = [f"soft token {number}" for number in range(1, tokens + 1)] if tokens > 1 else []
    return [OFF, *([ALL] if tokens else []), *several]


def _ask(blocks: gr.Blocks, handlers: Handlers, views: gr.CheckboxGroup, gaze: gr.Dropdown) -> None:
    turns = gr.State([])
    address = gr.Textbox(visible=False)
    with gr.Row():
        with gr.Column():
            molecule, picture, conformer = _molecule(
                "Molecule (SMILES, SELFIES, InChI or mol block)", EXAMPLES[0][0], "molecule"
            )
        with gr.Column():
            conversation = gr.HTML(
                shown.conversation([]), elem_id="conversation", autoscroll=True, max_height=420
            )
            question = gr.Textbox(label="Question", value=EXAMPLES[0][1], elem_id="question")
            with gr.Row():
                button = gr.Button("Ask", variant="primary", elem_id="ask", min_width=80)
                stop = gr.Button("Stop", elem_id="stop", min_width=80)
                clear = gr.Button("Clear", elem_id="clear", min_width=80)
            memory = gr.Checkbox(
                label="Questions see those before them",
                visible=handlers.desk.service.processor.chat_template is not None,
                elem_id="memory",
            )
            gr.Examples(
                [list(example) for example in EXAMPLES],
                [molecule, question],
                # As buttons: a table of both columns is wider than a phone.
                example_labels=[asked for _, asked in EXAMPLES],
            )
    _show_when_changed(blocks, handlers, (molecule, views, gaze), (picture, conformer))
    outputs = [conversation, question, turns]
    asked = gr.on(
        [button.click, question.submit],
        handlers.ask,
        [molecule, question, views, memory, turns],
        outputs,
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="once",
    )
    opened = blocks.load(
        handlers.opened,
        [address],
        [molecule, views, memory, *outputs],
        js="() => [window.location.search]",
        show_progress="hidden",
        api_visibility="private",
    )
    stop.click(None, cancels=[asked, opened])
    gr.on(
        [clear.click],
        lambda: (shown.conversation([]), []),
        None,
        [conversation, turns],
        cancels=[asked, opened],
        api_visibility="private",
    )


def _molecule(label: str, value: str, name: str) -> tuple[gr.Textbox, gr.HTML, gr.HTML]:
    """Lay out where a molecule is typed, and its pictures under it."""
    molecule = gr.Textbox(label=label, value=value, max_lines=4, elem_id=name)
    picture = gr.HTML(shown.NOTHING, elem_id=f"{name}-picture")
    conformer = gr.HTML(elem_id=f"{name}-conformer")
    return molecule, picture, conformer


def _show_when_changed(blocks: gr.Blocks | None, handlers: Handlers, inputs, outputs) -> None:
    events = [each.change for each in inputs] + ([blocks.load] if blocks is not None else [])
    gr.on(
        events,
        handlers.show,
        list(inputs),
        list(outputs),
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )


def _compare(handlers: Handlers, views: gr.CheckboxGroup, gaze: gr.Dropdown) -> None:
    molecules, answers = [], []
    with gr.Row():
        for number in (1, 2):
            with gr.Column(min_width=280):
                molecule, *pictures = _molecule(f"Molecule {number}", "", f"molecule-{number}")
                _show_when_changed(None, handlers, (molecule, views, gaze), pictures)
                molecules.append(molecule)
                answers.append(
                    gr.Textbox(label="Answer", interactive=False, elem_id=f"answer-{number}")
                )
    question = gr.Textbox(label="Question", elem_id="compared-question")
    with gr.Row():
        each = gr.Button("Ask about each", variant="primary", elem_id="ask-each")
        both = gr.Button("Ask about both at once", elem_id="ask-both")
        stop = gr.Button("Stop", elem_id="stop-comparing")
    together = gr.Textbox(label="Answer about both", interactive=False, elem_id="answer-both")
    status = gr.HTML(elem_id="compared-status")
    inputs, options = [*molecules, question, views], {"show_progress": "hidden"}
    options |= {"api_visibility": "private", "trigger_mode": "once"}
    events = [
        gr.on(
            [each.click, question.submit], handlers.ask_each, inputs, [*answers, status], **options
        ),
        both.click(handlers.ask_both, inputs, [together, status], **options),
    ]
    stop.click(None, cancels=events)


def _file(handlers: Handlers, views: gr.CheckboxGroup) -> None:
    desk = handlers.desk
    gr.HTML(
        shown.note(
            f"A file with a molecule and a question a row ({', '.join(FILE_TYPES)}), of at most "
            f"{desk.rows} rows and {desk.file_bytes // 2**20} MB. Every row comes back."
        )
    )
    file = gr.File(label="File of questions", file_types=list(FILE_TYPES), elem_id="file")
    with gr.Row():
        button = gr.Button("Answer the file", variant="primary", elem_id="answer-file")
        stop = gr.Button("Stop", elem_id="stop-file")
    answers = gr.DownloadButton("Download the answers", interactive=False, elem_id="download")
    result = gr.HTML(elem_id="rows", min_height=120)
    answered = button.click(
        handlers.answer_file,
        [file, views],
        [answers, result],
        show_progress_on=result,
        api_visibility="private",
        trigger_mode="once",
    )
    stop.click(None, cancels=[answered])


class Handlers:
    """What the events of the page do; each yields the new values of its components."""

    def __init__(self, desk: Desk):
        self.desk = desk

    async def show(self, text: str, views: list[str], gaze: str) -> AsyncIterator[tuple[str, str]]:
        """Show a molecule: on paper at once, then in space and with what is looked at."""
        if not text.strip():
            yield shown.NOTHING, ""
            return
        token = None if gaze in (OFF, ALL) else int(gaze.rpartition(" ")[2]) - 1
        try:
            drawn = await self.desk.draw(text)
            yield shown.picture(drawn.svg, text), shown.note("looking for its conformer …")
            drawn, read, looked = await self.desk.look(text, views, gaze != OFF, token)
        except Exception as error:
            yield shown.wrong(reason_of(error)), ""
            return
        yield (
            shown.picture(drawn.svg, text, looked),
            shown.conformer(drawn.mol_block, read, "3d" in views),
        )

    async def ask(
        self, molecule: str, question: str, views: list[str], memory: bool, turns: list[Turn]
    ) -> AsyncIterator[tuple[str, Any, list[Turn]]]:
        """Answer in the conversation; with `memory` the model sees what was said before."""
        earlier = turns[-REMEMBERED:]
        goes_on = memory and earlier and earlier[-1].molecule == molecule
        turn = Turn(molecule, question, tuple(views), earlier[-1].continued if goes_on else ())
        left: Any = ""  # in the field: what could not be asked stays there
        yield shown.conversation([*earlier, turn]), left, [*earlier, turn]
        try:
            async for reply in self.desk.ask([molecule], question, views, turn.messages()):
                turn = replace(turn, answer=reply.text, read=reply.read)
                yield shown.conversation([*earlier, turn]), gr.skip(), [*earlier, turn]
            turn = replace(turn, done=True)
        except Exception as error:
            turn, left = replace(turn, answer=f"Sorry: {reason_of(error)}", failed=True), question
        yield shown.conversation([*earlier, turn]), left or gr.skip(), [*earlier, turn]

    async def opened(self, address: str) -> AsyncIterator[tuple[Any, ...]]:
        """Ask what a link asks; nothing where the address has no molecule."""
        fields = parse_qs(address.removeprefix("?"), max_num_fields=4 * LINKED)
        if "molecule" not in fields:
            yield (gr.skip(),) * 6
            return
        molecule, questions = fields["molecule"][0], fields.get("question", [])[:LINKED]
        known = self.desk.service.modalities
        asked = fields.get("views", [",".join(known)])[0].split(",")
        views = [view for view in known if view in asked]
        memory, turns = len(questions) > 1, list[Turn]()
        yield molecule, views, memory, *(gr.skip(),) * 3
        for question in questions:
            async for step in self.ask(molecule, question, views, memory, turns):
                turns = step[-1]
                yield *(gr.skip(),) * 3, *step

    async def ask_each(
        self, first: str, second: str, question: str, views: list[str]
    ) -> AsyncIterator[tuple[str, str, str]]:
        """Answer the question about each of two molecules, side by side."""
        streams = [self.desk.ask([molecule], question, views) for molecule in (first, second)]
        async for one, two in _side_by_side(streams):
            told = shown.views_read([*one.read, *two.read])
            yield one.text, two.text, told

    async def ask_both(
        self, first: str, second: str, question: str, views: list[str]
    ) -> AsyncIterator[tuple[str, str]]:
        """Answer the question with both molecules in one prompt."""
        async for (reply,) in _side_by_side([self.desk.ask([first, second], question, views)]):
            yield reply.text, shown.views_read(reply.read)

    async def answer_file(
        self,
        file: str | None,
        views: list[str],
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio finds it
    ) -> AsyncIterator[tuple[Any, str]]:
        """Answer a file and hand it back."""
        nothing = gr.DownloadButton(value=None, interactive=False)
        if file is None:
            yield nothing, shown.wrong("there is no file yet; choose one")
            return
        source = Path(file)
        suffix = source.suffix.lower() if source.suffix.lower() in (".tsv", ".jsonl") else ".csv"
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, f"{source.stem}.answers{suffix}")

            def advance(done: int, rows: int) -> None:
                progress((done, rows), desc="answers", unit="rows")

            try:
                rows = await self.desk.answer_file(source, out, views, advance)
            except Exception as error:
                yield nothing, shown.wrong(reason_of(error))
                return
            yield gr.DownloadButton(value=str(out), interactive=True), shown.table(rows)


async def _side_by_side(
    streams: Sequence[AsyncIterator[Reply]],
) -> AsyncIterator[tuple[Reply, ...]]:
    """Yield the latest reply of each stream whenever one grows; what fails says why there."""
    latest = [Reply("", [])] * len(streams)
    grown: asyncio.Queue[tuple[int, Reply | None]] = asyncio.Queue()

    async def follow(place: int, stream: AsyncIterator[Reply]) -> None:
        try:
            async for reply in stream:
                grown.put_nowait((place, reply))
        except Exception as error:
            grown.put_nowait((place, Reply(f"Sorry: {reason_of(error)}", [])))
        finally:
            grown.put_nowait((place, None))

    tasks = [asyncio.ensure_future(follow(*each)) for each in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            place, reply = await grown.get()
            if reply is None:
                left -= 1
                continue
            latest[place] = reply
            yield tuple(latest)
    finally:
        for task in tasks:
            task.cancel()
