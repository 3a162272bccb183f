import pytest

from collamo.data.tasks import TaskExample
from collamo.errors import UsageError
from collamo.training.text_blocks import (
    TextBlocks,
    dialogue_documents,
    dialogues,
    plain_documents,
)


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
    tasks = [
        TaskExample(molecule, "motif_count", f"t{i}", f"question {i}?" + "!" * i, str(i))
        for molecule, count in ((4, 5), (7, 2), (9, 1))
        for i in range(count)
    ]
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
