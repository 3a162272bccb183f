"""Pieces of an answer joined are the answer, and nothing sent is taken back."""

import pytest

from collamo.inference.serve.answer_text import AnswerText

BYTES = list(" \n grün, 苯 and  caffeine \n".encode())


def decode(ids):
    return bytes(ids).decode(errors="replace")


def pieces(ids, *stop):
    text = AnswerText(decode, stop)
    sent = []
    for token in ids:
        sent.append(text.add(token))
        if text.stopped:
            break
    return [*sent, text.end()]


def test_pieces_are_the_stripped_text():
    sent = pieces(BYTES)
    assert "".join(sent) == decode(BYTES).strip()
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(sent)
    assert "ü" in sent
    assert sum(map(bool, sent)) > 10  # it streams


def test_a_broken_character_at_the_end_is_shown_as_ask_shows_it():
    cut = BYTES[: BYTES.index("苯".encode()[0]) + 1]
    assert "".join(pieces(cut)) == decode(cut).strip()


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (["caf"], "grün, 苯 and"),
        ([" and"], "grün, 苯"),
        (["zzz", ","], "grün"),
        (["feine!"], "grün, 苯 and  caffeine"),
        (["g"], ""),
    ],
)
def test_nothing_behind_a_stop_text_is_sent(stop, left):
    assert "".join(pieces(BYTES, *stop)) == left


def test_a_tokenizer_that_rewrites_what_was_sent_adds_nothing_twice():
    texts = {1: "do", 2: "dont", 3: "it's"}
    text = AnswerText(lambda ids: texts[len(ids)])
    assert [text.add(0) for _ in range(3)] == ["do", "nt", ""]
