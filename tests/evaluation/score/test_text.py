from collamo.evaluation.score.text import exact_match, normalise


def test_exact_match_compares_numbers_for_numbers_and_text_for_text():
    assert exact_match("3 hydroxyl groups", "3", numeric=True)
    assert exact_match("3.10", "3.1 Å", numeric=True)
    assert not exact_match("many", "3", numeric=True)
    assert exact_match(" C6H6\n", "C6H6", numeric=False)
    assert not exact_match("c6h6", "C6H6", numeric=False)


def test_white_space_is_normalised():
    assert normalise("  a\t b \n\n c ") == "a b c"
