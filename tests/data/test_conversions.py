"""Units converted by pint, held against SI and CODATA."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collamo.data.conversions import conversion
from collamo.data.units import UNKNOWN, unit_of
from collamo.evaluation.score.quantities import parse_quantity

# From SI and CODATA 2018, not from pint: how many of the first unit are one Hartree, or one other.
HARTREE_IN_EV = 27.211386245988
SPELLINGS = {
    1.0: ("Hartree", "hartrees", "Ha", "ha", "Eh", "E_h", "HARTREE", "hartree per particle"),
    HARTREE_IN_EV: (
        "eV",
        "ev",
        "electronvolts",
        "electron volts",
        "Electronvolt",
        "electron-volts",
    ),
    1e3 * HARTREE_IN_EV: ("meV", "millielectronvolts"),
    627.5094740631: (
        *("kcal/mol", "kcal mol-1", "kcal mol^-1", "kcal·mol⁻¹", "kcal mol−1", "kcal.mol-1"),
        *(
            "kcal / mol",
            "kilocalories per mole",
            "KCAL/MOL",
            "kcal/mole",
            "kcal mol^(-1)",
            "[kcal/mol]",
        ),
    ),
    2625.4996394799: ("kJ/mol", "kJ mol⁻¹", "kilojoules per mole", "kj/mol", "(kJ/mol)"),
}
ENERGIES = [(size, unit) for size, units in SPELLINGS.items() for unit in units]


@pytest.mark.parametrize(("size", "unit"), ENERGIES)
def test_energies_in_every_spelling(size, unit):
    blank = "" if unit[0].isascii() and unit[0].isalpha() and " " not in unit else " "
    for text in (f"{size} {unit}", f"It is {size}{blank}{unit}.", f"{size} {unit}, as measured"):
        assert parse_quantity(text, "Hartree") == pytest.approx(1, rel=1e-8), text


@settings(deadline=None)  # the first one loads pint
@given(
    st.floats(1e-6, 1e6),
    st.sampled_from(ENERGIES),
    st.sampled_from([entry for entry in ENERGIES if unit_of(entry[1])]),
)
def test_a_number_in_any_unit_reads_back_in_any_other(value, written, expected):
    number = parse_quantity(f"about {value!r} {written[1]}", expected[1])
    assert number == pytest.approx(value * expected[0] / written[0], rel=1e-8)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("2.81 Å", "nm", 0.281),
        ("281 pm", "Å", 2.81),
        ("1.4 A", "Å", 1.4),
        ("1.4 \u212b", "Å", 1.4),
        ("45.2 square angstroms", "Å²", 45.2),
        ("45.2 Å^2", "Å²", 45.2),
        ("0.452 nm2", "Å²", 45.2),
        ("75 bohr^3", "a0³", 75),
        ("11.1138533 Å³", "a0³", 75),
        ("180.16 Da", "g/mol", 180.16),
        ("0.18016 kg/mol", "g/mol", 180.16),
        ("1.85D", "D", 1.85),
        ("1.85 debyes", "D", 1.85),
        ("5.3 nM", "µM", 0.0053),
        ("5.3 uM", "nM", 5300),
        ("5.3 µmol/L", "uM", 5.3),
        ("25 °C", "K", 298.15),
        ("25 degrees Celsius", "K", 298.15),
        ("29.3 J/(mol·K)", "cal/(mol K)", 7.002868),
        ("29.3 J mol-1 K-1", "cal/(mol K)", 7.002868),
        ("25 %", "%", 25),
        ("29.3 J/mol·K", "cal/(mol K)", 7.002868),
        ("75 a.u.", "a0³", 75),
        ("1 a.u.", "D", 2.541746),
    ],
)
def test_other_quantities(text, unit, value):
    assert parse_quantity(text, unit) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("1.5 eV", "g/mol"),
        ("5 kg", "Hartree"),
        ("1.85 D", "eV"),
        ("180 g", "g/mol"),  # a slip, and no 10²⁶ g/mol
        ("3 eV/ring", "eV"),
        ("3 eV per atom", "eV"),
        ("1 °C²", "K"),
        ("1 a.u./mol", "K"),
        ("1 a.u.", "g/mol"),
    ],
)
def test_a_unit_that_does_not_convert_gives_no_number(text, unit):
    assert parse_quantity(text, unit) is None


def test_the_same_unit_changes_no_digit():
    assert conversion("kilocalorie**1*mole**-1", "kilocalorie**1*mole**-1")(0.1) == 0.1
    assert conversion(UNKNOWN, UNKNOWN) is None


@settings(deadline=None)  # the first one loads pint
@given(st.text() | st.text(alphabet="eVkcalmol/·-−1²³^()[] per°CÅD%"))
def test_garbage_after_a_number_gives_a_number_or_none(text):
    number = parse_quantity(f"1.5{text}", "Hartree")
    assert number is None or math.isfinite(number)
