import math

import numpy as np
import pytest

from collamo.chem.conformer import Conformer, absent_conformer
from collamo.chem.molecule import parse_molecule
from collamo.data.facts import PROPERTIES_2D, format_number, measure


def test_nothing_on_stderr(capfd):
    """RDKit's QED warns of a proton; in a log of 40,000 rows nobody knows of which."""
    measure(parse_molecule("CC[NH3+].[H+].[Cl-].[Cl-]"), absent_conformer("not needed"))
    assert capfd.readouterr().err == ""


def test_radius_of_gyration_weighs_by_mass():
    molecule = parse_molecule("[2H]Cl")
    line = Conformer(np.array([[0, 0, 0], [1, 0, 0]], dtype=np.float32), "given")
    light, heavy = 2.014, 35.453
    expected = math.sqrt(light * heavy) / (light + heavy)
    value = measure(molecule, line).geometry["radius_of_gyration"]
    assert format_number(value, 4) == format_number(expected, 4)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (-0.004, 2, "0.00"),
        (-0.006, 2, "-0.01"),
        (2.5, 0, "2"),
        (-40.478931, None, "-40.4789"),
        (-0.0, 0, "0"),
    ],
)
def test_numbers(value, decimals, text):
    assert format_number(value, decimals) == text


def test_property_names_are_unique():
    assert len({entry.target for entry in PROPERTIES_2D}) == len(PROPERTIES_2D)
