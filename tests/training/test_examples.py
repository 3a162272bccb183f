from dataclasses import dataclass

import numpy as np
import pytest

from collamo.data.tasks import TaskExample
from collamo.errors import UsageError
from collamo.training.examples import (
    EpochSampler,
    QuestionDataset,
    TextBlocks,
    dialogue_documents,
    dialogues,
    plain_documents,
)


@dataclass(frozen=True)
class Features:
    """Of a molecule with as many atoms as its row number."""

    row: int

    @property
    def atom_features(self):
        return np.zeros((self.row, 9), np.uint8)


class Data:
    """Three molecules with 5, 2 and 1 questions, and what `PreparedData` offers of them."""

    def tasks(self, split):
        for molecule, count in ((4, 5), (7, 2), (9, 1)):
            for i in range(count):
                task = "caption" if i == 0 else "motif_count"
                yield TaskExample(molecule, task, f"t{i}", f"question {i}?" + "!" * i, str(i))

    def features(self, row):
        return Features(row)


def dataset(per_molecule=2, names=None, seed=0):
    return QuestionDataset(Data(), "train", names=names, per_molecule=per_molecule, seed=seed)


def epoch_of(data, epoch):
    return [e for i in range(len(data)) for e in data.examples(epoch * len(data) + i)]


def test_an_epoch_asks_every_molecule_as_often_as_it_can():
    data = dataset()
    assert len(data) == 3
    for epoch in range(20):
        examples = epoch_of(data, epoch)
        assert [e.molecule for e in examples] == [4, 4, 7, 7, 9]
        assert len({(e.molecule, e.target) for e in examples}) == 5  # none twice


def test_questions_change_with_the_epoch_and_follow_the_seed_alone():
    data = dataset()
    draws = [tuple(e.target for e in epoch_of(data, epoch)) for epoch in range(10)]
    assert len(set(draws)) > 3
    again = dataset()
    assert [tuple(e.target for e in epoch_of(again, i)) for i in reversed(range(10))] == draws[::-1]
    assert draws != [tuple(e.target for e in epoch_of(dataset(seed=1), i)) for i in range(10)]


def test_every_question_gets_its_turn():
    data = dataset(per_molecule=1)
    seen = {e.target for epoch in range(60) for e in epoch_of(data, epoch) if e.molecule == 4}
    assert seen == {"t0", "t1", "t2", "t3", "t4"}


def test_a_share_thins_a_task_out_and_never_empties_a_molecule():
    data = QuestionDataset(
        Data(), "train", names=None, per_molecule=9, seed=0, shares={"caption": 0.25}
    )
    drawn = [epoch_of(data, epoch) for epoch in range(400)]
    captions = sum(e.task == "caption" for examples in drawn for e in examples if e.molecule == 4)
    assert 60 < captions < 140  # 400 × 0.25, four standard deviations each way
    assert all(sum(e.task == "motif_count" for e in examples) == 5 for examples in drawn)
    # Molecule 9 has a caption and nothing else.
    assert all(sum(e.molecule == 9 for e in examples) == 1 for examples in drawn)
    assert drawn[3] == epoch_of(data, 3)


def test_a_share_of_an_unknown_task_is_a_usage_error():
    with pytest.raises(UsageError, match=r"tasks.shares: the train split has no task 'captoin'"):
        QuestionDataset(
            Data(), "train", names=None, per_molecule=1, seed=0, shares={"captoin": 0.5}
        )


def test_items_are_features_questions_answers():
    data = dataset(per_molecule=9, names=("caption",))
    assert len(data) == 3
    assert data[0] == (Features(4), ["question 0?"], ["0"], None)
    assert data.length(0) == 4 * 4 + len("question 0?") + len("0")


def test_an_unknown_task_is_a_usage_error():
    with pytest.raises(UsageError, match=r"no task 'captions' \(did you mean 'caption'\?\)"):
        dataset(names=("captions",))


