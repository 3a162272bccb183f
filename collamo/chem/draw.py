"""Pictures of molecules in a grid, with legends."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from collamo.chem.molecule import Molecule

PANEL = (340, 300)  # pixels per molecule, legend included
LEGEND_CHARACTERS = 44  # per line; what fits in the panel's width at this font size
LEGEND_FONT = 14


def draw_molecules(
    molecules: Sequence[Molecule], legends: Sequence[str] | None = None, columns: int = 3
) -> bytes:
    """Return a PNG picture of the molecules, `columns` in a row, each over its legend.

    Legends are wrapped; a legend may hold line breaks of its own.

    Raises
    ------
    ValueError
        No molecules, another number of legends, or `columns` below 1.
    """
    return _draw(rdMolDraw2D.MolDraw2DCairo, molecules, legends, columns)


def draw_molecules_svg(
    molecules: Sequence[Molecule], legends: Sequence[str] | None = None, columns: int = 3
) -> str:
    """As `draw_molecules`, as SVG text."""
    return _draw(rdMolDraw2D.MolDraw2DSVG, molecules, legends, columns)


def _draw(canvas_type, molecules, legends, columns):
    legends = [""] * len(molecules) if legends is None else list(legends)
    if not molecules or columns < 1:
        raise ValueError(f"cannot draw {len(molecules)} molecules in {columns} columns")
    if len(legends) != len(molecules):
        raise ValueError(f"{len(legends)} legends for {len(molecules)} molecules")
    columns = min(columns, len(molecules))
    rows = -(-len(molecules) // columns)
    width, height = PANEL
    canvas = canvas_type(width * columns, height * rows, width, height)
    wrapped = [_wrap(legend) for legend in legends]
    options = canvas.drawOptions()
    options.legendFontSize = LEGEND_FONT
    # RDKit gives the legend this share of the panel and shrinks the text to fit
    options.legendFraction = min(0.5, 0.08 * max(text.count("\n") + 1 for text in wrapped))
    canvas.DrawMolecules([_flat(molecule) for molecule in molecules], legends=wrapped)
    canvas.FinishDrawing()
    return canvas.GetDrawingText()


def _wrap(legend: str) -> str:
    lines = [textwrap.fill(line, LEGEND_CHARACTERS) for line in legend.splitlines()]
    return "\n".join(lines)


def _flat(molecule: Molecule) -> Chem.Mol:
    """Return a copy laid out on paper, whatever 3D coordinates the molecule has."""
    copy = Chem.Mol(molecule.mol)
    copy.RemoveAllConformers()
    return rdMolDraw2D.PrepareMolForDrawing(copy)
