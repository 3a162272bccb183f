"""Pictures are pictures, with their legends."""

import re
import struct

import pytest

from collamo.chem.draw import PANEL, draw_molecules, draw_molecules_svg, draw_weights_svg
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


def test_weights_colour_their_atoms():
    ethanol = MOLECULES[0]
    svg = draw_weights_svg([ethanol] * 2, [[0, 1.5, 99], [0, 0, 0]], ["a", "b"])
    discs = [line for line in svg.splitlines() if "<ellipse" in line]
    colours = [re.search(r"fill:(#\w+)", disc)[1] for disc in discs]
    assert colours == ["#FFFFFF", "#FFC59F", "#FF8C3F", *["#FFFFFF"] * 3]
    with pytest.raises(ValueError, match="molecule 0 has 3 atoms, but 2 weights"):
        draw_weights_svg([ethanol], [[1, 2]])
