"""The questions of a prepared folder as a `datasets.Dataset` of chat messages; extra `trl`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from collamo.data.prepared import PreparedData
from collamo.data.tasks import TaskExample
from collamo.errors import MissingDependencyError, UsageError
from collamo.extras import missing_extra

if TYPE_CHECKING:
    from datasets import Dataset

#: Questions of one molecule that stand in one conversation.
TURNS = 8


class Part(TypedDict):
    """A part of a message, as `CollamoProcessor.apply_chat_template` reads it.

    Arrow wants both keys in all parts: what a part has not is None.
    """

    type: str
    text: str | None
    smiles: str | None


class Message(TypedDict):
    """A turn of "user" or "assistant"."""

    role: str
    content: list[Part]


class Conversation(TypedDict):
    """A row: the molecule's row in its source, and questions about it with their answers."""

    molecule: int
    messages: list[Message]


def to_dataset(
    data: PreparedData, split: str, tasks: Sequence[str] | None = None, turns: int = TURNS
) -> Dataset:
    """Return the questions of a split as a `datasets.Dataset`, in row order.

    A row is a `Conversation`: up to `turns` questions about one molecule, which stands before the
    first. The columns are those that trl's trainers and `datasets` expect of chats.

    Parameters
    ----------
    data
        A prepared folder.
    split
        "train", "validation" or "test".
    tasks
        Which tasks' questions; None: all.
    turns
        Questions a row, at least 1; of more, the rest makes further rows.

    Raises
    ------
    UsageError
        There is no such split, or no question of these tasks in it.
    MissingDependencyError
        The library `datasets` is not installed.
    """
    try:
        from datasets import Dataset
    except ImportError as error:
        raise MissingDependencyError(missing_extra("trl", "datasets")) from error
    if turns < 1:
        raise UsageError(f"turns is {turns}; a conversation has at least 1")
    rows = list(conversations(data, split, tasks, turns))
    if not rows:
        raise UsageError(f"the {split} split has no question of {', '.join(tasks or ['any task'])}")
    return Dataset.from_list([dict(row) for row in rows])


def conversations(
    data: PreparedData, split: str, tasks: Sequence[str] | None = None, turns: int = TURNS
) -> Iterator[Conversation]:
    """Yield the rows of `to_dataset`."""
    by_molecule: defaultdict[int, list[TaskExample]] = defaultdict(list)
    for example in data.tasks(split):
        if tasks is None or example.task in tasks:
            by_molecule[example.molecule].append(example)
    for molecule, examples in by_molecule.items():
        smiles = data.features(molecule).smiles
        for first in range(0, len(examples), turns):
            messages = _messages(smiles, examples[first : first + turns])
            yield Conversation(molecule=molecule, messages=messages)


def _messages(smiles: str, examples: Sequence[TaskExample]) -> list[Message]:
    messages = []
    for number, example in enumerate(examples):
        asked = [_text(example.question)]
        if number == 0:
            asked = [Part(type="molecule", text=None, smiles=smiles), *asked]
        messages.append(Message(role="user", content=asked))
        messages.append(Message(role="assistant", content=[_text(example.answer)]))
    return messages


def _text(text: str) -> Part:
    return Part(type="text", text=text, smiles=None)


def with_features(data: PreparedData, conversation: Conversation) -> list[dict[str, Any]]:
    """Return the messages of a row with the prepared features of its molecule for the SMILES.

    They bring conformers along, which a SMILES alone would have to be embedded for.
    """
    features = data.features(conversation["molecule"])
    return [
        {
            **message,
            "content": [
                {**part, "smiles": features} if part["type"] == "molecule" else part
                for part in message["content"]
            ],
        }
        for message in conversation["messages"]
    ]
