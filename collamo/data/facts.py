"""What is exactly known about a molecule: formula, motif counts, computed properties, geometry."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from rdkit import Chem
from rdkit.Chem import QED, Crippen, Descriptors, rdMolDescriptors

from collamo.chem.conformer import Conformer
from collamo.chem.molecule import Molecule, has_hydrogen_atoms, without_isotopes_of_hydrogen
from collamo.chem.motifs import count_motifs
from collamo.chem.patterns import PatternSet
from collamo.chem.rejection import captured_log
from collamo.data.geometry import SHAPE_PROPERTIES, shape


@dataclass(frozen=True)
class Property:
    """A computed property: its target name, how a question calls it, unit, decimals of the answer.

    A `counted` one is asked with "How many …", the others with "What is the …"; an `isotopic` one
    depends on isotopes.
    """

    target: str
    words: str
    unit: str | None
    decimals: int
    compute: Callable[[Chem.Mol], float]
    counted: bool = False
    isotopic: bool = False


def _qed(mol: Chem.Mol) -> float:
    """Return QED (Bickerton et al. 2012); NaN for the few molecules it is not defined for."""
    try:
        with captured_log():  # it warns of a bare proton, without saying of which molecule
            return QED.qed(mol, qedProperties=_qed_properties(mol))
    except (ValueError, ZeroDivisionError):
        return float("nan")


def _qed_properties(mol: Chem.Mol) -> QED.QEDproperties:
    """Return what ``QED.properties`` does, in two thirds of its time.

    RDKit keeps what it has computed (logP takes longest) with the molecule; ``QED.properties``
    loses that with the hydrogens that it removes. It asks for one alert after another, too.
    """
    if has_hydrogen_atoms(mol):
        return QED.properties(mol)
    acceptors = filter(mol.HasSubstructMatch, QED.Acceptors)
    aromatic = Chem.DeleteSubstructs(Chem.Mol(mol), QED.AliphaticRings)
    return QED.QEDproperties(
        MW=Descriptors.MolWt(mol),  # type: ignore[attr-defined]
        ALOGP=Crippen.MolLogP(mol),  # type: ignore[attr-defined]
        HBA=sum(len(mol.GetSubstructMatches(pattern)) for pattern in acceptors),
        HBD=rdMolDescriptors.CalcNumHBD(mol),
        PSA=rdMolDescriptors.CalcTPSA(mol),
        ROTB=_rotatable_bonds(mol),
        AROM=len(Chem.GetSSSR(aromatic)),
        ALERTS=len(_alerts().matches(mol)),
    )


@lru_cache(maxsize=1)  # QED asks for them too
def _rotatable_bonds(mol: Chem.Mol) -> int:
    strict = rdMolDescriptors.NumRotatableBondsOptions.Strict  # what RDKit's wheels do by default
    return rdMolDescriptors.CalcNumRotatableBonds(mol, strict)


@lru_cache(maxsize=1)
def _alerts() -> PatternSet:
    return PatternSet(QED.StructuralAlerts)


# RDKit's stubs leave out what its modules define by assignment.
PROPERTIES_2D: tuple[Property, ...] = (
    Property(
        "molecular_weight",
        "molecular weight",
        "g/mol",
        1,
        Descriptors.MolWt,  # type: ignore[attr-defined]
        isotopic=True,
    ),
    Property("logp", "octanol-water partition coefficient (logP)", None, 2, Crippen.MolLogP),  # type: ignore[attr-defined]
    Property("tpsa", "topological polar surface area", "Å²", 1, rdMolDescriptors.CalcTPSA),
    Property("qed", "drug-likeness (QED)", None, 2, _qed),
    Property("fraction_sp3", "fraction of sp3 carbons", None, 2, rdMolDescriptors.CalcFractionCSP3),
    Property("hbond_donors", "hydrogen bond donors", None, 0, rdMolDescriptors.CalcNumHBD, True),
    Property(
        "hbond_acceptors", "hydrogen bond acceptors", None, 0, rdMolDescriptors.CalcNumHBA, True
    ),
    Property("rotatable_bonds", "rotatable bonds", None, 0, _rotatable_bonds, True),
    Property("ring_count", "rings", None, 0, rdMolDescriptors.CalcNumRings, True),
    Property("heavy_atoms", "heavy atoms", None, 0, Chem.Mol.GetNumHeavyAtoms, True),
    Property("formal_charge", "formal charge", None, 0, Chem.GetFormalCharge),
)
# Two facts that follow from the bonds to 95 %: they measure size. The radius is of the atoms of
# `Molecule.mol`, deuterium included, the distance of its heavy atoms.
SIZE_3D = ("radius_of_gyration", "longest_distance")
PROPERTIES_3D = (*SIZE_3D, *(entry.target for entry in SHAPE_PROPERTIES))


#: Elements whose atoms are counted for those who learn the formula; all others are rare.
ELEMENTS = ("C", "H", "N", "O", "F", "P", "S", "Cl", "Br", "I")


@dataclass(frozen=True)
class Facts:
    """What is exactly known about a molecule.

    Attributes
    ----------
    formula
        Hill formula, with the net charge.
    motifs
        Count of every motif of `MOTIFS`.
    properties
        Target of `PROPERTIES_2D` → value in its unit, where it is a finite number.
    geometry
        Target of `PROPERTIES_3D` → value in its unit; empty without a conformer or with a single
        atom. No longest distance where there are not two heavy atoms (H2, D2O); of a shape and of
        distances between heteroatoms, what `collamo.data.geometry.shape` returns.
    unknown
        Target of either → NaN where it is not defined (QED of some molecules), ±inf where its
        number is too large for float32, in which facts are learned. Nothing is asked about it.
    """

    formula: str
    motifs: Mapping[str, int]
    properties: Mapping[str, float]
    geometry: Mapping[str, float]
    unknown: Mapping[str, float] = field(default_factory=dict)


def measure(molecule: Molecule, conformer: Conformer) -> Facts:
    """Compute the facts of one molecule."""
    # Six decimals: sums over atoms differ in the last bit with the order of the atoms.
    mol = molecule.mol
    # Only the weight tells deuterium from hydrogen.
    plain = without_isotopes_of_hydrogen(mol)
    values = {
        entry.target: round(float(entry.compute(mol if entry.isotopic else plain)), 6)
        for entry in PROPERTIES_2D
    }
    geometry = _geometry(mol, conformer.coordinates)
    unknown = {**values, **geometry}
    return Facts(
        formula=rdMolDescriptors.CalcMolFormula(mol),
        motifs=count_motifs(molecule),
        properties={
            target: value for target, value in values.items() if why_unknown(value) is None
        },
        geometry={
            target: value for target, value in geometry.items() if why_unknown(value) is None
        },
        unknown={target: value for target, value in unknown.items() if why_unknown(value)},
    )


def why_unknown(value: float) -> str | None:
    """Return why a computed number is no fact, None where it is one.

    >>> why_unknown(float("nan")), why_unknown(1e39), why_unknown(0.5)
    ('not defined', 'infinite', None)
    """
    if math.isnan(value):
        return "not defined"
    return "infinite" if abs(value) > _LARGEST_FLOAT32 else None


_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def _geometry(mol: Chem.Mol, coordinates: np.ndarray | None) -> dict[str, float]:
    """Return R_g = √(Σ mᵢ|rᵢ − r̄|² / Σ mᵢ), r̄ the centre of mass, and max |rᵢ − rⱼ|, both Å.

    The maximum is over heavy atoms i, j.
    """
    if coordinates is None or len(coordinates) < 2:
        return {}
    r = coordinates.astype(np.float64)  # [N, 3]
    mass = np.array([atom.GetMass() for atom in mol.GetAtoms()])  # [N]; 0 for a dummy atom
    if mass.sum() == 0:
        return {}
    r = r - (mass[:, None] * r).sum(0) / mass.sum()
    squared = (mass * (r * r).sum(1)).sum() / mass.sum()
    geometry = {"radius_of_gyration": float(np.sqrt(squared))}
    heavy = r[[atom.GetAtomicNum() != 1 for atom in mol.GetAtoms()]]
    if len(heavy) > 1:
        span = max(float(((heavy - place) ** 2).sum(1).max()) for place in heavy)
        geometry["longest_distance"] = float(np.sqrt(span))
    return geometry | shape(mol, coordinates)


def count_elements(formula: str) -> dict[str, int]:
    """Return how many atoms of each of `ELEMENTS` a Hill formula has.

    >>> count_elements("C2H4ClN3-")["N"], count_elements("H12CoN6+3")["C"]
    (3, 0)
    """
    counts = {symbol: int(n or 1) for symbol, n in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}
    return {symbol: counts.get(symbol, 0) for symbol in ELEMENTS}


def format_number(value: float, decimals: int | None) -> str:
    """Return `value` with a fixed number of decimals (None: six digits), never ``-0``."""
    text = f"{value:.6g}" if decimals is None else f"{value:.{decimals}f}"
    return text[1:] if re.fullmatch(r"-0(\.0+)?", text) else text
