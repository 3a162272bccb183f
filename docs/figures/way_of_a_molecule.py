"""Draw docs/figures/way_of_a_molecule.svg: how aspirin becomes an answer, by its own numbers.

python docs/figures/way_of_a_molecule.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem import AllChem, rdDepictor

SMILES = "CC(=O)Oc1ccccc1C(=O)O"
WIDTH, HEIGHT = 980, 384
INK, SOFT, LINE, PAPER = "#1f2933", "#52606d", "#9aa5b1", "#ffffff"
BLUE, ORANGE, GREEN = "#0b5cad", "#c4501b", "#2a7d3f"
COLOURS = {"C": "#3e4c59", "O": "#c4501b", "N": "#0b5cad"}
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


def main() -> None:
    """Write the figure beside this file."""
    mol = Chem.MolFromSmiles(SMILES)
    rdDepictor.Compute2DCoords(mol)
    flat = mol.GetConformer().GetPositions()[:, :2]
    whole = Chem.AddHs(mol)
    AllChem.EmbedMolecule(whole, randomSeed=7)
    AllChem.MMFFOptimizeMolecule(whole)
    places = whole.GetConformer().GetPositions()[: mol.GetNumAtoms()]
    hops = Chem.GetDistanceMatrix(mol)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    parts = [*views(mol, flat, places), *attention(hops, distance), *answer()]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="{FONT}" role="img" aria-label="The way of a molecule through CoLLaMo">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="{PAPER}"/>'
    )
    text = "\n".join([head, *parts, "</svg>", ""])
    Path(__file__).with_suffix(".svg").write_text(text, encoding="utf-8")


def views(mol: Chem.Mol, flat: np.ndarray, places: np.ndarray) -> list[str]:
    """Return the three views, each in a box with its encoder."""
    parts = [heading(20, "one molecule, three views")]
    for top, name, colour in ((60, "1D", BLUE), (165, "2D", GREEN), (270, "3D", ORANGE)):
        parts += [box(20, top, 250, 92), label(34, top + 24, name, colour, 15, bold=True)]
    parts += [
        label(70, 100, "[C][C][=Branch1][C][=O][O]", INK, 12, mono=True),
        label(70, 118, "[C][=C][C][=C][C][=C]…", INK, 12, mono=True),
        label(70, 142, "SELFIES string", SOFT, 12),
        *molecule(mol, flat, (152, 211), 12.5, 0.0),
        label(34, 248, "graph", SOFT, 12),
        *molecule(mol, turned(places), (152, 316), 13.5, 1.0),
        label(34, 353, "conformer", SOFT, 12),
    ]
    for top in (106, 211, 316):
        parts.append(arrow(270, top, 322, 211 + (top - 211) * 0.35))
    return parts


def turned(places: np.ndarray) -> np.ndarray:
    """Return the places [N, 3] seen from a little above, depth last."""
    centred = places - places.mean(0)
    _, _, axes = np.linalg.svd(centred)
    seen = centred @ axes.T
    angle = 0.55
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    return seen @ tilt.T


def molecule(
    mol: Chem.Mol, places: np.ndarray, centre: tuple[float, float], scale: float, ball: float
) -> list[str]:
    """Return lines for bonds and circles for atoms; with `ball` larger the nearer they are."""
    middle = (places[:, :2].max(0) + places[:, :2].min(0)) / 2
    x, y = ((places[:, :2] - middle) * scale).T
    x, y = x + centre[0] + 10, centre[1] - y
    depth = places[:, 2] if places.shape[1] > 2 else np.zeros(len(places))
    parts = []
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        width = 3.4 if bond.GetBondTypeAsDouble() > 1.2 and not ball else 1.8
        parts.append(
            f'<line x1="{x[i]:.1f}" y1="{y[i]:.1f}" x2="{x[j]:.1f}" y2="{y[j]:.1f}" '
            f'stroke="{LINE}" stroke-width="{width}" stroke-linecap="round"/>'
        )
    for i in np.argsort(depth):
        colour = COLOURS[mol.GetAtomWithIdx(int(i)).GetSymbol()]
        radius = 4.2 + ball * (1.2 + 0.9 * depth[i])
        parts.append(f'<circle cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="{radius:.1f}" fill="{colour}"/>')
    return parts


def attention(hops: np.ndarray, distance: np.ndarray) -> list[str]:
    """Return the projector: both biases of aspirin's atoms as pictures, and the formula."""
    parts = [heading(335, "they inform each other, atom by atom"), box(325, 60, 330, 302)]
    parts += [
        label(345, 88, "bonds apart", GREEN, 13, bold=True),
        *heat(345, 98, hops, GREEN),
        label(505, 88, "Å apart", ORANGE, 13, bold=True),
        *heat(505, 98, distance, ORANGE),
        label(412, 252, "Φ2d", GREEN, 15, bold=True, middle=True),
        label(572, 252, "Φ3d", ORANGE, 15, bold=True, middle=True),
        label(490, 290, "softmax(QKᵀ/√d + Φ2d + Φ3d) V", INK, 16, bold=True, middle=True),
        label(490, 318, "one fused kernel, forward and backward,", SOFT, 12, middle=True),
        label(490, 334, "on CPU and GPU", SOFT, 12, middle=True),
        arrow(655, 211, 705, 211),
    ]
    return parts


