"""Questions about molecules, several in one dialogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from collamo.chem.features import MoleculeFeatures
from collamo.data.mapped_questions import MappedQuestions
from collamo.data.prepared import PreparedData
from collamo.data.tasks import TaskExample
from collamo.errors import UsageError, suggest
from collamo.model import CollamoProcessor


class Dialogue(NamedTuple):
    """Questions about one molecule with their answers, and its facts [F] (NaN: unknown) or None."""

    row: int
    """Of the prepared data."""
    molecule: MoleculeFeatures
    questions: list[str]
    answers: list[str]
    facts: np.ndarray | None


class QuestionDataset(Dataset):
    """The dialogues of one split of the prepared data; `facts` says whether they bring the facts.

    One item per molecule: ``min(per_molecule, questions it has)`` of its questions, asked one after
    the other in one dialogue, so that the molecule is encoded once for all of them. They are drawn
    without replacement from ``(seed, epoch, molecule)`` alone: item ``epoch * len(self) + i`` is
    the same in every process, whatever was asked before. Resuming needs no other state.

    A question whose answer has more characters than `longest_answer` is not asked; of a molecule
    that has no other, the one with the shortest answer is. Of a task in `shares`, each question
    stays in the draw with that probability; where none would stay, all do.
    """

    def __init__(
        self,
        data: PreparedData,
        split: str,
        *,
        names: Sequence[str] | None,
        per_molecule: int,
        seed: int,
        shares: Mapping[str, float] | None = None,
        longest_answer: int | None = None,
        facts: bool = False,
    ):
        self.data, self.seed, self.per_molecule, self.facts = data, seed, per_molecule, facts
        self.questions = data.questions(split)
        self.longest_answer = longest_answer
        self.shares = dict(shares or {})
        _check_tasks(self.questions, names, self.shares, split)
        kinds = self.questions.kinds
        self._wanted = np.array([names is None or kind.task in names for kind in kinds])
        self._share = np.array([self.shares.get(kind.task, 1.0) for kind in kinds])
        #: Places in `questions` of the molecules that are asked about; None: of all.
        self._places = None if names is None else self.questions.asking(names)

    def __len__(self) -> int:
        return len(self.questions.molecules if self._places is None else self._places)

    def examples(self, index: int) -> list[TaskExample]:
        """Return the `TaskExample`s behind item `index` (epoch × length + position)."""
        return self.questions.examples(*self._drawn(index))

    def length(self, index: int) -> int:
        """Return the size of item `index`: 4 × atoms + characters, a token being about 4.

        On 25 batches of 16 a step took 0.47 s CPU ungrouped, 0.43 s by text, 0.38 s by atoms and
        0.34 s by both.
        """
        return self.questions.size(*self._drawn(index))

    def _drawn(self, index: int) -> tuple[int, np.ndarray]:
        """Return the place of item `index` in `questions`, and which of its questions it asks."""
        epoch, position = divmod(index, len(self))
        place = position if self._places is None else int(self._places[position])
        molecule = self.questions.at(place)
        asked = np.flatnonzero(self._wanted[molecule.kinds])
        if self.longest_answer is not None:
            lengths = molecule.answer_lengths[asked]
            short = asked[lengths <= self.longest_answer]
            asked = short if len(short) else asked[[lengths.argmin()]]
        rng = np.random.default_rng([self.seed, epoch, molecule.row])
        order = asked[rng.permutation(len(asked))]
        if self.shares:
            kept = order[rng.random(len(order)) < self._share[molecule.kinds[order]]]
            order = kept if len(kept) else order
        return place, order[: self.per_molecule]

    def __getitem__(self, index: int) -> Dialogue:
        examples = self.examples(index)
        row = examples[0].molecule
        return Dialogue(
            row,
            self.data.features(row),
            [e.question for e in examples],
            [e.answer for e in examples],
            self.data.facts(row) if self.facts else None,
        )


def _check_tasks(
    questions: MappedQuestions,
    names: Sequence[str] | None,
    shares: Mapping[str, float],
    split: str,
) -> None:
    """Raise UsageError for a name of no task of the split, and where it has no questions."""
    present = {kind.task for kind in questions.kinds}
    mentioned = [("names", name) for name in names or ()] + [("shares", name) for name in shares]
    unknown = [(key, name) for key, name in mentioned if name not in present]
    if unknown:
        key, name = unknown[0]
        raise UsageError(
            f"tasks.{key}: the {split} split has no task {name!r}"
            f"{suggest(name, present)}; it has {', '.join(sorted(present)) or 'none'}"
        )
    if not len(questions) or (names is not None and not names):
        raise UsageError(f"the {split} split of the prepared data holds no questions")


class QuestionCollator:
    """Turn a list of dialogues into one padded batch with labels, and facts [R,1,F] if any.

    ``rows`` are those of the molecules, for a message; the trainer takes them out again.
    """

    def __init__(self, processor: CollamoProcessor):
        self.processor = processor
        # A few hundred wordings make up all questions; rendering each anew was 7 ms of a step.
        self._further_prompts: dict[str, str] = {}

    def __call__(self, items: Sequence[Dialogue]) -> dict[str, Any]:
        """Return what the processor makes of the items, as the model's keyword arguments."""
        rows, molecules, questions, answers, facts = zip(*items, strict=True)
        batch: dict[str, Any] = dict(
            self.processor(
                text=[self.processor.prompt(first) for first, *_ in questions],
                molecules=[[molecule] for molecule in molecules],
                suffix=list(map(self._dialogue, questions, answers)),
            )
        )
        batch["rows"] = list(rows)
        if facts[0] is not None:
            batch["facts"] = torch.from_numpy(np.stack(facts))[:, None]
        return batch

    def _dialogue(self, questions: list[str], answers: list[str]) -> list[str]:
        """Return [answer, further prompt, answer, …]."""
        turns = zip(map(self._further_prompt, questions[1:]), answers[1:], strict=True)
        return [answers[0], *(segment for turn in turns for segment in turn)]

    def _further_prompt(self, question: str) -> str:
        if question not in self._further_prompts:
            self._further_prompts[question] = self.processor.further_prompt(question)
        return self._further_prompts[question]
