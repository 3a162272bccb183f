"""Counts in answers to "How many …?"."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collamo.chem.motifs import MOTIFS
from collamo.evaluation.score.counts import find_count, find_reference_count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("There are no hydroxyl groups.", 0),
        ("There are none.", 0),
        ("None", 0),
        ("None of them", 0),
        ("No", 0),
        ("no rings", 0),
        ("No aromatic rings are present.", 0),
        ("It does not contain any ring.", 0),
        ("It doesn’t have a carboxylic acid.", 0),
        ("There aren't any.", 0),
        ("not a single ring", 0),
        ("Not a single one.", 0),
        ("There aren't rings", 0),
        ("There is not a ring", 0),
        ("no such group", 0),
        ("It does not contain this group.", 0),
        ("not one but two", 1),  # the first number, whatever is said of it
        ("There is no such thing", None),
        ("It is not known", None),
        ("It is not a question that I can answer.", None),
        ("I am not sure about the rings", None),
        ("A molecule without rings", 0),
        ("It lacks halogens.", 0),
        ("no thiophenes", 0),
        ("no rings but two ethers", 0),
        ("one ring and no ester", 1),
        ("It has a single ring.", 1),
        ("only a single one", 1),
        ("zero", 0),
        ("three rings", 3),
        ("no rings, but 2 ethers", 2),  # digits before words, as ever
        ("No. of rings: 3", 3),
        ("No. of rings: three", 3),
        ("No, there are two.", 2),
        ("no more than two rings", 2),
        ("no idea", None),
        ("I have no idea how many rings it has.", None),
        ("I cannot say without the structure of the rings.", None),
        ("There is no information on rings.", None),
        ("I do not know", None),
        ("Nobody knows", None),
        ("no " * 20_000, None),
        ("Nonetheless", None),
        ("a benzene ring", None),
        ("single bonds only", None),
        ("a single-bonded oxygen", None),
        ("C6H12O6", None),
        ("", None),
    ],
)
def test_counts_as_people_write_them(text, count):
    number = find_count(text)
    assert (number and number.value) == count


@pytest.mark.parametrize("name", MOTIFS)
def test_a_denied_motif_counts_zero_and_a_single_one_counts_one(name):
    for answer in (f"There are no {name}s.", f"No {name} is present", f"It has no {name}s at all."):
        number = find_count(answer)
        assert number is not None, answer
        assert number.value == 0
    assert find_count(f"There is a single {name}.").value == 1


def test_a_bare_none_is_a_missing_reference():
    assert find_reference_count(" None ") is None
    assert find_reference_count("no rings").value == 0


WORDS = "no none not any a single one ring rings , . idea 3 0,25 of"


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(st.sampled_from(WORDS.split())).map(" ".join))
def test_garbage_is_a_count_or_none(text):
    number = find_count(text)
    assert number is None or number.value is None or abs(number.value) < float("inf")