class Items:
    """So many items of well mixed lengths."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def length(self, index):
        return (index * 7919) % self.count


def sampler(data, **options):
    return EpochSampler(data, **{"seed": 3, "batch_size": 2, "group_by_length": False, **options})


@pytest.mark.parametrize("group", [False, True])
def test_each_pass_visits_every_item_once_in_a_new_order(group):
    data = Items(9)
    order = sampler(data, group_by_length=group)
    passes = []
    for epoch in range(6):
        order.epoch = epoch
        items = list(order)
        assert sorted(items) == list(range(epoch * len(data), (epoch + 1) * len(data)))
        assert list(order) == items
        passes.append(tuple(i % len(data) for i in items))
    assert len(set(passes)) > 3


def test_grouping_puts_like_lengths_together():
    data = Items(400)
    order = np.array(list(sampler(data, batch_size=4, group_by_length=True)))
    assert sorted(order) == list(range(400))
    lengths = np.array([data.length(i) for i in order]).reshape(-1, 4)
    assert np.ptp(lengths, axis=1).max() < 30  # of 400, shuffled batches spread over about 240
    assert abs(np.corrcoef(lengths.mean(1), np.arange(100))[0, 1]) < 0.3  # batches are shuffled


class Letters:
    """A tokenizer of single letters."""

    eos_token_id = 0

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def test_text_blocks_hold_every_token_once_per_epoch():
    texts = ["abc", "de", "fghij"]  # 13 tokens with their ends: 3 blocks of 4, one token left over
    blocks = TextBlocks(plain_documents(texts, Letters()), block=4, seed=0)
    assert len(blocks) == 3
    streams = set()
    for epoch in (0, 1, 2, 3, 0):
        ids = [blocks[epoch * 3 + i]["input_ids"] for i in range(3)]
        stream = "".join(chr(t) if t else "|" for block in ids for t in block.tolist())
        assert len(stream) == 12
        assert all(text in f"{stream}|" or text[:-1] in stream for text in texts)
        streams.add((epoch, stream))
    assert len(streams) == 4  # epoch 0 again is epoch 0
    assert len({stream for _, stream in streams}) > 1
    item = blocks[0]
    assert item["labels"].equal(item["input_ids"])


def test_dialogues_tell_what_they_ask_about():
    tasks = list(Data().tasks("train"))
    chats = list(dialogues(tasks, per_molecule=2, seed=0))
    assert len(chats) == 3 * 2
    for chat in chats:
        assert [m["role"] for m in chat] == ["user", "assistant"] * (len(chat) // 2)
        facts, first = chat[0]["content"].split("\n")
        questions = [first, *(m["content"] for m in chat[2::2])]
        truth = {e.question: (e.target, e.answer) for e in tasks}
        for question, answer in zip(questions, chat[1::2], strict=True):
            target, expected = truth[question]
            assert answer["content"] == expected
            assert f"{target} {expected}" in facts
    assert list(dialogues(tasks, per_molecule=2, seed=0)) == chats
    assert list(dialogues(tasks, per_molecule=2, seed=1)) != chats
    assert list(dialogues(tasks, per_molecule=0, seed=0)) == []


def test_dialogues_learn_the_answers_and_nothing_else():
    from collamo.model import train_tokenizer

    chat = [
        {"role": "user", "content": "logp 1.25; tpsa 40.5\nWhat is the logP?"},
        {"role": "assistant", "content": "1.25"},
        {"role": "user", "content": "And the area?"},
        {"role": "assistant", "content": "40.5"},
    ]
    tokenizer = train_tokenizer([m["content"] for m in chat], vocab_size=300)
    (document,) = dialogue_documents([chat], tokenizer)
    assert tokenizer.decode(document.ids) == tokenizer.apply_chat_template(chat, tokenize=False)
    assert tokenizer.decode(document.ids[document.learned]) == "1.25</s>40.5</s>"
    blocks = TextBlocks([document], block=len(document.ids), seed=0)
    labels = blocks[0]["labels"]
    assert labels[labels != -100].tolist() == document.ids[document.learned].tolist()


def test_a_corpus_shorter_than_a_block_is_a_usage_error():
    with pytest.raises(UsageError, match="shorter than one block of 64 tokens"):
        TextBlocks(plain_documents(["abc"], Letters()), block=64, seed=0)
