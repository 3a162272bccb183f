"""Messages about molecules, as chats send them: which molecule stands where, and the prompt."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from collamo.chem.inputs import MoleculeInput
from collamo.chem.molecule import Molecule, parse_molecule
from collamo.errors import UsageError, suggest

if TYPE_CHECKING:
    from collamo.model import CollamoProcessor

#: How a part of a message, or a tag in its text, gives a molecule. Under "smiles" any text will do
#: that `collamo ask` takes.
_READERS = {
    "smiles": parse_molecule,
    "selfies": Molecule.from_selfies,
    "mol": Molecule.from_molblock,
}
FORMS = tuple(_READERS)
ROLES = ("system", "user", "assistant")
# <mol smiles="CCO"/>; a value in either quotes, &quot; and the like inside it.
_TAG = re.compile(r"""<mol\s+(\w+)\s*=\s*(?:"([^"]*)"|'([^']*)')\s*/?>""")
_HALF_A_CHARACTER = re.compile(r"[\ud800-\udfff]")  # JSON can hold one, UTF-8 cannot
_LOOKS_LIKE_A_TAG = re.compile(r"<mol\b[^>]{0,60}")


class MoleculeText(NamedTuple):
    """A molecule that has not been read yet: one of `FORMS`, and the text."""

    form: str
    text: str

    def read(self) -> Molecule:
        """Read it.

        Raises
        ------
        RejectedMolecule
            For what is no molecule.
        """
        return _READERS[self.form](self.text)


class Conversation(NamedTuple):
    """Messages whose parts of type "molecule" are bare, and the molecules that stand there."""

    messages: list[dict[str, Any]]
    molecules: list[MoleculeInput | MoleculeText]


def read_conversation(
    messages: str | Sequence[Mapping[str, Any]],
    molecules: Iterable[MoleculeInput | MoleculeText] = (),
) -> Conversation:
    """Find the molecules of a conversation.

    Parameters
    ----------
    messages
        A question, before which `molecules` stand; or messages ``{"role": …, "content": …}``, the
        last of them the user's. Content is a text or parts: ``{"type": "text", "text": …}`` and
        ``{"type": "molecule", "smiles": …}`` (or "selfies", "mol"). In a text a molecule is
        ``<mol smiles="CCO"/>``.
    molecules
        What stands where a part of type "molecule" gives none, in order.

    Raises
    ------
    UsageError
        For what is no conversation, with the place: ``messages[1].content[0]``.
    """
    given = list(molecules)
    if isinstance(messages, str):
        parts = [{"type": "molecule"} for _ in given]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": messages}]}]
    found: list[MoleculeInput | MoleculeText] = []
    rest = iter(given)
    read = [
        _read_message(message, f"messages[{number}]", found, rest)
        for number, message in enumerate(messages)
    ]
    if left := len(list(rest)):
        raise UsageError(
            f"{len(given)} molecules for {len(given) - left} places; put a part "
            '{"type": "molecule"} where each stands'
        )
    if not read or read[-1]["role"] != "user":
        raise UsageError("the last message must be the user's: it is what is answered")
    if not any(part.get("text", "").strip() for part in read[-1]["content"]):
        raise UsageError("the question is empty")
    return Conversation(read, found)


