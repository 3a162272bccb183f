"""Pictures of molecules in a grid, with legends."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from collamo.chem.molecule import Molecule

Colour = tuple[float, float, float]  # red, green, blue, each from 0 to 1

PANEL = (340, 300)  # pixels per molecule, legend included
LEGEND_CHARACTERS = 44  # per line; what fits in the panel's width at this font size
LEGEND_FONT = 14
BOND_LENGTH = 36  # pixels; less where the molecule would not fit
FULL_COLOUR: Colour = (1.0, 0.55, 0.25)  # of the highest weight
HIGHLIGHT_RADIUS = 0.42  # of a bond's length


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


def draw_weights_svg(
    molecules: Sequence[Molecule],
    weights: Sequence[Sequence[float]],
    legends: Sequence[str] | None = None,
    columns: int = 4,
    full: float = 3.0,
) -> str:
    """As `draw_molecules_svg`, with a disc behind every atom: white for weight 0, coloured fully
    from `full` on. `weights` has a number per atom of each molecule.

    Raises
    ------
    ValueError
        As `draw_molecules`, or where weights and atoms differ in number.
    """
    for number, (molecule, values) in enumerate(zip(molecules, weights, strict=True)):
        if len(values) != molecule.num_atoms:
            raise ValueError(
                f"molecule {number} has {molecule.num_atoms} atoms, but {len(values)} weights"
            )
    colours = [
        {atom: _shade(min(1.0, max(0.0, value / full))) for atom, value in enumerate(values)}
        for values in weights
    ]
    return _draw(rdMolDraw2D.MolDraw2DSVG, molecules, legends, columns, colours)


def _shade(part: float) -> Colour:
    """Return the colour between white (0) and `FULL_COLOUR` (1)."""
    red, green, blue = (1 - part * (1 - channel) for channel in FULL_COLOUR)
    return red, green, blue


def _draw(
    canvas_type: type[rdMolDraw2D.MolDraw2D],
    molecules: Sequence[Molecule],
    legends: Sequence[str] | None,
    columns: int,
    colours: Sequence[Mapping[int, Colour]] | None = None,
):
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
    options: Any = canvas.drawOptions()  # RDKit's stubs give every option the object's own type
    options.legendFontSize = LEGEND_FONT
    options.drawMolsSameScale = False  # one large molecule would make all others small
    options.fixedBondLength = BOND_LENGTH
    # RDKit gives the legend this share of the panel and shrinks the text to fit
    options.legendFraction = min(0.5, 0.08 * max(text.count("\n") + 1 for text in wrapped))
    flat = [_flat(molecule) for molecule in molecules]
    if colours is None:
        canvas.DrawMolecules(flat, legends=wrapped)
    else:
        options.useBWAtomPalette()
        options.highlightRadius = HIGHLIGHT_RADIUS
        canvas.DrawMolecules(
            flat,
            legends=wrapped,
            highlightAtoms=[list(atoms) for atoms in colours],
            highlightAtomColors=colours,
            highlightBonds=[[] for _ in colours],
        )
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
