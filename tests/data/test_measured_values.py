"""Cells of measured columns: a value with its unit and qualifier, or the reason why not."""

import pytest

from collamo.data.measured_values import UNREAD, UnreadValue, has_decimal_comma, read_measured
from collamo.data.missing_values import is_missing


@pytest.mark.parametrize(
    ("text", "number", "unit", "qualifier"),
    [
        ("6.5", 6.5, None, ""),
        ("−1.5", -1.5, None, ""),
        ("–0.25", -0.25, None, ""),
        ("5.3 nM", 5.3, "nM", ""),
        ("1.85D", 1.85, "D", ""),
        ("156.8 kcal mol-1", 156.8, "kcal mol-1", ""),
        ("12 cal/(mol K)", 12, "cal/(mol K)", ""),
        ("0.2 (eV)", 0.2, "eV", ""),
        ("50%", 50, "%", ""),
        ("1,234.5", 1234.5, None, ""),
        ("1,234,567", 1234567, None, ""),
        ("1_000", 1000, None, ""),
        ("1e-3", 1e-3, None, ""),
        ("1.2 × 10^-3", 1.2e-3, None, ""),
        (">10000", 10000, None, ">"),
        (">= 5 nM", 5, "nM", "≥"),
        ("≤ −2", -2, None, "≤"),
        ("=7", 7, None, ""),
        ("~3", 3, None, "~"),
        ("ca. 3 µM", 3, "µM", "~"),
        ("3.2±0.1", 3.2, None, ""),
        ("3.2 +/- 0.1 eV", 3.2, "eV", ""),
        ("5 nM ± 1 nM", 5, "nM", ""),
    ],
)
def test_values_as_people_write_them(text, number, unit, qualifier):
    value = read_measured(text)
    assert (value.number, value.unit, value.qualifier) == (pytest.approx(number), unit, qualifier)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "blank"),
        ("NA", "missing"),
        ("nan", "missing"),
        ("-", "missing"),
        ('{"value": 3}', "missing"),
        ("1,5", "ambiguous"),
        ("0,250", "ambiguous"),
        ("1.234,5", "ambiguous"),
        ("12 345", "ambiguous"),
        ("1/3", "ambiguous"),
        ("3.2±0,1", "ambiguous"),
        ("5-10 nM", "range"),
        ("5 nM – 10 nM", "range"),
        ("1 to 3", "range"),
        ("2020-01-01", "range"),
        ("inf", "infinite"),
        (">1e999", "infinite"),
        ("high", "no number"),
        ("C60", "no number"),
        ("true", "no number"),
        ("><5", "no number"),
        ("5 rings", "other text"),
        ("5.3 nM (n=3)", "other text"),
        ("5*", "other text"),
    ],
)
def test_what_is_no_value_has_its_reason(text, reason):
    assert reason in UNREAD
    with pytest.raises(UnreadValue) as caught:
        read_measured(text)
    assert caught.value.reason == reason


def test_a_decimal_comma_elsewhere_makes_thousands_doubtful():
    assert [has_decimal_comma(t) for t in ("1,5", "0,123", "1,2345 nM", ">0,5")] == [True] * 4
    assert [has_decimal_comma(t) for t in ("1,234", "1,234.5", "12", "1,234,567")] == [False] * 4
    assert read_measured("1,234").number == 1234
    with pytest.raises(UnreadValue, match="ambiguous"):
        read_measured("1,234", decimal_comma=True)
    assert read_measured("1,234.5", decimal_comma=True).number == 1234.5
    assert read_measured("1,234,567", decimal_comma=True).number == 1234567


def test_missing_texts():
    for text in ("", " NaN", "N/A", "None", "null", "<NA>", "--", "{}", '{"a": [1]}', "[1]"):
        assert is_missing(text), text
    for text in ("An alcohol.", "sodium", "{unclosed", "[C][C]", "0", "None of them"):
        assert not is_missing(text), text
