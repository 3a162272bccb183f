"""The diagnosis as sections of a report, with its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from collamo.chem.draw import draw_weights_svg
from collamo.chem.features import MoleculeFeatures
from collamo.chem.molecule import Molecule
from collamo.evaluation.examine.diagnosis.diagnose import Diagnosis, diagnose
from collamo.evaluation.examine.diagnosis.measures import THRESHOLDS, Curve
from collamo.evaluation.report.charts import RULE, Curves, curves, stacked
from collamo.evaluation.report.page import Picture, Section

if TYPE_CHECKING:
    from collamo.model import CollamoForConditionalGeneration, CollamoProcessor

DRAWN = 6  # molecules
DRAWN_ATOMS = 40  # at most: more are too small to see
COLOURS = {"1D": "#0b5cad", "2D": "#c4501b", "3D": "#2a7d3f", "nothing (zero key)": RULE}


def diagnosis(
    model: CollamoForConditionalGeneration,
    processor: CollamoProcessor,
    features: Mapping[int, MoleculeFeatures],
    seed: int,
) -> tuple[dict[str, Any], list[Section]]:
    """Return (JSON, sections) of `diagnose` on the molecules of an evaluation."""
    molecules = list(features.values())
    diagnosed = diagnose(model, processor, molecules, seed)
    return diagnosed.to_json(), sections(diagnosed, molecules)


def sections(diagnosed: Diagnosis, molecules: Sequence[MoleculeFeatures]) -> list[Section]:
    """Return the diagnosis: findings, pictures, tables."""
    points = [f"{'✓' if one.ok else '✗'} {one.sentence}" for one in diagnosed.findings]
    text = (
        f"Seen while the projector read {diagnosed.molecules} molecules. What counts as flat, "
        "dead, alike or ignored is our choice, and said in each line: the paper names the "
        "failures, not the limits."
    )
    pictures = [_atoms(diagnosed, molecules), _soft(diagnosed), _phi(diagnosed.curves)]
    parts = [
        Section("What its attention looks at", text, points),
        Section("Pictures", pictures=[p for p in pictures if p is not None], sub=True),
        *_phi_tables(diagnosed),
        _layer_table(diagnosed),
    ]
    return [part for part in parts if part.points or part.rows or part.pictures]


def _atoms(diagnosed: Diagnosis, molecules: Sequence[MoleculeFeatures]) -> Picture | None:
    """Draw what the soft tokens look at on the first molecules of the sample that fit."""
    drawn: list[Molecule] = []
    weights: list[list[float]] = []
    legends: list[str] = []
    for index, views in diagnosed.atoms.items():
        features = molecules[index]
        if len(drawn) < 2 * DRAWN and len(views) == 2 and 2 <= features.num_atoms <= DRAWN_ATOMS:
            for modality, values in views.items():
                drawn.append(Molecule.from_smiles(features.smiles))
                weights.append(values.tolist())
                legends.append(f"{modality.upper()}: highest {values.max():.1f} times the mean")
    if not drawn:
        return None
    text = (
        "Attention of the last layer's soft tokens to the atoms, mean over tokens and heads, by "
        "the view the atom is read in: white none, full colour three times the mean or more. The "
        "first molecules of the sample, not chosen. SELFIES tokens (1D) are no atoms and not drawn."
    )
    return Picture("attention", draw_weights_svg(drawn, weights, legends, columns=4), text)


def _soft(diagnosed: Diagnosis) -> Picture | None:
    layer = diagnosed.layers[-1]
    if not layer.shares:
        return None
    rows = {f"soft token {i}": shares for i, shares in enumerate(layer.shares, 1)}
    text = (
        "Where each soft token of the last layer looks, mean over heads and molecules. “nothing” "
        "is the zero key, which lets a token count: the more there is to see, the less goes there."
    )
    return Picture("soft_tokens", stacked(rows, COLOURS, "attention of the soft tokens"), text)


def _phi(biases: Sequence[Curve]) -> Picture | None:
    """Draw the first Φ there is: the shared one, or the first layer's."""
    charts = []
    for one in biases[:1]:
        if one.phi2d is not None:
            lines = {f"head {i}": row for i, row in enumerate(_drawn(one.phi2d, one.sinks), 1)}
            charts.append(Curves(f"Φ2d of {one.where}", "bonds", range(len(one.phi2d[0])), lines))
        if one.phi3d is not None:
            lines = {f"head {i}": row for i, row in enumerate(_drawn(one.phi3d, one.sinks), 1)}
            charts.append(Curves(f"Φ3d of {one.where}", "distance [Å]", one.distances, lines))
    if not charts:
        return None
    text = "What the attention adds to the logit of two atoms, by head; " + (
        "a constant counts too, against the head's sink."
        if biases[0].sinks
        else "each curve is moved to mean 0, because softmax ignores a constant."
    )
    return Picture("phi", curves(charts), text)


def _drawn(rows: Sequence[Sequence[float]], sinks: bool) -> list[list[float]]:
    table = np.nan_to_num(np.array(rows))
    return (table if sinks else table - table.mean(1, keepdims=True)).tolist()


def _phi_tables(diagnosed: Diagnosis) -> list[Section]:
    spreads = [
        [
            *(one.where, f"Φ{view}", _cell(getattr(one, f"start{view}"))),
            *map(_cell, getattr(one, f"phi{view}")),
        ]
        for one in diagnosed.phi
        for view in ("2d", "3d")
        if getattr(one, f"phi{view}") is not None
    ]
    heads = max((len(row) - 3 for row in spreads), default=0)
    gaussians = [
        [
            *(one.where, str(one.count), f"{one.smallest_sigma:.3f}", str(one.narrow)),
            *(f"{one.dead:.0%}", "yes" if one.finite else "NO"),
        ]
        for one in diagnosed.gaussians
    ]
    narrow = f"narrower than {THRESHOLDS['narrow']} Å"
    return [
        Section(
            "Spread of Φ over pairs of atoms [logits]",
            _SPREAD if spreads else "",
            header=["where", "", "untrained", *(f"head {i + 1}" for i in range(heads))],
            rows=spreads,
            sub=True,
        ),
        Section(
            "Gaussians of Φ3d",
            header=["where", "number", "smallest width [Å]", narrow, "dead", "finite"],
            rows=gaussians,
            sub=True,
        ),
    ]


_SPREAD = (
    "Standard deviation, beside the mean of untrained biases of the same kind. A spread is no "
    "evidence that the bias is used: 1.2 logits of Φ2d were once learned, and no answer changed "
    "without them. The evidence is in the answers with Φ zeroed."
)


def _layer_table(diagnosed: Diagnosis) -> Section:
    rows = [
        [
            str(layer.layer),
            *(_cell(layer.entropy[m]) for m in ("1d", "2d", "3d")),
            *("–" if (to := layer.to_sink[m]) is None else f"{to:.0%}" for m in ("2d", "3d")),
            *(_cell(v) for v in (layer.likeness, layer.soft_entropy, layer.soft_likeness)),
            *(f"{share:.0%}" for share in np.mean(layer.shares, axis=0)),
        ]
        for layer in diagnosed.layers
        if layer.shares
    ]
    header = ["layer", "entropy 1D", "2D", "3D", "to the sink 2D", "3D"]
    header += ["likeness 2D–3D", "entropy of soft tokens"]
    header += ["their likeness", *(f"to {name}" for name in COLOURS)]
    return Section("Attention by layer", header=header, rows=rows, sub=True)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
