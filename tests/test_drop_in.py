"""The drop-in example runs, on RDKit's molecules and on data, and its model learns."""

import math
import runpy
from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

EXAMPLE = Path(__file__).parents[1] / "examples/drop_in.py"


@pytest.fixture(scope="module")
def drop_in():
    return runpy.run_path(str(EXAMPLE))


def test_molecules_of_rdkit(drop_in, capsys):
    errors = drop_in["main"](["--molecules", "40", "--steps", "12"])
    printed = capsys.readouterr().out
    assert set(errors) == {"mean", "nn.MultiheadAttention", "CoAttention"}
    for name in ("nn.MultiheadAttention", "CoAttention"):
        assert errors[name] < errors["mean"]  # a sum over atoms knows how large a molecule is
        assert f"{errors[name]:8.2f}" in printed
    assert "for 12 steps" in printed


def test_data_beside_an_sdf(drop_in, tmp_path):
    sdf = tmp_path / "few.sdf"
    with Chem.SDWriter(str(sdf)) as writer:
        for smiles in ("C", "CC", "CO", "CN", "CCO"):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            AllChem.EmbedMolecule(mol, randomSeed=0)
            writer.write(mol)
    rows = ["atomization_energy", "-400.5", "-700", "-500", "-600", "-800"]
    (tmp_path / "few_atomization_energy.csv").write_text("\n".join(rows))
    examples = drop_in["read"](sdf)
    assert [target for *_, target in examples] == [-400.5, -700, -500, -600, -800]
    elements, bonds, coordinates, _ = examples[0]
    assert elements.tolist() == [6, 1, 1, 1, 1]
    assert sorted(bonds.t().tolist()) == [
        [0, 1],
        [0, 2],
        [0, 3],
        [0, 4],
        [1, 0],
        [2, 0],
        [3, 0],
        [4, 0],
    ]
    assert coordinates.shape == (5, 3)
    errors = drop_in["main"](["--data", str(sdf), "--steps", "1"])
    assert all(math.isfinite(error) for error in errors.values())
