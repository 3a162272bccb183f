"""QM9: out of its wheel and from its own files, geometry and all."""

import csv
import json
import sys

import numpy as np
import pytest

from collamo.data import qm9
from collamo.data.options import PrepareOptions
from collamo.data.prepare import prepare
from collamo.data.prepared import PreparedData
from collamo.data.sources import open_source
from collamo.errors import CollamoError, MissingDependencyError, UsageError

# Records 1 and 3, and 7 with the geometry of another molecule; 2 and 4 to 6 are left out.
METHANE = [(-0.0127, 1.0858, 0.008), (0.0022, -0.006, 0.002), (1.0117, 1.4638, 0.0003)]
METHANE += [(-0.5408, 1.4475, -0.8766), (-0.5238, 1.4379, 0.9064)]
WATER = [(-0.0344, 0.9775, 0.0076), (0.0648, 0.0206, 0.0015), (0.8718, 1.3008, 0.0007)]
RECORDS = [(1, "C", "CHHHH", METHANE, -0.3877), (3, "O", "OHH", WATER, -0.2928)]
RECORDS += [(7, "CO", "OHH", WATER, -0.25)]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel in the layout of the real one, whose code must not run."""
    folder = tmp_path / "site" / "qm9pack"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('the code of the wheel ran')\n")
    for part, records in (("1", RECORDS[:2]), ("2", RECORDS[2:]), ("3", [])):
        with (folder / "data" / f"qm9_part{part}.csv").open("w", newline="") as file:
            columns = ["Index", "SMILES", "Elements", "XYZ_Ang", *qm9._NAMES]
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for index, smiles, elements, places, homo in records:
                writer.writerow(
                    {
                        **dict.fromkeys(qm9._NAMES, 0.5),
                        "Index": index,
                        "SMILES": smiles,
                        "Elements": str(list(elements)).replace(", ", ","),
                        "XYZ_Ang": json.dumps(places, separators=(",", ":")),
                        "HOMO_au": homo,
                    }
                )
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "qm9pack", raising=False)
    return folder


def test_rows_are_numbered_as_in_qm9_and_those_left_out_are_counted(wheel, tmp_path):
    manifest = prepare(
        "qm9", tmp_path / "out", PrepareOptions(limit=8), workers=1, max_reject_rate=1
    )
    assert manifest.rows == {"in": 8, "ok": 2, "rejected": 6}
    assert manifest.rejected == {"geometry_elements": 1, "uncharacterized": 5}
    assert manifest.conformers == {"b3lyp/6-31g(2df,p)": 2}
    data = PreparedData.open(tmp_path / "out")
    conformer = data.features(3).conformer
    np.testing.assert_allclose(conformer.coordinates, [WATER[0]])
    assert conformer.method == qm9.GEOMETRY
    assert data.table(0)["text"].to_pylist() == ["C gdb_1", "O gdb_3"]
    homo = {t.molecule: t for t in data.tasks("train") if t.target == "homo"}[1]
    assert (homo.answer, homo.unit, homo.task) == ("-0.3877", "Hartree", "measured")
    assert "HOMO energy" in homo.question
    assert "in Hartree" in homo.question
    assert list(manifest.measured) == ["homo", "lumo", "gap", "mu", "alpha", "r2"]


def test_the_whole_set_has_its_published_number_of_records(wheel):
    rows = list(open_source("qm9"))
    assert len(rows) == 133_885
    assert sum(row.problem is None for row in rows) == 3
    assert rows[-1].problem[0] == "uncharacterized"


def test_energies_come_in_the_unit_that_is_asked_for(wheel):
    source = open_source("qm9", measured_columns=["homo:eV, mu, u0:Hartree"])
    assert {name: column.unit for name, column in source.measured.items()} == {
        "homo": "eV",
        "mu": "D",
        "u0": "Hartree",
    }
    first = next(iter(source)).columns
    assert float(first["homo"]) == pytest.approx(-0.3877 * 27.211386246, abs=1e-6)
    assert (first["mu"], first["u0"]) == ("0.5", "0.5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"measured_columns": ["gapp"]}, r"qm9 has no column 'gapp' \(did you mean 'gap'"),
        ({"measured_columns": ["gap:kcal/mol"]}, "qm9 gives gap in Hartree or eV, not in kcal"),
        ({"measured_columns": ["mu:eV"]}, "qm9 gives mu in D, not in eV"),
        ({"caption_column": "x"}, "qm9 has no columns of molecules"),
    ],
)
def test_what_qm9_has_not(wheel, arguments, words):
    with pytest.raises(UsageError, match=words):
        open_source("qm9", **arguments)


def test_without_the_wheel(monkeypatch):
    monkeypatch.setattr(qm9, "PACKAGE", "no_such_package")
    with pytest.raises(MissingDependencyError, match=r"extra 'qm9' .*is missing"):
        open_source("qm9")


def test_a_wheel_of_another_layout(wheel):
    (wheel / "data" / "qm9_part1.csv").write_text("Index,SMILES\n1,C\n")
    with pytest.raises(CollamoError, match=r"record 1 .*install qm9pack==1\.0\.3"):
        list(open_source("qm9"))
    (wheel / "data" / "qm9_part1.csv").write_text("Index,SMILES\none,C\n")
    with pytest.raises(CollamoError, match="record one is laid out in another way"):
        list(open_source("qm9"))
    (wheel / "data" / "qm9_part1.csv").unlink()
    with pytest.raises(CollamoError, match="csv cannot be read"):
        list(open_source("qm9"))


def test_the_published_split_has_its_sizes_and_a_seed():
    assert qm9.split_sizes(qm9.RECORDS) == {"train": 110_000, "validation": 10_000}
    assert qm9.split_sizes(1000) == {"train": 821, "validation": 74}


def test_the_published_split(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(qm9, "split_sizes", lambda records: {"train": 1})
    monkeypatch.setattr("collamo.data.sources.split_sizes", lambda records: {"train": 1})
    options = PrepareOptions(limit=3, split_by="published")
    manifest = prepare("qm9", tmp_path / "out", options, workers=1, max_reject_rate=1)
    assert manifest.splits == {"train": 1, "validation": 0, "test": 1}


def test_another_source_has_no_published_split(tmp_path):
    with pytest.raises(UsageError, match="nci has no published split"):
        prepare("nci", tmp_path / "out", PrepareOptions(limit=3, split_by="published"))


def test_a_file_of_qm9s_own(write, tmp_path):
    atoms = "\n".join(
        f"{element}\t{x}\t{y}\t{z}\t-0.5" for element, (x, y, z) in zip("OHH", WATER, strict=True)
    ).replace("0.0007", "7.*^-4")
    numbers = "1.85 6.31 -0.2928 0.0687 0.3615 19.0002 0.021375 -76.404702 -76.401867 -76.400922 "
    numbers += "-76.422349 6.002"
    text = f"3\ngdb 3 799.6 437.9 282.9 {numbers}\n{atoms}\n1671.4\nO\tO\nInChI=1S/H2O\n"
    path = write("dsgdb9nsd.xyz", text * 2)
    manifest = prepare(path, tmp_path / "out", workers=1)
    assert manifest.rows == {"in": 2, "ok": 2, "rejected": 0}
    assert manifest.conformers == {"given": 2}
    assert set(manifest.measured) == {*qm9.Qm9Wheel.columns[1:]}
    assert manifest.guesses[0].startswith("taken for columns of QM9")


@pytest.mark.slow
def test_the_real_wheel(tmp_path):
    pytest.importorskip("qm9pack", reason="the extra qm9 is not installed")
    manifest = prepare("qm9", tmp_path / "out", PrepareOptions(limit=200), workers=1)
    assert manifest.rows["in"] == 200
    assert set(manifest.rejected) <= {"uncharacterized", "geometry_hydrogens", "geometry_elements"}
