"""What a training step sees: questions about molecules, or blocks of plain text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from collamo.errors import UsageError, suggest

# Batches are formed inside chunks of this many batches, sorted by length: wide enough that padding
# nearly vanishes, narrow enough that the order stays random. transformers uses the same figure.
CHUNK = 50


class Dialogue(NamedTuple):
    """Questions about one molecule with their answers, and its facts [F] (NaN: unknown) or None."""

    molecule: object
    questions: list[str]
    answers: list[str]
    facts: np.ndarray | None


class QuestionDataset(Dataset):
    """The dialogues of one split of the prepared data; `facts` says whether they bring the facts.

    One item per molecule: ``min(per_molecule, questions it has)`` of its questions, asked one after
    the other in one dialogue, so that the molecule is encoded once for all of them. They are drawn
    without replacement from ``(seed, epoch, molecule)`` alone: item ``epoch * len(self) + i`` is
    the same in every process, whatever was asked before. Resuming needs no other state.

    Of a task in `shares`, each question stays in the draw with that probability; where none would
    stay, all do.
    """

    def __init__(
        self,
        data,
        split: str,
        *,
        names: Sequence[str] | None,
        per_molecule: int,
        seed: int,
        shares: Mapping[str, float] | None = None,
        facts: bool = False,
    ):
        self.data, self.seed, self.per_molecule, self.facts = data, seed, per_molecule, facts
        self.shares = dict(shares or {})
        self.questions = _by_molecule(data.tasks(split), names, self.shares, split)
        self.molecules = list(self.questions)

    def __len__(self) -> int:
        return len(self.molecules)

    def examples(self, index: int) -> list:
        """Return the `TaskExample`s behind item `index` (epoch × length + position)."""
        epoch, position = divmod(index, len(self))
        molecule = self.molecules[position]
        questions = self.questions[molecule]
        rng = np.random.default_rng([self.seed, epoch, molecule])
        order = [questions[i] for i in rng.permutation(len(questions))]
        if self.shares:
            drawn = rng.random(len(order))
            kept = [
                e for e, x in zip(order, drawn, strict=True) if x < self.shares.get(e.task, 1.0)
            ]
            order = kept or order
        return order[: self.per_molecule]

    def length(self, index: int) -> int:
        """Return the size of item `index`: 4 × atoms + characters, a token being about 4.

        On 25 batches of 16 a step took 0.47 s CPU ungrouped, 0.43 s by text, 0.38 s by atoms and
        0.34 s by both.
        """
        examples = self.examples(index)
        atoms = len(self.data.features(examples[0].molecule).atom_features)
        return 4 * atoms + sum(len(e.question) + len(e.answer) for e in examples)

    def __getitem__(self, index: int) -> Dialogue:
        examples = self.examples(index)
        row = examples[0].molecule
        return Dialogue(
            self.data.features(row),
            [e.question for e in examples],
            [e.answer for e in examples],
            self.data.facts(row) if self.facts else None,
        )


def _by_molecule(
    tasks: Iterable, names: Sequence[str] | None, shares: Mapping[str, float], split: str
) -> dict[int, list]:
    """Return the questions of each molecule, of the tasks in `names`; UsageError where none."""
    questions, present = defaultdict(list), set()
    for example in tasks:
        present.add(example.task)
        if names is None or example.task in names:
            questions[example.molecule].append(example)
    wanted = [("names", name) for name in names or ()] + [("shares", name) for name in shares]
    unknown = [(key, name) for key, name in wanted if name not in present]
    if unknown:
        key, name = unknown[0]
        raise UsageError(
            f"tasks.{key}: the {split} split has no task {name!r}"
            f"{suggest(name, present)}; it has {', '.join(sorted(present)) or 'none'}"
        )
    if not questions:
        raise UsageError(f"the {split} split of the prepared data holds no questions")
    return dict(questions)


class EpochSampler(Sampler[int]):
    """Shuffled items of one pass, numbered ``epoch * len + position``; a function of (seed, epoch).

    With `length`, batches of similar length: inside chunks of 50 batches items are sorted by
    length, then the batches are shuffled.
    """

    def __init__(self, dataset: Dataset, *, seed: int, batch_size: int, group_by_length: bool):
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        self.group_by_length = group_by_length and hasattr(dataset, "length")
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        first = self.epoch * len(self.dataset)  # see QuestionDataset: the epoch is in the number
        order = rng.permutation(len(self.dataset)) + first
        if self.group_by_length:
            order = self._grouped(order, rng)
        return iter(order.tolist())

    def _grouped(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        lengths = {int(index): self.dataset.length(int(index)) for index in order}
        batches, size = [], self.batch_size
        for start in range(0, len(order), CHUNK * size):
            chunk = sorted(order[start : start + CHUNK * size].tolist(), key=lengths.__getitem__)
            batches += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        # Only whole batches change places: a short one in the middle would shift all that follow.
        whole = [batch for batch in batches if len(batch) == size]
        short = [batch for batch in batches if len(batch) < size]
        rng.shuffle(whole)
        return np.array([index for batch in [*whole, *short] for index in batch])


class QuestionCollator:
    """Turn a list of dialogues into one padded batch with labels, and facts [R,1,F] if any."""

    def __init__(self, processor):
        self.processor = processor
        # A few hundred wordings make up all questions; rendering each anew was 7 ms of a step.
        self._further_prompts: dict[str, str] = {}

    def __call__(self, items: Sequence[Dialogue]) -> dict[str, torch.Tensor]:
        """Return what the processor makes of the items, as the model's keyword arguments."""
        molecules, questions, answers, facts = zip(*items, strict=True)
        batch = dict(
            self.processor(
                text=[self.processor.prompt(first) for first, *_ in questions],
                molecules=[[molecule] for molecule in molecules],
                suffix=list(map(self._dialogue, questions, answers)),
            )
        )
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


