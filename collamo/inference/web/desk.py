"""What the page asks for, without the page: pictures, answers, files of questions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from collamo.errors import CollamoError, MoleculeError, UsageError
from collamo.inference.molecules import reading
from collamo.inference.question_files import QuestionRow, read_questions, write_answers
from collamo.inference.serve.app import Service
from collamo.inference.serve.requests import ChatRequest
from collamo.inference.web.attention import AtomAttention, Gaze
from collamo.inference.web.pictures import AnyMolecule, Pictures, draw

logger = logging.getLogger(__name__)
#: Our choice: characters of a question, many times what any training asks.
LONGEST_QUESTION = 10_000
#: Our choice: characters of a molecule; a mol block of 512 atoms has 60,000.
LONGEST_MOLECULE = 100_000
#: Formats of files that are answered. What is packed (.gz, Parquet) may be a thousand times as
#: large as what was sent; `collamo generate` takes it.
FILE_TYPES = (".csv", ".tsv", ".jsonl", ".json", ".sdf")
FAILED = "the page failed; its log says why"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Reply:
    """An answer so far, and what was read of each molecule, as `reading` tells it."""

    text: str
    read: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Turn:
    """A question of a conversation and its answer so far.

    Attributes
    ----------
    molecule, question, views
        What is asked, and which views the model may see.
    before
        The turns that the model sees; they are about the same molecule.
    answer, read
        As in `Reply`; what went wrong where it `failed`.
    done
        False while it grows, and for good where it was stopped.
    """

    molecule: str
    question: str
    views: Sequence[str]
    before: tuple[Turn, ...] = ()
    answer: str = ""
    read: Sequence[Mapping[str, Any]] = ()
    done: bool = False
    failed: bool = False

    @property
    def questions(self) -> list[str]:
        """All questions that lead to this answer, in order."""
        return [turn.question for turn in (*self.before, self)]

    @property
    def continued(self) -> tuple[Turn, ...]:
        """What the next turn has before it."""
        return (*self.before, self) if self.done and not self.failed else self.before

    def messages(self) -> list[dict[str, Any]]:
        """The conversation before the question; its first question has the molecule."""
        said: list[dict[str, Any]] = []
        for turn in self.before:
            molecule = [] if said else [{"type": "molecule"}]
            content = [*molecule, {"type": "text", "text": turn.question}]
            said.append({"role": "user", "content": content})
            said.append({"role": "assistant", "content": turn.answer})
        return said


@dataclass
class Desk:
    """Serves the page.

    Attributes
    ----------
    service
        What answers, as it answers the server's clients.
    attention
        Of the model; None where molecules are text to it.
    rows
        Most rows of a file; all are our choice.
    file_bytes
        Largest file.
    """

    service: Service
    attention: AtomAttention | None
    rows: int = 1000
    file_bytes: int = 10 * 1024 * 1024
    _together: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(16))

    async def draw(self, text: str) -> Pictures:
        """Return the molecule on paper alone, which is soon done; errors as `look`."""
        return await self.service.reader.in_worker(molecule_of(text), draw)

    async def look(
        self, text: str, views: Sequence[str], watch: bool = False, token: int | None = None
    ) -> tuple[Pictures, Mapping[str, Any], Gaze | None]:
        """Return pictures of a molecule, what is read of it, and where the soft tokens look.

        Parameters
        ----------
        text
            SMILES, SELFIES, InChI or a mol block.
        views
            Which of "1d", "2d", "3d" the model may see; the conformer is shown with "3d".
        watch, token
            Whether to look at the attention, and that of one soft token alone.

        Raises
        ------
        MoleculeError
            For what is no molecule.
        """
        molecule = molecule_of(text)
        features = await self.service.reader.read(molecule, views)
        gaze = None
        if watch and self.attention is not None:
            gaze = await asyncio.to_thread(self.attention.look, features, tuple(views), token)
        place = features.conformer.coordinates
        weights = None if gaze is None else gaze.atoms
        drawn = await self.service.reader.in_worker(molecule, draw, place, weights)
        return drawn, reading(features, self._seen(views)), gaze

    def _seen(self, views: Sequence[str]) -> list[str]:
        return [view for view in views if view in self.service.modalities]

    async def ask(
        self,
        molecules: Sequence[str | AnyMolecule],
        question: str,
        views: Sequence[str],
        before: Sequence[Mapping[str, Any]] = (),
    ) -> AsyncIterator[Reply]:
        """Yield the answer as it grows; at its end it is what `collamo ask` says.

        `before` are the messages of a conversation whose first question has the molecules.

        Raises
        ------
        CollamoError
            For what cannot be asked, in words for the page; TimeoutError for what takes too long.
        """
        given = [m if isinstance(m, AnyMolecule) else molecule_of(m) for m in molecules]
        if not question.strip():
            raise UsageError("please ask a question")
        if len(question) > LONGEST_QUESTION:
            raise UsageError(
                f"the question has {len(question)} characters; ask in {LONGEST_QUESTION} at most"
            )
        if not views:
            raise UsageError("all views are switched off; switch one on")
        parts = [] if before else [{"type": "molecule"} for _ in given]
        asked = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        request = ChatRequest.model_validate({"messages": [*before, asked], "views": views})
        end = monotonic() + self.service.limits.seconds
        work = await self.service.chat(request, given)
        text = ""
        async for piece in _until(work.pieces(), end):
            text += piece.text
            yield Reply(text, work.read)

    async def answer_file(
        self, file: Path, out: Path, views: Sequence[str], progress: Callable[[int, int], None]
    ) -> list[QuestionRow]:
        """Answer a file of questions and write the rows to `out`; see `question_files`.

        `progress` is called with (rows done, rows).

        Raises
        ------
        UsageError
            For a file of another kind, or one that is too large.
        """
        if file.suffix.lower() not in FILE_TYPES:
            raise UsageError(f"{file.name} is none of {', '.join(FILE_TYPES)}; send one of them")
        rows = await asyncio.to_thread(read_questions, file)
        if len(rows) > self.rows:
            raise UsageError(
                f"{file.name} has {len(rows)} rows; at most {self.rows} are answered here, "
                "`collamo generate` answers any number"
            )
        done = 0

        async def fill(row: QuestionRow) -> None:
            nonlocal done
            async with self._together:
                await self._answer_row(row, views)
            done += 1
            progress(done, len(rows))

        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(fill(row))
        await asyncio.to_thread(write_answers, rows, out)
        return rows

    async def _answer_row(self, row: QuestionRow, views: Sequence[str]) -> None:
        if row.reason is not None:
            return
        text, kind = row.molecule
        answer, notes = None, []
        try:
            async for reply in self.ask([AnyMolecule(kind, text)], row.question, views):
                answer = reply.text
                notes = [note for molecule in reply.read for note in molecule["notes"]]
        except Exception as error:
            row.reason = f"row {row.number}: {reason_of(error)}"
        else:
            row.answer = answer
            row.notes += notes


def molecule_of(text: str) -> AnyMolecule:
    """Return what somebody typed as a molecule that has not been read.

    Raises
    ------
    MoleculeError
        For nothing, and for what is too long to be one.
    """
    if not text.strip():
        raise MoleculeError("there is no molecule yet; type one")
    if len(text) > LONGEST_MOLECULE:
        raise MoleculeError(
            f"the molecule has {len(text)} characters; at most {LONGEST_MOLECULE} are read"
        )
    return AnyMolecule("smiles", text)


def reason_of(error: BaseException) -> str:
    """Return what somebody at the page is told of an error; what is our fault goes to the log."""
    if isinstance(error, CollamoError | ValueError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "there was no answer in time; ask for less, or again later"
    logger.error("an answer failed", exc_info=error)
    return FAILED


async def _until(stream: AsyncIterator[Item], end: float) -> AsyncIterator[Item]:
    """Yield what comes before `end` on the clock of `monotonic`, then raise TimeoutError.

    Not asyncio.timeout: it ends the task that it began in, and each item may be asked for in
    another one.
    """
    take = partial(anext, stream, None)
    try:
        while (item := await asyncio.wait_for(take(), end - monotonic())) is not None:
            yield item
    finally:
        await stream.aclose()  # type: ignore[attr-defined]  # ours are generators
