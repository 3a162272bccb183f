"""How much of each 3D number do the bonds already say? Regressions on the graph alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors
from scipy.linalg import cho_factor, cho_solve

from collamo.chem.features import MoleculeFeatures
from collamo.data.facts import PROPERTIES_3D, SIZE_3D
from collamo.data.prepared import PreparedData
from collamo.evaluation.report.page import markdown_table
from collamo.evaluation.statistics import LEVEL, Estimate
from evidence.claim import SIZES, Claim, Finding, Metrics, Run, Workplace
from evidence.ledger import Ledger
from evidence.molecules import prepared

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a regression sees: the number of heavy atoms, or all there is to know without coordinates.
PREDICTORS = ("heavy atoms", "graph")
_LIMITS = {"tiny": 60, "cpu": None}  # of the molecules of NCI; nothing here needs a GPU
_LONGEST_PATH = 16  # bonds; longer ones are counted with these
_FINGERPRINT = 1024
_PENALTIES = 10.0 ** np.arange(-2, 5)
_WIDTHS = (0.25, 0.5, 1.0, 2.0)
_RESAMPLES = 1000


def topology_runs(size: str) -> list[Run]:
    """Return a run for each predictor; the seed is that of molecules and split."""
    return [{"predictor": name, "seed": 0} for name in PREDICTORS] if size in _LIMITS else []


def measure(run: Run, place: Workplace) -> Metrics:
    """Return R² of every number of `PROPERTIES_3D` on the test molecules that have all of them."""
    limit = _LIMITS[place.size]
    data = prepared(
        place.data / f"nci-{limit or 'all'}",
        lambda: "nci",
        **({"limit": limit} if limit else {}),
        force_field_steps=100,
        time_limit=3.0,
    )
    describe = _DESCRIPTIONS[str(run["predictor"])]
    (x, y), (x_test, y_test) = (_table(data, split, describe) for split in ("train", "test"))
    predicted = predict(x, y, x_test)
    scores = _determination(predicted, y_test)
    return {
        "train": len(x),
        "test": len(x_test),
        **{f"r2_{t}": round(float(s), 4) for t, s in zip(PROPERTIES_3D, scores, strict=True)},
        "details": {"predicted": predicted.astype("f4"), "true": y_test.astype("f4")},
    }


def _table(
    data: PreparedData, split: str, describe: Callable[[PreparedData, int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return descriptions [M,D] and numbers [M,F] of the molecules that have all numbers."""
    facts = {row: data.facts(row)[-len(PROPERTIES_3D) :] for row in data.molecules(split)}
    rows = [row for row, numbers in facts.items() if np.isfinite(numbers).all()]
    numbers = np.stack([facts[row] for row in rows]).astype(np.float64)
    return np.stack([describe(data, row) for row in rows]), numbers


def _size(data: PreparedData, row: int) -> np.ndarray:
    count = _mol(data.features(row)).GetNumHeavyAtoms()
    return np.array([count, np.sqrt(count), np.log(count)])


def _graph(data: PreparedData, row: int) -> np.ndarray:
    """All 2D facts, the histogram of path lengths, shape indices and spectrum of the graph, the
    hybridisation of its atoms, and the counts of its substructures up to two bonds wide."""
    mol = _mol(data.features(row))
    atoms = mol.GetNumAtoms()
    bonds_between = Chem.GetDistanceMatrix(mol)
    paths = bonds_between[np.triu_indices(atoms, 1)]
    lengths = np.bincount(np.minimum(paths, _LONGEST_PATH).astype(int), minlength=_LONGEST_PATH + 1)
    hetero = np.array([atom.GetAtomicNum() not in (1, 6) for atom in mol.GetAtoms()])
    between = bonds_between[hetero] if hetero.any() else np.zeros((1, 1))
    adjacency = (bonds_between == 1).astype(float)
    spectrum = np.linalg.eigvalsh(np.diag(adjacency.sum(0)) - adjacency)
    kinds = Chem.HybridizationType
    hybrid = [
        sum(atom.GetHybridization() == kind for atom in mol.GetAtoms())
        for kind in (kinds.SP, kinds.SP2, kinds.SP3)
    ]
    numbers = [
        *np.nan_to_num(data.facts(row)[: -len(PROPERTIES_3D)]),
        *_size(data, row),
        *lengths[1:] / len(paths),
        np.sqrt((paths**2).sum()) / atoms,  # the radius of gyration, in bonds
        *(paths.max(), paths.mean(), between.mean(), between.max()),
        *spectrum[[1, 2, -1]],
        *(count / atoms for count in hybrid),
        *(index(mol) for index in _INDICES),
    ]
    counts = _generator().GetCountFingerprintAsNumPy(mol)
    return np.concatenate([numbers, np.log1p(counts.astype(np.float64))])


_INDICES = (
    rdMolDescriptors.CalcKappa1,
    rdMolDescriptors.CalcKappa2,
    rdMolDescriptors.CalcKappa3,
    rdMolDescriptors.CalcPhi,
    rdMolDescriptors.CalcNumSpiroAtoms,
    rdMolDescriptors.CalcNumBridgeheadAtoms,
    rdMolDescriptors.CalcNumAliphaticRings,
    rdMolDescriptors.CalcNumAromaticRings,
    rdMolDescriptors.CalcNumAtomStereoCenters,
)
_DESCRIPTIONS = {"heavy atoms": _size, "graph": _graph}


def _generator() -> rdFingerprintGenerator.FingerprintGenerator64:
    return rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=_FINGERPRINT)


