"""Does the model read its conformer? The dipole of one conformer among those of its molecule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Geometry import Point3D

from collamo.chem.rejection import captured_log
from collamo.errors import MissingDependencyError
from collamo.files import write_text
from evidence.claim import Claim, Finding, Metrics, Run, Workplace
from evidence.ledger import Ledger
from evidence.molecules import molecules_of, prepared
from evidence.probe import Budget, Molecules, predictions
from evidence.relation_report import report_relations
from evidence.relation_variants import relation_overrides, relation_runs

#: DFT conformers of drug-like molecules (Folmsbee and Hutchison, doi 10.1002/qua.26381, MIT).
FILE = "conformer_dipoles.npz"
TARGETS = ("dipole", "within")
_BUDGETS = {
    "tiny": Budget(steps=2, batch=8),
    "cpu": Budget(steps=400, batch=32),
    "gpu": Budget(steps=2000, batch=128),
}
_VALENCES = {("N", 4): 1, ("O", 1): -1, ("O", 3): 1, ("N", 2): -1, ("S", 1): -1, ("S", 3): 1}
_ORDERS = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}


def measure(run: Run, place: Workplace) -> Metrics:
    """Train one probe; mean absolute errors on conformers of test molecules.

    ``mae_dipole`` is of the dipole [D]. ``mae_within`` is of its difference from the mean of the
    molecule's conformers, predicted from predicted; ``spread_within`` is that of the truth, which
    is the error of every model without 3D.
    """
    train, test = _molecules(place)
    budget, overrides = _BUDGETS[place.size], relation_overrides(run)
    predicted = predictions(train, test, overrides, budget, int(run["seed"]), place.device)[:, 0]
    truth = test.values[:, 0]
    deviation = _within(truth, test.units)
    errors = np.abs(
        np.stack([predicted - truth, _within(predicted, test.units) - deviation], axis=1)
    )
    maes = {f"mae_{n}": round(float(x), 5) for n, x in zip(TARGETS, errors.mean(0), strict=True)}
    return {
        "train": len(train.values),
        "test": len(test.values),
        "test_molecules": len(set(test.units)),
        "steps": budget.steps,
        "batch": budget.batch,
        **maes,
        "spread_within": round(float(np.abs(deviation).mean()), 5),
        "details": {"errors": errors.astype(np.float32), "units": np.array(test.units)},
    }


def _within(values: np.ndarray, units: object) -> np.ndarray:
    """Return each value minus the mean of its unit's."""
    _, unit = np.unique(np.array(units), return_inverse=True)
    return values - (np.bincount(unit, values) / np.bincount(unit))[unit]


def _molecules(place: Workplace) -> tuple[Molecules, Molecules]:
    """Return (train, test): conformers of different molecules."""
    if place.size == "tiny":
        data = prepared(place.data / "nci", lambda: "nci", limit=60)
        target, unit = "logp", "heavy_atoms"  # molecules of one size stand for conformers of one
    else:
        path = place.data / "conformers.sdf"
        columns = ("dipole:D", "molecule")
        write = partial(_write_sdf, path)
        data = prepared(path.with_suffix(""), write, measured_columns=columns, conformers=False)
        target, unit = "dipole", "molecule"
    train, test = (molecules_of(data, split, [target], unit) for split in ("train", "test"))
    return train, test


def _write_sdf(path: Path) -> Path:
    """Write the conformers of neutral molecules whose bonds make sense; the others are left out.

    The set's bonds were perceived from places, and its charges are not told: an odd valence is a
    charge, and a molecule that is charged (whose dipole depends on the origin), a radical, or none
    at all to RDKit, is left out with all its conformers.
    """
    folder = os.environ.get("COLLAMO_TEST_DATA")
    if folder is None:
        raise MissingDependencyError(
            f"COLLAMO_TEST_DATA is not set: it names the folder with data/{FILE}"
        )
    with np.load(Path(folder) / "data" / FILE) as arrays:
        records = list(_records(dict(arrays)))
    write_text(path, "".join(records))
    return path


def _records(arrays: dict[str, np.ndarray]) -> Iterator[str]:
    names = str(arrays["name"]).split("\n")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    atoms = np.concatenate([[0], np.cumsum(arrays["n_atoms"].astype(int))])
    bonds = np.concatenate([[0], np.cumsum(arrays["n_bonds"].astype(int))])
    for i, name in enumerate(names):
        of_atoms, of_bonds = slice(*atoms[i : i + 2]), slice(*bonds[i : i + 2])
        dipole = float(arrays["dipole_b3lyp_tz_D"][i])
        mol = _mol(arrays["Z"][of_atoms], arrays["bonds"][of_bonds], arrays["pos"][of_atoms] / 1e4)
        if mol is not None and np.isfinite(dipole):
            block = Chem.MolToMolBlock(mol)
            yield f"{block}> <dipole>\n{dipole:.4f}\n\n> <molecule>\n{numbers[name]}\n\n$$$$\n"


def _mol(elements: np.ndarray, bonds: np.ndarray, places: np.ndarray) -> Chem.Mol | None:
    """Return a neutral molecule without radicals, None for anything else."""
    mol = Chem.RWMol()
    for element in elements.tolist():
        atom = Chem.Atom(element)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for first, second, order in bonds.tolist():
        mol.AddBond(first, second, _ORDERS[order])
    for atom in mol.GetAtoms():
        valence = int(sum(bond.GetBondTypeAsDouble() for bond in atom.GetBonds()))
        atom.SetFormalCharge(_VALENCES.get((atom.GetSymbol(), valence), 0))
    try:
        with captured_log():
            Chem.SanitizeMol(mol)
    except ValueError:
        return None
    if Chem.GetFormalCharge(mol) or any(a.GetNumRadicalElectrons() for a in mol.GetAtoms()):
        return None
    conformer = Chem.Conformer(len(places))
    conformer.Set3D(True)
    for number, place in enumerate(places.tolist()):
        conformer.SetAtomPosition(number, Point3D(*place))
    mol.AddConformer(conformer)
    return mol.GetMol()


def _report(ledger: Ledger) -> Finding:
    """Compare as `relations` does, beside what is open to a model without 3D."""
    row = ledger.rows()[-1]
    remark = (
        f"The rows are conformers of {row['test_molecules']} molecules. “difference” is that of a "
        "dipole from the mean of its molecule's conformers; a model without 3D has an error of "
        f"{float(row['spread_within']):.3g} D there."
    )
    return report_relations(ledger, ("dipole [D]", "difference [D]"), remark)


CLAIM = Claim(
    name="conformers",
    title="The model reads its conformer",
    paper="Φ3d lets attention see distances (Table 6), which is worth something where topology "
    "does not decide the answer. The paper has no such test; this one is ours.",
    runs=relation_runs,
    measure=measure,
    report=_report,
)
