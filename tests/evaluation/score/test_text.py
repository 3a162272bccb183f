import pytest

from collamo.evaluation.score.text import exact_match, normalise, parse_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3),
        ("It has 3 hydroxyl groups.", 3),
        ("-1.5", -1.5),
        ("−1.5 Å", -1.5),
        ("–0.25", -0.25),
        ("+2", 2),
        ("logP=-1.20", -1.2),
        ("1e-3", 1e-3),
        ("2.5E+2 g/mol", 250),
        ("1.2 × 10^-3", 1.2e-3),
        ("1.2x10−3", 1.2e-3),
        ("180.16g/mol", 180.16),
        ("5Å", 5),
        ("1,234.5 Da", 1234.5),
        ("12,345,678", 12345678),
        (".5", 0.5),
        ("7.", 7),
        ("The 3D radius of gyration is 2.81 Å", 2.81),
        ("13D 4", 4),
        ("C6H12O6", None),
        ("CH3(CH2)2 has 4 carbons", 4),
        ("2-methyl", 2),
        ("methyl-2", 2),
        ("It has three rings.", 3),
        ("None of them", None),
        ("someone", None),
        ("", None),
        ("1e999", None),
        ("nan", None),
        ("0 or 1", 0),
    ],
)
def test_the_first_number_is_read(text, number):
    assert parse_number(text) == (None if number is None else pytest.approx(number))


def test_exact_match_compares_numbers_for_numbers_and_text_for_text():
    assert exact_match("3 hydroxyl groups", "3", numeric=True)
    assert exact_match("3.10", "3.1 Å", numeric=True)
    assert not exact_match("many", "3", numeric=True)
    assert exact_match(" C6H6\n", "C6H6", numeric=False)
    assert not exact_match("c6h6", "C6H6", numeric=False)


def test_white_space_is_normalised():
    assert normalise("  a\t b \n\n c ") == "a b c"
