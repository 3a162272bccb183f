"""Units after a number, told from other words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collamo.data.columns import MEASURED_COLUMNS
from collamo.data.facts import PROPERTIES_2D
from collamo.data.units import UNKNOWN, find_unit, unit_of


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (" kcal mol⁻¹.", "kilocalorie**1*mole**-1"),
        (" cal/(mol K)", "calorie**1*mole**-1*kelvin**-1"),
        (" square angstroms", "angstrom**2"),
        ("a0³", "bohr**3"),
        (" kilojoules per mole", "kilojoule**1*mole**-1"),
        (" eV-7.0 eV", "electron_volt**1"),
        (" eV" + "·eV" * 5000, UNKNOWN),
        (" uM", "micromolar**1"),
        (" kJ/mol A ring", "kilojoule**1*mole**-1"),
        (" MeV", "megaelectron_volt**1"),
        (" (eV)", "electron_volt**1"),
        (" degrees C", "degree_Celsius**1"),
    ],
)
def test_a_unit_has_pints_name(text, unit):
    assert find_unit(text).name == unit


@pytest.mark.parametrize(
    "text",
    [" rings", " in total", " at most", " C atoms", " (A ring)", ", J", " x", " per molecule", ""],
)
def test_words_are_no_units(text):
    assert find_unit(text) is None


def test_the_projects_own_units_are_known():
    entries = [*MEASURED_COLUMNS.values(), *PROPERTIES_2D]
    units = {entry.unit for entry in entries} - {None}
    assert units
    assert [unit for unit in sorted(units) if unit_of(unit) is None] == []


@pytest.mark.parametrize(
    "text", ["points", "log(mol/L)", "eV/ring", "eV,", "", "pH", "a.u.", "a.u.^2", None]
)
def test_other_texts_are_no_units(text):
    assert unit_of(text) is None


@settings(deadline=None)
@given(st.text() | st.text(alphabet="eVkcalmol/·-−1²³^()[] per°CÅD%"))
def test_garbage_is_a_unit_or_none(text):
    unit = find_unit(text)
    assert unit is None or 0 < unit.end <= len(text)
