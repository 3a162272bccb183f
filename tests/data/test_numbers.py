"""Numbers in answers, in every notation that is accepted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collamo.data.numbers import find_number, parse_number


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
        # notations
        ("10^-3", 1e-3),
        ("10⁻³", 1e-3),
        ("10**3", 1000),
        ("-10^3", -1000),
        ("1.2·10⁻³", 1.2e-3),
        ("1.2 x 10^{-3}", 1.2e-3),
        ("1.85D", 1.85),
        ("1/3 of them", 1 / 3),
        ("3/4.", 0.75),
        ("1/0", 1),
        ("1\u202f234.5", 1234.5),
        ("1'234", 1234),
        ("1,234", 1234),
        (">10", 10),
        ("~3", 3),
        ("3.2±0.1", 3.2),
        ("No. of rings: 3", 3),
        ("not 3 but 4", 3),
        # words of digits
        ("1,4-dioxane has 2 oxygen atoms", 2),
        ("5-membered rings: 2", 2),
        ("the 2nd ring has 6 atoms", 6),
        ("sp3 carbon", None),
        ("2D", None),
        # in words
        ("twenty-one", 21),
        ("two hundred and five", 205),
        ("one thousand two hundred", 1200),
        ("minus one point five", -1.5),
        ("two and a half", 2.5),
        ("No, there are two", 2),
        ("no one knows", None),
        ("one cannot say", None),
        ("a six-membered ring", None),
        ("a benzene ring", None),
    ],
)
def test_the_first_number_is_read(text, number):
    assert parse_number(text) == (None if number is None else pytest.approx(number))


@pytest.mark.parametrize(
    "text",
    ["0,25", "-1,5", "1.234,5", "0,250", "1,2345", "1.2.3", "12 345", "1 234.5", "1.2×105", "3^2"],
)
def test_a_number_that_can_be_read_in_two_ways_is_none(text):
    number = find_number(text)
    assert number is not None
    assert number.value is None


def _grouped(text, separator):
    """Return the digits of a number with the thousands of its whole part separated."""
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, point, decimals = digits.partition(".")
    return f"{sign}{int(whole):,}".replace(",", separator) + point + decimals


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def notations(value):
    """Return the number in every notation that a person may choose."""
    plain = f"{value:.4f}"
    mantissa, exponent = f"{value:.6e}".split("e")
    power = str(int(exponent))
    written = [f"{value!r}", f"{mantissa}e{exponent}", f"{mantissa}E{power}"]
    written += [f"{mantissa} × 10^{power}", f"{mantissa}x10**{power}", f"{mantissa}·10^({power})"]
    written += [f"{mantissa} × 10{power.translate(SUPERSCRIPTS)}"]
    exact = [(text, float(f"{mantissa}e{exponent}")) for text in written[1:]]
    exact += [(written[0], value), (plain, float(plain))]
    exact += [(_grouped(plain, separator), float(plain)) for separator in ",\u2009\u202f\u00a0'"]
    return exact + [(text.replace("-", "−"), number) for text, number in exact]


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e7, 1e7, allow_nan=False), st.sampled_from(["{}", "about {} or so", "x = {}."]))
def test_every_notation_reads_back_to_the_number(value, sentence):
    for text, number in notations(value):
        assert parse_number(sentence.format(text)) == number, text


ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
ONES = f"{ONES} fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
TENS = TENS.split()


def words(number):
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")
    for name, size in (("thousand", 1000), ("hundred", 100)):
        if number >= size:
            rest = number % size
            return f"{words(number // size)} {name}" + (f" and {words(rest)}" if rest else "")
    raise AssertionError


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 99_999), st.booleans())
def test_every_number_in_words_reads_back(number, capital):
    text = words(number).capitalize() if capital else words(number)
    assert parse_number(f"{text} rings") == number


@settings(max_examples=500, deadline=None)
@given(st.text() | st.text(alphabet="0123456789.,-−eE×x*10^⁻³/ '_DKno"))
def test_garbage_is_a_number_or_none(text):
    value = parse_number(text)
    assert value is None or abs(value) < float("inf")
