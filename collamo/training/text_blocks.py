"""Plain text and dialogues as blocks of tokens, for a language model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BatchEncoding, PreTrainedTokenizerBase

from collamo.data.tasks import TaskExample
from collamo.errors import UsageError

# The most facts a dialogue tells and asks about. Our choice: few, because a small model learns to
# look an answer up from one or two facts within 150 steps, and from ten facts not at all in 500.
MOST_FACTS = 3


#: Messages with a role and a content, as chat templates take them.
Chat = list[dict[str, str]]


class Document(NamedTuple):
    """Token ids of one text [T] int32, and which of them are learned to be predicted [T] bool."""

    ids: np.ndarray
    learned: np.ndarray


def plain_documents(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """Return `texts`, each closed by </s>; every token is learned."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    closed = [np.array([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encoded]
    return [Document(ids, np.ones(len(ids), dtype=bool)) for ids in closed]


def dialogue_documents(
    conversations: Iterable[Chat], tokenizer: PreTrainedTokenizerBase
) -> list[Document]:
    """Return `conversations` in the tokenizer's chat template; only the answers are learned.

    Facts drawn at random cannot be predicted: learning them too drowns the answers, a tenth of the
    tokens (after 150 steps the same model found 15 of 44 answers with all learned, 25 with these).
    """
    encoded = tokenizer.apply_chat_template(
        list(conversations), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert isinstance(encoded, BatchEncoding)  # as return_dict asks
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    return [Document(np.array(i, dtype=np.int32), np.array(m, dtype=bool)) for i, m in pairs]


def dialogues(tasks: Iterable[TaskExample], *, per_molecule: int, seed: int) -> Iterator[Chat]:
    """Yield chat messages that tell one to three facts about a molecule and then ask about each.

    The first user turn holds the facts where a prompt has ``<mol>``; so a language model trained on
    text alone learns to look there for the answer. All of it is text of the prepared corpus.
    """
    by_molecule: dict[int, list[TaskExample]] = defaultdict(list)
    for example in tasks:
        by_molecule[example.molecule].append(example)
    for molecule, examples in by_molecule.items():
        for number in range(per_molecule):
            rng = np.random.default_rng([seed, molecule, number])
            subset = [examples[i] for i in rng.permutation(len(examples))]
            subset = subset[: rng.integers(1, MOST_FACTS + 1)]
            facts = "; ".join(f"{e.target.replace('_', ' ')} {e.answer}" for e in subset)
            shuffled = [subset[i] for i in rng.permutation(len(subset))]
            questions = [f"{facts}\n{shuffled[0].question}", *(e.question for e in shuffled[1:])]
            turns = zip(questions, (e.answer for e in shuffled), strict=True)
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
        self._cached: tuple[int, np.ndarray, np.ndarray] | None = None  # epoch, ids, labels
        self.count = sum(len(document.ids) for document in self.documents) // block
        if not self.count:
            raise UsageError(f"the corpus is shorter than one block of {block} tokens")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, position = divmod(index, self.count)
        if self._cached is None or self._cached[0] != epoch:
            self._cached = epoch, *self._blocks(epoch)
        _, ids, labels = self._cached
        return {
            "input_ids": torch.from_numpy(ids[position]),
            "labels": torch.from_numpy(labels[position]),
        }

    def _blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids and labels ``[blocks, block]`` of one epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.documents))
        ids = np.concatenate([self.documents[i].ids for i in order]).astype(np.int64)
        learned = np.concatenate([self.documents[i].learned for i in order])
        return self._cut(ids), self._cut(np.where(learned, ids, -100))

    def _cut(self, stream: np.ndarray) -> np.ndarray:
        return stream[: self.count * self.block].reshape(self.count, self.block)


def stack(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Collate items of equal shape."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
