"""Numbers in answers, with their units."""

import pytest

from collamo.evaluation.score.quantities import HARTREE_IN_EV, parse_quantity


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("−6.8 eV", "hartree", -6.8 / HARTREE_IN_EV),
        ("0.25 Hartree", "eV", 0.25 * HARTREE_IN_EV),
        ("627.5094740631 kcal/mol", "Ha", 1),
        ("1e-3", "eV", 1e-3),
        ("250 meV", "eV", 0.25),
        ("3 rings", "eV", 3),
        ("1.5 eV", None, 1.5),
        ("1.5 eV", "g/mol", 1.5),
        ("two eV", "eV", 2),
        ("nothing", "eV", None),
    ],
)
def test_energies_are_converted(text, unit, value):
    expected = None if value is None else pytest.approx(value)
    assert parse_quantity(text, unit) == expected
