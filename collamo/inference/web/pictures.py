"""What a page shows of a molecule, drawn in a worker, and text made safe for it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rdkit import Chem
from rdkit.Geometry import Point3D

from collamo.chem.draw import draw_molecules_svg, draw_weights_svg
from collamo.chem.molecule import Molecule
from collamo.data.molecule_column import MOLECULE_READERS
from collamo.inference.conversation import MoleculeText

# Gradio makes a template of what an HTML component shows: JavaScript's and Handlebars'.
_TEMPLATE_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "$`{}\\"}


class AnyMolecule(MoleculeText):
    """A molecule as people or files give it: `form` is a key of `MOLECULE_READERS`."""

    __slots__ = ()

    def read(self) -> Molecule:
        """Read it; RejectedMolecule for what is no molecule."""
        return MOLECULE_READERS[self.form](self.text)


class Pictures(NamedTuple):
    """A molecule on paper as SVG, and in space as a mol block; None without coordinates."""

    svg: str
    mol_block: str | None


def escaped(text: str) -> str:
    """Return text that HTML, and Gradio's templates around it, show as it is.

    >>> escaped("<b>${x}")
    '&lt;b&gt;&#36;&#123;x&#125;'
    """
    return html.escape(text).translate(_TEMPLATE_MARKS)


def draw(
    molecule: Molecule,
    coordinates: np.ndarray | None = None,
    weights: Sequence[float] | None = None,
) -> Pictures:
    """Draw a molecule, for a worker process.

    Parameters
    ----------
    molecule
        What is drawn.
    coordinates
        float32 ``[N, 3]`` in Å.
    weights
        A number per atom, of mean 1, shown as discs behind the atoms.
    """
    if weights is None:
        svg = draw_molecules_svg([molecule])
    else:
        svg = draw_weights_svg([molecule], [weights])
    svg = svg[svg.index("<svg") :]  # HTML has no place for the XML declaration
    return Pictures(svg, None if coordinates is None else _mol_block(molecule, coordinates))


def _mol_block(molecule: Molecule, coordinates: np.ndarray) -> str:
    copy = Chem.Mol(molecule.mol)
    copy.RemoveAllConformers()
    conformer = Chem.Conformer(copy.GetNumAtoms())
    for atom, place in enumerate(coordinates.tolist()):
        conformer.SetAtomPosition(atom, Point3D(*place))
    copy.AddConformer(conformer)
    return str(Chem.MolToMolBlock(copy, kekulize=False))