# Facts told, and asked about, in one dialogue. Our choice: few, because a small model learns to
# look an answer up from one or two facts within 150 steps, and from ten facts not at all in 500.
MOST_FACTS = 3


class Document(NamedTuple):
    """Token ids of one text [T] int32, and which of them are learned to be predicted [T] bool."""

    ids: np.ndarray
    learned: np.ndarray


def plain_documents(texts: Iterable[str], tokenizer) -> list[Document]:
    """Return `texts`, each closed by </s>; every token is learned."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    closed = [np.array([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encoded]
    return [Document(ids, np.ones(len(ids), dtype=bool)) for ids in closed]


def dialogue_documents(conversations: Iterable[list[dict]], tokenizer) -> list[Document]:
    """Return `conversations` in the tokenizer's chat template; only the answers are learned.

    Facts drawn at random cannot be predicted: learning them too drowns the answers, a tenth of the
    tokens (after 150 steps the same model found 15 of 44 answers with all learned, 25 with these).
    """
    encoded = tokenizer.apply_chat_template(
        list(conversations), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    return [Document(np.array(i, dtype=np.int32), np.array(m, dtype=bool)) for i, m in pairs]


def dialogues(tasks: Iterable, *, per_molecule: int, seed: int) -> Iterator[list[dict]]:
    """Yield chat messages that tell one to three facts about a molecule and then ask about each.

    The first user turn holds the facts where a prompt has ``<mol>``; so a language model trained on
    text alone learns to look there for the answer. All of it is text of the prepared corpus.
    """
    by_molecule = defaultdict(list)
    for example in tasks:
        by_molecule[example.molecule].append(example)
    for molecule, examples in by_molecule.items():
        for number in range(per_molecule):
            rng = np.random.default_rng([seed, molecule, number])
            told = [examples[i] for i in rng.permutation(len(examples))]
            told = told[: rng.integers(1, MOST_FACTS + 1)]
            facts = "; ".join(f"{e.target.replace('_', ' ')} {e.answer}" for e in told)
            asked = [told[i] for i in rng.permutation(len(told))]
            questions = [f"{facts}\n{asked[0].question}", *(e.question for e in asked[1:])]
            turns = zip(questions, (e.answer for e in asked), strict=True)
            yield [
                {"role": role, "content": text}
                for turn in turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]


class TextBlocks(Dataset):
    """Blocks of `block` tokens cut from the documents laid end to end.

    The documents come in an order drawn anew for each epoch from ``(seed, epoch)``; item
    ``epoch * len(self) + i`` is block i of that epoch. The last, partial block is left out. Labels
    are -100 where a token is not learned.
    """

    def __init__(self, documents: Sequence[Document], *, block: int, seed: int):
        self.documents = list(documents)
        self.block, self.seed = block, seed
        self._epoch, self._ids, self._labels = -1, None, None
        self.count = sum(len(document.ids) for document in self.documents) // block
        if not self.count:
            raise UsageError(f"the corpus is shorter than one block of {block} tokens")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, position = divmod(index, self.count)
        if epoch != self._epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.documents))
            ids = np.concatenate([self.documents[i].ids for i in order]).astype(np.int64)
            learned = np.concatenate([self.documents[i].learned for i in order])
            self._epoch = epoch
            self._ids, self._labels = map(self._cut, (ids, np.where(learned, ids, -100)))
        ids, labels = self._ids[position], self._labels[position]
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    def _cut(self, stream: np.ndarray) -> np.ndarray:
        return stream[: self.count * self.block].reshape(self.count, self.block)


def stack(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Collate items of equal shape."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
