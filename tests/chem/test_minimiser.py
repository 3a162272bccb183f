"""L-BFGS: known minima, no step uphill, molecules as low as RDKit's own minimiser leaves them."""

from itertools import pairwise

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from collamo.chem.conformer import FORCE_TOLERANCE, LARGE, embed_conformer
from collamo.chem.minimiser import minimise
from collamo.chem.molecule import parse_molecule


def rosenbrock(x):
    return sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in pairwise(x))


def rosenbrock_gradient(x):
    gradient = [0.0] * len(x)
    for i, (a, b) in enumerate(pairwise(x)):
        gradient[i] += -400 * a * (b - a * a) - 2 * (1 - a)
        gradient[i + 1] += 200 * (b - a * a)
    return tuple(gradient)


def test_a_curved_valley():
    start = np.array([-1.2, 1.0, -0.5, 2.0])
    place, converged = minimise(rosenbrock, rosenbrock_gradient, start, 500, 1e-6)
    assert converged
    assert np.abs(rosenbrock_gradient(place)).max() <= 1e-6


def test_no_step_leads_uphill():
    start = np.array([-1.2, 1.0, -0.5, 2.0])
    places = [minimise(rosenbrock, rosenbrock_gradient, start, n, 0.0)[0] for n in range(60)]
    heights = [rosenbrock(place) for place in places]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] == rosenbrock(start)
    assert heights[-1] < 1e-3 * heights[0]


def test_a_wall_shortens_the_step():
    """An energy that is infinite beyond a place, as that of two atoms in one."""
    place, converged = minimise(
        lambda x: float("inf") if x[0] <= 0 else x[0] - np.log(x[0]),
        lambda x: (1 - 1 / x[0],),
        np.array([1e-3]),
        100,
        1e-6,
    )
    assert converged
    assert abs(place[0] - 1) < 1e-5


def test_where_nothing_is_lower_it_ends():
    place, converged = minimise(lambda x: 0.0, lambda x: (1.0,), np.array([2.0]), 100, 1e-6)
    assert (place.tolist(), converged) == ([2.0], False)


@pytest.mark.slow
@pytest.mark.parametrize("smiles", ["CC(C)CC(NC(=O)C(N)CO)C(=O)NC(C)C(=O)NCC(=O)NC(CC(N)=O)C(=O)O"])
def test_a_large_molecule_is_as_low_as_rdkits_own_minimiser_leaves_it(smiles):
    full = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert full.GetNumAtoms() >= LARGE - 10
    assert rdDistGeom.EmbedMolecule(full, randomSeed=0) == 0
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(
        full, rdForceFieldHelpers.MMFFGetMoleculeProperties(full)
    )
    field.Initialize()
    start = full.GetConformer().GetPositions().ravel()
    place, converged = minimise(field.CalcEnergy, field.CalcGrad, start, 5000, FORCE_TOLERANCE)
    assert converged
    ours = field.CalcEnergy(place.tolist())
    field.Minimize(maxIts=200)
    assert ours <= field.CalcEnergy()


def test_a_large_molecule_is_embedded_and_the_same_each_time():
    molecule = parse_molecule("CCCCCCCCCCCC(=O)OCC(O)COC(=O)CCCCCCC")
    assert Chem.AddHs(molecule.mol).GetNumAtoms() >= LARGE
    one, other = embed_conformer(molecule), embed_conformer(molecule)
    assert one.method == "etkdgv3+mmff"
    assert one.converged in (True, False)
    np.testing.assert_array_equal(one.coordinates, other.coordinates)
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.mol.GetBonds()]
    lengths = [np.linalg.norm(one.coordinates[i] - one.coordinates[j]) for i, j in bonds]
    assert 1.1 < min(lengths) < max(lengths) < 1.65