def _read_message(
    message: Mapping[str, Any],
    place: str,
    found: list[MoleculeInput | MoleculeText],
    rest: Iterator[MoleculeInput | MoleculeText],
) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UsageError(f"{place}.role {role!r:.40} is none of {', '.join(ROLES)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise UsageError(f"{place}.content must be a text or a list of parts")
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        parts += _read_part(part, f"{place}.content[{number}]", found, rest)
    if role != "assistant":
        return {"role": role, "content": parts}
    if any(part["type"] == "molecule" for part in parts):
        raise UsageError(f"{place}: an answer has a molecule; molecules stand in questions")
    return {"role": role, "content": "".join(part["text"] for part in parts)}


def _read_part(
    part: Mapping[str, Any],
    place: str,
    found: list[MoleculeInput | MoleculeText],
    rest: Iterator[MoleculeInput | MoleculeText],
) -> Iterator[dict[str, Any]]:
    """Yield the parts of one, its molecules taken out into `found`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        after_molecule = False
        for piece in split_text(part["text"], place):
            if isinstance(piece, MoleculeText):
                found.append(piece)
                yield {"type": "molecule"}
            else:  # behind a molecule templates write a line break
                yield {"type": "text", "text": piece.lstrip() if after_molecule else piece}
            after_molecule = isinstance(piece, MoleculeText)
    elif kind == "molecule":
        found.append(_molecule_of(part, place, rest))
        yield {"type": "molecule"}
    else:
        raise UsageError(
            f'{place} must be {{"type": "text", "text": …}} or {{"type": "molecule", "smiles": …}}'
        )


def _molecule_of(
    part: Mapping[str, Any], place: str, rest: Iterator[MoleculeInput | MoleculeText]
) -> MoleculeInput | MoleculeText:
    forms = [form for form in FORMS if part.get(form) is not None]
    if unknown := sorted(map(str, part.keys() - {"type", *FORMS})):
        raise UsageError(f"{place} has {unknown[0]!r:.40}{suggest(unknown[0], FORMS)}")
    if len(forms) > 1:
        raise UsageError(f"{place} gives a molecule twice, as {' and '.join(forms)}; give one")
    if not forms:
        try:
            return next(rest)
        except StopIteration:
            raise UsageError(f"{place} has no molecule; give one of {', '.join(FORMS)}") from None
    if not isinstance(part[forms[0]], str):
        raise UsageError(f"{place}.{forms[0]} must be a text")
    return MoleculeText(forms[0], part[forms[0]])


def split_text(text: str, place: str = "the text") -> list[str | MoleculeText]:
    """Return a text in pieces: what stands between its molecules, and these.

    Raises
    ------
    UsageError
        For a tag of a molecule that says not what it is, and for text that is no Unicode.

    Examples
    --------
    >>> split_text('Is <mol smiles="CCO"/> an acid?')
    ['Is ', MoleculeText(form='smiles', text='CCO'), ' an acid?']
    """
    if odd := _HALF_A_CHARACTER.search(text):
        raise UsageError(f"{place} has half a character, {odd[0]!a} at {odd.start() + 1}")
    pieces: list[str | MoleculeText] = []
    end = 0
    for tag in _TAG.finditer(text):
        form, value = tag[1], html.unescape(tag[2] if tag[2] is not None else tag[3])
        if form not in FORMS:
            raise UsageError(
                f"{place}: {tag[0]!r:.80} has {form}={suggest(form, FORMS)}; use one of "
                f"{', '.join(FORMS)}"
            )
        pieces += [text[end : tag.start()], MoleculeText(form, value)]
        end = tag.end()
    pieces.append(text[end:])
    for piece in pieces:
        if isinstance(piece, str) and (odd := _LOOKS_LIKE_A_TAG.search(piece)):
            raise UsageError(
                f'{place}: {odd[0]!r:.80} is no molecule; write <mol smiles="CCO"/>, or take it out'
            )
    return [piece for piece in pieces if piece]


def prompt_of(processor: CollamoProcessor, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the prompt, with `<mol>` where a molecule stands, that `messages` make.

    Raises
    ------
    UsageError
        Where the chat template refuses them, or there is none and they are more than a question.
    """
    if processor.chat_template is not None:
        try:
            return str(processor.apply_chat_template(messages, add_generation_prompt=True))
        except TemplateError as error:
            raise UsageError(f"messages: {error}") from error
    if len(messages) > 1:
        raise UsageError("messages: the language model has no chat template; ask one question")
    mol = processor.mol_token
    parts = messages[0]["content"]
    return "".join(f"{mol}\n" if p["type"] == "molecule" else p["text"] for p in parts) + "\n"
