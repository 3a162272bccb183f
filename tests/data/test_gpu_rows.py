"""`--conformers nvmolkit`, with RDKit behind nvMolKit's interface: no GPU has run it here yet."""

import importlib.metadata
import importlib.util
import os
import sys
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from rdkit.Chem import rdDistGeom

import collamo.chem.gpu_conformers as gpu_conformers
import collamo.data.gpu_rows as gpu_rows
import collamo.data.sharding as sharding_module
from collamo.chem.conformer import embed_conformer
from collamo.chem.conformer_workers import worker_context
from collamo.chem.gpu_conformers import place_on_gpu
from collamo.chem.molecule import Molecule
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.sources import SourceRow
from collamo.errors import MissingDependencyError, UsageError

NVMOLKIT = PrepareOptions(embedder="nvmolkit")
SILENT, NOT_FINITE, CRASH = "CCS", "CCP", "CCF"


def embed_molecules(molecules, params, confsPerMolecule=1, maxIterations=-1):
    """As nvMolKit's: in place, so many atoms at most, fragments together, some without a word."""
    for mol in molecules:
        assert mol.GetNumAtoms() <= gpu_conformers.MOST_ATOMS
        kind = "".join(atom.GetSymbol() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1)
        if kind == CRASH:
            os._exit(9)
        if kind != SILENT:
            rdDistGeom.EmbedMolecule(mol, params)
        if kind == NOT_FINITE:
            mol.GetConformer().SetAtomPosition(0, [np.nan, 0.0, 0.0])


@pytest.fixture
def nvmolkit(monkeypatch):
    """The package, with a version; workers that are forked find it, too."""
    if worker_context().get_start_method() != "fork":
        pytest.skip("the package is put in by patching, which only a forked worker inherits")
    package, module = ModuleType("nvmolkit"), ModuleType("nvmolkit.embedMolecules")
    module.EmbedMolecules = embed_molecules
    monkeypatch.setitem(sys.modules, "nvmolkit", package)
    monkeypatch.setitem(sys.modules, "nvmolkit.embedMolecules", module)
    version = importlib.metadata.version
    monkeypatch.setattr(
        sharding_module, "version", lambda name: "0.7" if name == "nvmolkit" else version(name)
    )
    return module


def methods(folder):
    return {
        row["text"]: row["conformer_method"]
        for row in pq.read_table(folder / "molecules-00000.parquet").to_pylist()
    }


def test_what_the_gpu_leaves_is_embedded_by_rdkit(nvmolkit, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_conformers, "MOST_ATOMS", 20)
    chain = "C" * 7  # 23 atoms
    smiles = ["CCO", SILENT, NOT_FINITE, "[Na+].[Cl-]", chain, "C1CC", "[He]"]
    (tmp_path / "a.smi").write_text("".join(f"{text}\n" for text in smiles))
    manifest = prepare(tmp_path / "a.smi", tmp_path / "out", NVMOLKIT, workers=1, max_reject_rate=1)
    assert methods(tmp_path / "out") == {
        "CCO": "nvmolkit+mmff",
        SILENT: "etkdgv3+mmff",
        NOT_FINITE: "etkdgv3+mmff",
        "[Na+].[Cl-]": "etkdgv3+mmff",
        chain: "etkdgv3+mmff",
        "[He]": "nvmolkit",
    }
    assert manifest.conformers == {"etkdgv3+mmff": 4, "nvmolkit": 1, "nvmolkit+mmff": 1}
    assert manifest.rejected == {"unclosed_ring": 1}
    assert manifest.versions["nvmolkit"] == "0.7"
    assert manifest.options.embedder == "nvmolkit"


def test_the_force_field_goes_on_from_the_places_of_the_gpu(nvmolkit):
    molecule = Molecule.from_smiles("OCC(N)C(=O)c1ccccc1")
    (start,) = place_on_gpu([molecule], 7)
    assert start.shape == (molecule.mol.GetNumAtoms() + 11, 3)
    placed = embed_conformer(molecule, 7, steps=0, start=start)
    assert placed.method == "nvmolkit"
    assert np.array_equal(placed.coordinates, start[: molecule.num_atoms].astype(np.float32))
    minimised = embed_conformer(molecule, 7, start=start)
    assert (minimised.method, minimised.converged) == ("nvmolkit+mmff", True)
    assert not np.allclose(minimised.coordinates, placed.coordinates, atol=1e-3)


def test_a_batch_that_ends_its_process_goes_to_rdkit(nvmolkit, monkeypatch, caplog):
    """Rows stay in their order, and the batches behind it are placed again."""
    monkeypatch.setattr(gpu_rows, "TOGETHER", 2)
    smiles = ["CCO", "CCN", CRASH, "CCC", "CCCl"]
    rows = [SourceRow(number, text) for number, text in enumerate(smiles, start=1)]
    placed = list(gpu_rows.placed_rows(iter(rows), NVMOLKIT))
    assert [row.text for row in placed] == smiles
    assert [row.start is not None for row in placed] == [True, True, False, False, True]
    assert "rows 3 to 4 are embedded by RDKit: nvMolKit failed: ProcessExpired" in caplog.text


def test_without_the_package_or_a_gpu_it_is_refused_with_the_reason(
    nvmolkit, monkeypatch, tmp_path
):
    def no_gpu(*_, **__):
        raise RuntimeError("CUDA driver version is insufficient\nat gpu.cpp:12")

    monkeypatch.setattr(nvmolkit, "EmbedMolecules", no_gpu)
    with pytest.raises(MissingDependencyError) as error:
        prepare("nci", tmp_path / "out", NVMOLKIT, workers=1)
    assert str(error.value) == (
        "--conformers nvmolkit: nvMolKit finds no GPU it can use (CUDA driver version is "
        "insufficient); leave the option out"
    )
    monkeypatch.undo()
    if importlib.util.find_spec("nvmolkit") is None:
        with pytest.raises(MissingDependencyError, match="nvmolkit is not installed; pip install"):
            prepare("nci", tmp_path / "out", NVMOLKIT, workers=1)
    with pytest.raises(UsageError, match=r"did you mean 'nvmolkit'\?"):
        PrepareOptions(embedder="nvmol")