def heat(left: float, top: float, values: np.ndarray, colour: str) -> list[str]:
    """Return a square of 135 pixels: the smaller a value, the darker."""
    size = 135 / len(values)
    strength = 1 - values / values.max()
    return [
        f'<rect x="{left + j * size:.2f}" y="{top + i * size:.2f}" width="{size:.2f}" '
        f'height="{size:.2f}" fill="{colour}" '
        f'fill-opacity="{0.06 + 0.9 * strength[i, j] ** 1.5:.2f}"/>'
        for i in range(len(values))
        for j in range(len(values))
    ]


def answer() -> list[str]:
    """Return the soft tokens, the language model and a question with its answer."""
    parts = [heading(708, "a language model reads them"), box(708, 60, 252, 302)]
    parts.append(label(724, 88, "learned queries → soft tokens", BLUE, 13, bold=True))
    parts += [
        f'<rect x="{724 + 27 * i}" y="100" width="20" height="20" rx="5" fill="{BLUE}" '
        f'fill-opacity="{0.35 + 0.08 * i:.2f}"/>'
        for i in range(8)
    ]
    parts += [
        f'<line x1="834" y1="128" x2="834" y2="150" stroke="{LINE}" stroke-width="2" '
        'marker-end="url(#tip)"/>',
        f'<rect x="724" y="154" width="220" height="44" rx="9" fill="{INK}"/>',
        label(834, 182, "LLaMA, with LoRA", PAPER, 15, bold=True, middle=True),
        label(724, 232, "How many rings does this", SOFT, 13),
        label(724, 250, "molecule have?", SOFT, 13),
        label(724, 276, "1", INK, 15, bold=True),
        label(724, 306, "What is its IUPAC name?", SOFT, 13),
        label(724, 330, "2-acetyloxybenzoic acid", INK, 15, bold=True),
    ]
    tip = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker></defs>'
    )
    return [tip, *parts]


def heading(x: float, text: str) -> str:
    """Return the title of a column."""
    return label(x, 40, text, INK, 16, bold=True)


def box(x: float, y: float, width: float, height: float) -> str:
    """Return a frame."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="none" '
        f'stroke="{LINE}" stroke-width="1.2"/>'
    )


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """Return an arrow from one place to another."""
    return (
        f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y:.1f}" stroke="{LINE}" stroke-width="2" '
        'marker-end="url(#tip)"/>'
    )


def label(
    x: float,
    y: float,
    text: str,
    colour: str,
    size: int,
    *,
    bold: bool = False,
    middle: bool = False,
    mono: bool = False,
) -> str:
    """Return a line of text."""
    style = ' font-weight="600"' * bold + ' text-anchor="middle"' * middle
    style += ' font-family="DejaVu Sans Mono, Menlo, monospace"' * mono
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{style}>{text}</text>'


if __name__ == "__main__":
    main()
