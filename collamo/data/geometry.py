"""What is exactly known of a molecule's shape: numbers of its conformer that bonds leave open.

The shape is that of the heavy atoms (all but hydrogen), each of weight 1. Numbers that every
molecule of two or three atoms shares, or that hang on where the fragments of a salt were put, are
no facts: but for the radius of gyration and the longest distance, a number is there for molecules
of one fragment with at least `FEWEST_ATOMS` heavy atoms.

None of them changes when the conformer is turned, moved or mirrored, or its atoms renumbered.
docs/facts.md has the definitions, and how much of each the graph of bonds already says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from rdkit import Chem

#: Three atoms lie in a plane and two on a line, whatever the molecule.
FEWEST_ATOMS = 4
#: Bonds between two atoms whose distance a torsion decides: three of them need one, four two.
TORSIONAL = (3, 4)
#: Fewest bonds between two atoms that can touch.
APART = 4
#: Heteroatoms that questions call by name.
ELEMENT_NAMES = {
    "B": "boron",
    "N": "nitrogen",
    "O": "oxygen",
    "F": "fluorine",
    "Si": "silicon",
    "P": "phosphorus",
    "S": "sulfur",
    "Cl": "chlorine",
    "Se": "selenium",
    "Br": "bromine",
    "I": "iodine",
}
HETEROATOM_DISTANCE = "heteroatom_distance"


class Skeleton:
    """The heavy atoms of a molecule of one fragment: where they are and how they hang together.

    Attributes
    ----------
    symbols
        Element of each of the N atoms.
    positions
        ``[N, 3]`` float64 Å, their mean at the origin.
    bonds_between
        ``[N, N]`` number of bonds between two atoms.
    distance
        ``[N, N]`` Å.
    """

    def __init__(self, mol: Chem.Mol, coordinates: np.ndarray):
        atoms = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() != 1]
        index = [atom.GetIdx() for atom in atoms]
        positions = coordinates[index].astype(np.float64)
        self.symbols = [atom.GetSymbol() for atom in atoms]
        self.positions = positions - positions.mean(0)
        self.bonds_between = Chem.GetDistanceMatrix(mol)[np.ix_(index, index)]
        self.distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """The gyration tensor ``1/N Σ rᵢ rᵢᵀ``: its eigenvalues ``λ₁ ≤ λ₂ ≤ λ₃`` [Å²] and, as
        columns, its eigenvectors."""
        moments, vectors = np.linalg.eigh(self.positions.T @ self.positions / len(self.positions))
        return np.clip(moments, 0, None), vectors

    @cached_property
    def heteroatoms(self) -> np.ndarray:
        """``[N]`` bool: neither carbon nor a dummy atom."""
        return np.array([symbol not in ("C", "*") for symbol in self.symbols])


def asphericity(skeleton: Skeleton) -> float:
    """``½ Σ (λᵢ - λⱼ)² / (Σ λᵢ)²`` over pairs and over i: 0 a sphere, ¼ a disk, 1 a line.

    Rudnick and Gaspari, J. Phys. A 19, L191 (1986); the relative shape anisotropy κ² of Theodorou
    and Suter, Macromolecules 18, 1206 (1985). RDKit's CalcAsphericity is another number: it takes
    moments of inertia, of which a line has (0, 1, 1).
    """
    moments, _ = skeleton.axes
    pairs = sum((moments[i] - moments[j]) ** 2 for i, j in ((0, 1), (0, 2), (1, 2)))
    return float(0.5 * pairs / moments.sum() ** 2)


def spherocity(skeleton: Skeleton) -> float:
    """``3 λ₁ / Σ λᵢ``: 0 flat, 1 a sphere.

    Todeschini and Consonni, Handbook of Chemoinformatics, ch. 37; RDKit's CalcSpherocityIndex.
    """
    moments, _ = skeleton.axes
    return float(3 * moments[0] / moments.sum())


def plane_deviation(skeleton: Skeleton) -> float:
    """Mean distance [Å] of the atoms from their plane of best fit, in least squares.

    PBF: Firth, Brown and Blagg, J. Chem. Inf. Model. 52, 2516 (2012); RDKit's CalcPBF.
    """
    _, vectors = skeleton.axes
    return float(np.abs(skeleton.positions @ vectors[:, 0]).mean())


def end_to_end_per_bond(skeleton: Skeleton) -> float:
    """Mean distance of the pairs of atoms that are the most bonds apart, per bond [Å].

    A zigzag chain stretches 1.27 Å a bond, a coiled one less. Our measure of folding: the numerator
    is the end-to-end distance of a polymer.
    """
    most = skeleton.bonds_between.max()
    return float(skeleton.distance[skeleton.bonds_between == most].mean() / most)


def closest_contact(skeleton: Skeleton) -> float:
    """Smallest distance [Å] of two atoms that are `APART` bonds apart or more; NaN without any."""
    apart = skeleton.distance[skeleton.bonds_between >= APART]
    return float(apart.min()) if len(apart) else float("nan")


def heteroatom_offset(skeleton: Skeleton) -> float:
    """Distance [Å] from the centre of the heteroatoms to the centre of all; NaN without any."""
    heteroatoms = skeleton.positions[skeleton.heteroatoms]
    return float(np.linalg.norm(heteroatoms.mean(0))) if len(heteroatoms) else float("nan")


@dataclass(frozen=True)
class ShapeProperty:
    """A number of the conformer: its target name, how a question calls it, unit, decimals."""

    target: str
    words: str
    unit: str | None
    decimals: int
    compute: Callable[[Skeleton], float]


SHAPE_PROPERTIES = (
    ShapeProperty("asphericity", "asphericity (0 a sphere, 1 a line)", None, 2, asphericity),
    ShapeProperty("spherocity", "spherocity (0 flat, 1 a sphere)", None, 2, spherocity),
    ShapeProperty(
        "plane_deviation",
        "mean distance of the heavy atoms from their plane of best fit",
        "Å",
        2,
        plane_deviation,
    ),
    ShapeProperty(
        "end_to_end_per_bond", "end-to-end distance per bond", "Å", 2, end_to_end_per_bond
    ),
    ShapeProperty(
        "closest_contact",
        f"shortest distance between heavy atoms {APART} or more bonds apart",
        "Å",
        2,
        closest_contact,
    ),
    ShapeProperty(
        "heteroatom_offset",
        "distance from the centre of the heteroatoms to the centre of the heavy atoms",
        "Å",
        2,
        heteroatom_offset,
    ),
)


def shape(mol: Chem.Mol, coordinates: np.ndarray) -> dict[str, float]:
    """Return the numbers that a molecule of this conformer [N,3] Å has, and the distances of its
    heteroatoms; empty for fragments and for fewer than `FEWEST_ATOMS` heavy atoms.

    >>> methanol = Chem.MolFromSmiles("CO")
    >>> shape(methanol, np.array([[0, 0, 0], [1.4, 0, 0]]))
    {}
    """
    if mol.GetNumHeavyAtoms() < FEWEST_ATOMS or len(Chem.GetMolFrags(mol)) > 1:
        return {}
    skeleton = Skeleton(mol, coordinates)
    if not skeleton.positions.any():
        return {}
    values = {entry.target: entry.compute(skeleton) for entry in SHAPE_PROPERTIES}
    known = {target: value for target, value in values.items() if not np.isnan(value)}
    return known | heteroatom_distances(skeleton)


def heteroatom_distances(skeleton: Skeleton) -> dict[str, float]:
    """Return the distances [Å] of the pairs of heteroatoms that can be called by name.

    "The nitrogen atom and the oxygen atom" means one pair where the molecule has one of each, "the
    two nitrogen atoms" where it has two. Of these, the pairs that are `TORSIONAL` bonds apart: in
    between, bonds and angles fix the distance, and beyond, the number of bonds tells most of it.
    The keys are ``heteroatom_distance N O``.
    """
    places: dict[str, list[int]] = {}
    for place, symbol in enumerate(skeleton.symbols):
        if symbol in ELEMENT_NAMES:
            places.setdefault(symbol, []).append(place)
    pairs = {(a, a): held for a, held in places.items() if len(held) == 2}
    single = sorted(symbol for symbol, held in places.items() if len(held) == 1)
    pairs |= {(a, b): places[a] + places[b] for a, b in combinations(single, 2)}
    return {
        f"{HETEROATOM_DISTANCE} {a} {b}": float(skeleton.distance[i, j])
        for (a, b), (i, j) in sorted(pairs.items())
        if skeleton.bonds_between[i, j] in TORSIONAL
    }


def heteroatom_words(key: str) -> str:
    """Return how a question calls the distance of that key.

    >>> heteroatom_words("heteroatom_distance N O")
    'distance between the nitrogen atom and the oxygen atom'
    """
    _, a, b = key.split()
    if a == b:
        return f"distance between the two {ELEMENT_NAMES[a]} atoms"
    return f"distance between the {ELEMENT_NAMES[a]} atom and the {ELEMENT_NAMES[b]} atom"
