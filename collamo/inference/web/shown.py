"""The page's HTML: what a handler shows of a molecule, an answer, a file. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from collamo.data.readers import text_value
from collamo.inference.question_files import QuestionRow
from collamo.inference.web.attention import Gaze
from collamo.inference.web.desk import Turn
from collamo.inference.web.pictures import escaped

NOTHING = '<p class="note">no molecule</p>'
PREVIEW = 20  # rows of a file that are shown
LONGEST_CELL = 80  # characters
#: Our choice: browsers and mail programs cut longer addresses.
LONGEST_LINK = 2000


def wrong(reason: str) -> str:
    """Show why something did not work."""
    return f'<p class="wrong" role="alert">{escaped(shortened(reason, 400))}</p>'


def note(text: str) -> str:
    """Show a remark."""
    return f'<p class="note">{escaped(text)}</p>'


def shortened(text: str, length: int = LONGEST_CELL) -> str:
    """Return text, or its beginning with an ellipsis.

    >>> shortened("CCCCCCCC", 5)
    'CCCC…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def picture(svg: str, name: str, gaze: Gaze | None = None) -> str:
    """Show a molecule on paper, and in words how the attention is shared out."""
    words = note(attention_in_words(gaze)) if gaze is not None else ""
    label = escaped(f"drawing of {shortened(name)}")
    return f'<div class="picture" role="img" aria-label="{label}">{svg}</div>{words}'


def attention_in_words(gaze: Gaze) -> str:
    """Say how the attention is shared out.

    >>> attention_in_words(Gaze([1.0], {"1d": 0.5, "2d": 0.25, "3d": 0.125}))
    'looked at: 1D 50 %, 2D 25 %, 3D 12 %, nothing 12 % (full colour: three times the mean)'
    """
    shares = {m.upper(): share for m, share in gaze.shares.items()}
    shares["nothing"] = max(0.0, 1 - sum(shares.values()))
    parts = ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in shares.items())
    return f"looked at: {parts} (full colour: three times the mean)"


def conformer(mol_block: str | None, read: Mapping[str, Any], wanted: bool) -> str:
    """Show a molecule in space, or why there is no conformer."""
    if not wanted:
        return note("3D is switched off")
    if mol_block is None:
        return note(f"no conformer: {read['conformer']['reason']}")
    label = "conformer, the arrow keys turn it"
    return (
        f'<collamo-conformer tabindex="0" role="img" aria-label="{label}" '
        f'data-mol="{escaped(mol_block)}"></collamo-conformer>{note(provenance(read))}'
    )


def provenance(read: Mapping[str, Any]) -> str:
    """Say where a conformer comes from."""
    found = read["conformer"]
    parts = [found["method"]]
    parts += [] if found["seed"] is None else [f"seed {found['seed']}"]
    parts += ["not converged"] if found["converged"] is False else []
    return ", ".join(parts)


def conversation(turns: Sequence[Turn]) -> str:
    """Show a conversation; Gradio's own drops what stands behind a `<`."""
    return "".join(map(_turn, turns)) or note("no question yet")


def _turn(turn: Turn) -> str:
    asked = escaped(shortened(turn.question, 2000))
    about = escaped(shortened(turn.molecule.strip(), 60))
    kind = "answer" + " wrong" * turn.failed + " growing" * (not turn.done and not turn.failed)
    told = views_read(turn.read)
    if turn.done and not turn.failed:
        told += link(turn.molecule, turn.questions, turn.views)
    return (
        f'<div class="question">{asked}<p class="note">{about}</p></div>'
        f'<div class="{kind}">{escaped(turn.answer)}</div>{told}'
    )


def views_read(read: Iterable[Mapping[str, Any]]) -> str:
    """Show which views of each molecule were read, and what the reader should know."""
    lines = []
    for molecule in read:
        views = ", ".join(view.upper() for view in molecule["views"]) or "its text"
        told = "; ".join([f"read of {shortened(molecule['smiles'])}: {views}", *molecule["notes"]])
        lines.append(note(told))
    return "".join(lines)


def link(molecule: str, questions: Sequence[str], views: Sequence[str]) -> str:
    """Show the link that asks again; several questions are one conversation."""
    fields = [("molecule", molecule), ("views", ",".join(views))]
    fields += [("question", question) for question in questions]
    address = "?" + urlencode(fields)
    if len(address) > LONGEST_LINK:
        return note("too long for a link")
    return f'<p class="note"><a href="{escaped(address)}">link to this question</a></p>'


def table(rows: Sequence[QuestionRow]) -> str:
    """Show the first rows of a file, and how many were answered."""
    bad = sum(row.reason is not None for row in rows)
    told = note(f"{len(rows)} rows: {len(rows) - bad} answered, {bad} with errors")
    head = "".join(f"<th>{name}</th>" for name in ("row", "molecule", "question", "answer"))
    lines = "".join(_line(row) for row in rows[:PREVIEW])
    left = note(f"the other {len(rows) - PREVIEW} rows are in the file") * (len(rows) > PREVIEW)
    return f"{told}<table><tr>{head}</tr>{lines}</table>{left}"


def _line(row: QuestionRow) -> str:
    answer = text_value(row.answer) if row.reason is None else row.reason
    kind = ' class="wrong"' if row.reason is not None else ""
    cells = (str(row.number), row.molecule[0], row.question)
    told = "".join(f"<td>{escaped(shortened(cell))}</td>" for cell in cells)
    return f"<tr>{told}<td{kind}>{escaped(shortened(answer, 200))}</td></tr>"
