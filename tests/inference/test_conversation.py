"""What a conversation is, which molecules stand in it, and where it is wrong."""

import pytest

from collamo.errors import UsageError
from collamo.inference.conversation import MoleculeText, read_conversation, split_text

ETHANOL = MoleculeText("smiles", "CCO")


def user(content):
    return {"role": "user", "content": content}


def test_molecules_in_parts_and_in_text_are_the_same_conversation():
    parts = [{"type": "molecule", "smiles": "CCO"}, {"type": "text", "text": "Is it polar?"}]
    truth = read_conversation([user(parts)])
    assert truth.molecules == [ETHANOL]
    assert truth.messages == [user([{"type": "molecule"}, parts[1]])]
    for text in (
        '<mol smiles="CCO"/>Is it polar?',
        "<mol smiles='CCO' />\nIs it polar?",
        '<mol  smiles = "CCO">  Is it polar?',
    ):
        assert read_conversation([user(text)]) == truth
    assert read_conversation("Is it polar?", [ETHANOL]) == truth
    bare = [{"type": "molecule"}, parts[1]]
    assert read_conversation([user(bare)], [ETHANOL]) == truth


def test_every_form_and_escapes():
    text = '<mol selfies="[C][=O]"/> and <mol mol="a&#10;M  END"/> or <mol smiles="C&quot;"/>'
    pieces = split_text(text)
    assert pieces[::2] == [("selfies", "[C][=O]"), ("mol", "a\nM  END"), ("smiles", 'C"')]
    assert pieces[1::2] == [" and ", " or "]
    assert split_text("2 < 3, <molecule>, mol") == ["2 < 3, <molecule>, mol"]
    assert ETHANOL.read().canonical_smiles == "CCO"
    assert MoleculeText("selfies", "[C][C][O]").read().canonical_smiles == "CCO"


def test_turns_keep_their_order():
    turns = [
        {"role": "system", "content": "Be brief."},
        user('<mol smiles="C"/> or <mol smiles="CC"/>?'),
        {"role": "assistant", "content": [{"type": "text", "text": "The first."}]},
        user("Why?"),
    ]
    conversation = read_conversation(turns)
    assert [m.text for m in conversation.molecules] == ["C", "CC"]
    kinds = [part["type"] for part in conversation.messages[1]["content"]]
    assert kinds == ["molecule", "text", "molecule", "text"]
    assert conversation.messages[2] == {"role": "assistant", "content": "The first."}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "the last message must be the user's"),
        ([user("a"), {"role": "assistant", "content": "b"}], "the last message must be the user's"),
        ([{"role": "tool", "content": "a"}], r"messages\[0\]\.role 'tool' is none of"),
        ([user(None)], r"messages\[0\]\.content must be a text or a list"),
        ([user(7)], r"messages\[0\]\.content must be a text or a list"),
        ([user(" ")], "the question is empty"),
        ([user('<mol smiles="C"/>')], "the question is empty"),
        ([user("a"), user([{"type": "image_url"}])], r"messages\[1\]\.content\[0\] must be"),
        ([user(["a"])], r"messages\[0\]\.content\[0\] must be"),
        ([user([{"type": "text"}])], r"messages\[0\]\.content\[0\] must be"),
        ([user([{"type": "molecule"}])], "has no molecule; give one of smiles, selfies, mol"),
        ([user([{"type": "molecule", "smlies": "C"}])], "did you mean 'smiles'"),
        ([user([{"type": "molecule", "smiles": "C", "mol": "x"}])], "twice, as smiles and mol"),
        ([user([{"type": "molecule", "smiles": 7}])], r"content\[0\]\.smiles must be a text"),
        ([user("a <mol> b")], "'<mol' is no molecule; write .* or take it out"),
        ([user('<mol smile="C"/> b')], "did you mean 'smiles'"),
        ([user("<mol smiles=C/> b")], "is no molecule; write"),
        ([user("<mol " * 200_000)], "is no molecule; write"),
        ([user("a \ud800")], r"content\[0\] has half a character, '.ud800' at 3"),
        (
            [user("a"), {"role": "assistant", "content": '<mol smiles="C"/>'}, user("b")],
            r"messages\[1\]: an answer has a molecule",
        ),
    ],
    ids=str,
)
def test_what_is_no_conversation_is_named_with_its_place(messages, said):
    with pytest.raises(UsageError, match=said) as caught:
        read_conversation(messages)
    assert len(str(caught.value)) < 300


def test_molecules_without_a_place():
    with pytest.raises(UsageError, match="2 molecules for 1 places"):
        read_conversation([user([{"type": "molecule"}, {"type": "text", "text": "a"}])], "CC")
