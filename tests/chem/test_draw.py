"""Pictures are pictures, with their legends."""

import struct

import pytest

from collamo.chem.draw import PANEL, draw_molecules, draw_molecules_svg
from collamo.chem.molecule import parse_molecule

MOLECULES = [parse_molecule(smiles) for smiles in ("CCO", "c1ccccc1", "[Na+].[Cl-]", "C")]


def test_png_has_a_panel_per_molecule():
    png = draw_molecules(MOLECULES, ["one", "two", "three\nlines", ""], columns=3)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (3 * PANEL[0], 2 * PANEL[1])


def test_legends_are_drawn():
    plain = draw_molecules_svg(MOLECULES[:1])
    assert plain.lstrip().startswith("<?xml")
    assert len(draw_molecules_svg(MOLECULES[:1], ["How many hydroxyl groups? 1"])) > len(plain)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="2 legends for 1"):
        draw_molecules(MOLECULES[:1], ["a", "b"])
    with pytest.raises(ValueError, match="0 molecules"):
        draw_molecules([])