def _mol(features: MoleculeFeatures) -> Chem.Mol:
    return Chem.MolFromSmiles(features.smiles)


def predict(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Return predictions [M,F] of the better of two regressions, chosen for each number.

    Ridge regression, and kernel ridge regression with a Gaussian kernel. Penalties, widths and the
    choice are those with the least squared error on the last sixth of the training molecules.
    """
    mean, spread = x.mean(0), x.std(0)
    x, x_test = ((each - mean) / np.where(spread > 0, spread, 1) for each in (x, x_test))
    part = len(x) - max(1, len(x) // 6)
    choices = list(product((_linear, *map(_gaussian, _WIDTHS)), _PENALTIES))
    errors = [
        ((_solve(kernel, penalty, x[:part], y[:part], x[part:]) - y[part:]) ** 2).mean(0)
        for kernel, penalty in choices
    ]
    predicted = np.empty((len(x_test), y.shape[1]))
    chosen = np.argmin(errors, axis=0)  # [F]
    for choice in set(chosen.tolist()):
        columns = chosen == choice
        predicted[:, columns] = _solve(*choices[choice], x, y[:, columns], x_test)
    return predicted


Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _solve(
    kernel: Kernel, penalty: float, x: np.ndarray, y: np.ndarray, x_test: np.ndarray
) -> np.ndarray:
    """Return what kernel ridge regression predicts."""
    mean = y.mean(0)
    gram = kernel(x, x)
    gram[np.diag_indices_from(gram)] += penalty
    return kernel(x_test, x) @ cho_solve(cho_factor(gram, overwrite_a=True), y - mean) + mean


def _linear(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b.T


def _gaussian(width: float) -> Kernel:
    """Return ``exp(-width |a - b|² / D)`` for descriptions of D numbers."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        return np.exp(-width * squared / a.shape[1])

    return kernel


def _determination(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """R² = 1 - Σ (ŷ - y)² / Σ (y - ȳ)², of each column."""
    return 1 - ((predicted - true) ** 2).sum(0) / ((true - true.mean(0)) ** 2).sum(0)


def report_topology(ledger: Ledger) -> Finding:
    """Table R² of each number by predictor, the one that bonds say most of first."""
    size = next(size for size in reversed(SIZES) if ledger.rows(size=size))
    scores = {
        row["predictor"]: _estimates(ledger.details(row)) for row in ledger.rows(size=size, seed=0)
    }
    first = ledger.rows(size=size)[0]
    known = scores.get(PREDICTORS[-1]) or next(iter(scores.values()))
    order = sorted(range(len(PROPERTIES_3D)), key=lambda i: -known[i].value)
    header = ["number", *(f"R² by {name}" for name in scores)]
    rows = [[f"`{PROPERTIES_3D[i]}`", *(str(each[i]) for each in scores.values())] for i in order]
    note = (
        f"On {first['test']} test molecules (no scaffold and no parent in training), learned from "
        f"{first['train']}; size {size}, with 95 % intervals over molecules."
    )
    return Finding(
        "\n".join([*markdown_table(header, rows), "", note]),
        _verdict(known),
        lambda axes: _draw(axes, scores, order),
    )


def _estimates(arrays: dict[str, np.ndarray]) -> list[Estimate]:
    """Return R² of each number with its interval, over resampled molecules."""
    predicted, true = (arrays[name].astype(np.float64) for name in ("predicted", "true"))
    rng = np.random.default_rng(0)
    draws = rng.integers(len(true), size=(_RESAMPLES, len(true)))
    resampled = np.stack([_determination(predicted[draw], true[draw]) for draw in draws])
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(resampled, [tail, 100 - tail], axis=0)
    ends = zip(_determination(predicted, true), low, high, strict=True)
    return [Estimate(*map(float, each)) for each in ends]


def _verdict(scores: Sequence[Estimate]) -> str:
    """Say what the graph tells of size, and of the rest."""
    by_name = dict(zip(PROPERTIES_3D, scores, strict=True))
    size = [f"{by_name[name].value:.2f}" for name in SIZE_3D]
    rest = [by_name[name].value for name in PROPERTIES_3D if name not in SIZE_3D]
    return (
        "The graph alone tells radius of gyration and longest distance to R² "
        f"{' and '.join(size)}: answers about them prove no use of 3D. Of the numbers of shape it "
        f"tells {min(rest):.2f} to {max(rest):.2f}."
    )


def _draw(axes: Axes, scores: dict[str, list[Estimate]], order: Sequence[int]) -> None:
    for i, (name, estimates) in enumerate(scores.items()):
        places = np.arange(len(order)) + 0.2 * (i - (len(scores) - 1) / 2)
        values = np.array(
            [[estimates[j].low, estimates[j].value, estimates[j].high] for j in order]
        )
        ends = [values[:, 1] - values[:, 0], values[:, 2] - values[:, 1]]
        axes.errorbar(values[:, 1], places, xerr=ends, fmt="o", label=name)
    axes.set_yticks(range(len(order)), [PROPERTIES_3D[j].replace("_", " ") for j in order])
    axes.invert_yaxis()
    axes.set_xlabel("R² on test molecules")
    axes.legend(frameon=False)


CLAIM = Claim(
    name="topology",
    title="What the bonds leave open of a shape",
    paper="No claim of the paper's, but what decides which questions can show that a model reads "
    "3D: a number that follows from the graph shows nothing.",
    runs=topology_runs,
    measure=measure,
    report=report_topology,
)
