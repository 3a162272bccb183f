"""`collamo prepare` on good and bad input: exit code, one clear line, nothing lost."""

import json

import pytest
from command_line import BAD_SMILES, assert_fails, write_csv
from rdkit import Chem
from rdkit.Chem import rdDepictor

from collamo.data.prepared import PreparedData
from collamo.data.shards import SPLITS
from collamo.errors import UsageError


@pytest.mark.slow
def test_prepare_counts_rows_in_and_out(collamo, tmp_path):
    smiles = ["CCO", "c1ccccc1O", "C1CC", "CC(=O)O", "C" * 300]
    file = write_csv(tmp_path / "few.csv", [[text] for text in smiles])
    out = tmp_path / "data"
    options = ["--max-reject-rate", "0.5", "--workers", "1", "--time-limit", "1"]
    code, text, notes = collamo("prepare", file, "--out", out, *options)
    assert code == 0
    assert "5 rows: 4 ok, 1 rejected" in text
    assert str(out / "rejected.jsonl") in notes
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["conformers"] == {"etkdgv3+mmff": 3, "none": 1}  # 300 atoms: too long for 3D
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [r["row"] for r in rejected] == [3]


def test_prepare_with_too_many_rejected_rows_is_exit_3_and_keeps_them(collamo, tmp_path):
    rows = [["CCO"], ["CCN"], *([smiles] for smiles in BAD_SMILES if smiles.strip())]
    file = write_csv(tmp_path / "bad.csv", rows)
    out = tmp_path / "data"
    result = collamo("prepare", file, "--out", out, "--workers", "1")
    assert_fails(result, 3, f"{len(rows) - 2} of {len(rows)} rows were rejected")
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == len(rows) - 2
    assert all(r["message"] for r in rejected)


def test_prepare_of_nothing_useful_is_a_usage_error(collamo, tmp_path):
    out = tmp_path / "data"
    assert_fails(collamo("prepare", "nowhere.csv", "--out", out), 2, "nowhere.csv")
    file = write_csv(tmp_path / "a.csv", [["CCO"]], header=("smilse",))
    assert_fails(collamo("prepare", file, "--out", out), 2, "smilse")
    result = collamo("prepare", file, "--out", out, "--smiles-column", "smiles")
    assert_fails(result, 2, "did you mean 'smilse'?")


def test_prepare_reads_the_pubchem_file(collamo, shared_data, tmp_path):
    source = shared_data / "pubchem_3k.jsonl"
    options = ["--limit", "40", "--no-conformers", "--workers", "1"]
    code, text, _ = collamo("prepare", source, "--out", tmp_path / "data", *options)
    assert code == 0
    assert text.startswith("40 rows: ")


def test_prepare_keeps_a_published_split_and_says_what_it_shares(collamo, tmp_path):
    rows = [["CCO", "train"], ["CCN", "train"], ["CC[NH3+]", "test"], ["CCCl", "val"]]
    file = write_csv(tmp_path / "published.csv", rows, header=("smiles", "set"))
    options = ["--no-conformers", "--workers", "1", "--split"]
    code, text, notes = collamo("prepare", file, "--out", tmp_path / "a", *options, "column:set")
    assert (code, "2 train, 1 validation, 1 test" in text) == (0, True)
    assert "note: test in train: 0 molecules, and 1 with the same parent" in notes
    result = collamo("prepare", file, "--out", tmp_path / "b", *options, "scaffolds")
    assert_fails(result, 2, "did you mean 'scaffold'?")


def prepare(collamo, folder, name, content, *options):
    """Return (questions of the columns, notes) of a small file."""
    (folder / name).write_text(content, encoding="utf-8")
    out = folder / f"{name}.out"
    options = ["--no-conformers", "--workers", "1", *options]
    code, _, notes = collamo("prepare", folder / name, "--out", out, *options)
    assert code == 0, notes
    data = PreparedData.open(out)
    tasks = [example for split in SPLITS for example in data.tasks(split)]
    asked = {(e.molecule, e.task): e for e in tasks if e.task in ("measured", "iupac_name")}
    asked |= {(e.molecule, "caption"): e for e in tasks if e.target == "given"}
    return asked, notes, data.manifest


def test_measured_values_are_read_or_counted(collamo, tmp_path):
    cells = ["6.5", "−1.5", "5.3 nM", '"1,234.5"', ">10000", '"1,5"', "~3", "3.2±0.1", "", "high"]
    cells += ['"2,345"']  # what it means is open: one cell has a decimal comma
    rows = [f"{'C' * i}O,{cell}" for i, cell in enumerate(cells, 1)]
    content = "\n".join(["smiles,pic50", *rows]) + "\n"
    asked, notes, manifest = prepare(
        collamo, tmp_path, "a.csv", content, "--measured-columns", "pIC50"
    )
    answers = {row: example.answer for (row, _), example in asked.items()}
    expected = {1: "6.5", 2: "-1.5", 3: "5.3", 4: "1234.5", 5: ">10000", 7: "~3", 8: "3.2"}
    assert answers == expected
    assert asked[3, "measured"].unit == "nM"
    assert asked[5, "measured"].value == 10000
    assert manifest.values == {
        "pic50": {
            "ambiguous": 2,
            "approximate": 1,
            "blank": 1,
            "bound": 1,
            "exact": 5,
            "no number": 1,
        }
    }
    assert (
        "note: column 'pic50': 7 of 11 values asked for; 2 ambiguous, 1 approximate, 1 blank, "
        "1 bound, 1 no number" in notes
    )


def test_energies_in_ev_are_not_labelled_hartree(collamo, tmp_path):
    content = "smiles,homo,gap,cv\nCCO,{},{},10\nCCN,{},{},11\n"
    ev = content.format(-7.1, 8.3, -6.9, 8.1)
    asked, notes, manifest = prepare(collamo, tmp_path, "ev.csv", ev)
    assert not asked
    assert not manifest.measured
    assert "homo is outside QM9's" in notes
    named, _, _ = prepare(
        collamo, tmp_path, "named.csv", ev, "--measured-columns", "homo:eV,GAP:eV"
    )
    assert {example.unit for example in named.values()} == {"eV"}
    hartree = content.format(-0.26, 0.31, -0.25, 0.3)
    asked, notes, _ = prepare(collamo, tmp_path, "hartree.csv", hartree)
    assert asked[1, "measured"].unit == "cal/(mol K)"
    assert "note: taken for columns of QM9" in notes
    assert "homo (HOMO energy, Hartree)" in notes
    units = content.format("-7.1 eV", "8.3 eV", "-6.9 eV", "8.1 eV")
    prepare(collamo, tmp_path, "units.csv", units)  # in the range of QM9 when they are converted
    tasks = PreparedData.open(tmp_path / "units.csv.out").tasks("train")
    homo = {(e.unit, round(e.value, 4)) for e in tasks if e.target == "homo"}
    assert homo == {("Hartree", -0.2609), ("Hartree", -0.2536)}
    asked, notes, _ = prepare(collamo, tmp_path, "off.csv", hartree, "--no-guess-columns")
    assert not asked
    assert "QM9" not in notes


def test_missing_values_are_no_captions(collamo, tmp_path):
    content = "smiles,description,iupac_name\nCCO,An alcohol.,ethanol\nCCN,NaN,nan\nCCC,N/A,\n"
    asked, notes, _ = prepare(collamo, tmp_path, "a.csv", content)
    assert set(asked) == {(1, "caption"), (1, "iupac_name")}
    assert "column 'description': 1 of 3 values asked for; 2 missing" in notes
    lines = [{"smiles": "CCN", "caption": float("nan")}, {"smiles": "CCO", "caption": {"a": 1}}]
    asked, notes, _ = prepare(collamo, tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert not asked
    assert "column 'caption': 0 of 2 values asked for; 1 blank, 1 missing" in notes


def test_molecules_without_3d_are_said(collamo, tmp_path):
    (tmp_path / "a.smi").write_text("C1CC2(CC1)C#CC2\nCCO\n")
    code, _, notes = collamo("prepare", tmp_path / "a.smi", "--out", tmp_path / "o", "--workers", 1)
    assert code == 0
    assert "note: 1 of 2 molecules have no 3D: 1 ETKDGv3 found no geometry" in notes
    manifest = PreparedData.open(tmp_path / "o").manifest
    assert manifest.absent_conformers == {"ETKDGv3 found no geometry": 1}
    _, notes, _ = prepare(collamo, tmp_path, "b.smi", "CCO\n")
    assert "3D" not in notes  # nobody asked for it


def test_records_embedded_anew_are_said(collamo, tmp_path):
    mol = Chem.MolFromSmiles("CCOC(=O)C")
    rdDepictor.Compute2DCoords(mol)
    tagged = Chem.MolToMolBlock(mol).replace("RDKit          2D", "RDKit          3D")
    (tmp_path / "a.sdf").write_text(f"{tagged}$$$$\n{Chem.MolToMolBlock(mol)}$$$$\n")
    code, _, notes = collamo("prepare", tmp_path / "a.sdf", "--out", tmp_path / "o", "--workers", 1)
    assert code == 0
    reason = "the record's coordinates are no geometry: a flat drawing tagged 3D"
    assert f"note: 1 of 2 molecules were embedded anew: 1 {reason}" in notes
    assert PreparedData.open(tmp_path / "o").manifest.embedded_anew == {reason: 1}


def test_columns_with_commas_and_colons_can_be_named(collamo, tmp_path):
    content = 'smiles,"IC50, nM",logS:exp\nCCO,1,2\n'
    _, _, manifest = prepare(
        collamo, tmp_path, "a.csv", content, "--measured-columns", "IC50, nM,logS:exp"
    )
    assert {name: column.unit for name, column in manifest.measured.items()} == {
        "IC50, nM": "nM",
        "logS:exp": None,
    }


def test_a_selfies_column(collamo, tmp_path):
    content = "molecule,description\n[C][C][O],ethanol\n[C],methane\n"
    for option in ("--selfies-column", "--smiles-column"):
        out = tmp_path / option
        (tmp_path / "a.csv").write_text(content)
        options = ["--no-conformers", "--workers", "1", option, "Molecule"]
        assert collamo("prepare", tmp_path / "a.csv", "--out", out, *options)[0] == 0
        data = PreparedData.open(out)
        formulas = [e.answer for e in data.tasks("train") if e.target == "formula"]
        # Alone, [C] is a carbon without hydrogens or a methane: only the user knows.
        assert formulas == ["C2H6O", "CH4" if option == "--selfies-column" else "C"]


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["--ray"], "local"),
        (["--ray", "auto"], "auto"),
        (["--ray", "ray://head:10001"], "ray://head:10001"),
        (["--ray=head.cluster:6379"], "head.cluster:6379"),
        ([], None),
    ],
)
def test_ray_takes_an_address_or_none(collamo, tmp_path, monkeypatch, arguments, address):
    """Whatever stands behind --ray: a source is no address."""
    import collamo.data.prepare as prepare_module

    asked = []

    def prepare(source, out, *_, ray, **__):
        asked.append((source, ray))
        raise UsageError("asked")

    monkeypatch.setattr(prepare_module, "prepare", prepare)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = ["--out", tmp_path / "data"]
    collamo("prepare", *arguments, "a.csv", *out)
    collamo("prepare", "a.csv", *out, *arguments)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    collamo("prepare", *arguments, "a.csv", *out)
    assert asked[:2] == [("a.csv", address)] * 2
    assert asked[2] == ("a.csv", "10.0.0.1:6379" if address == "local" else address)


def test_encoder_outputs_are_not_written_at_urls(collamo, tmp_path):
    options = ["--out", "s3://bucket/data", "--encode", "--gin", tmp_path / "gin.pt"]
    assert_fails(collamo("prepare", "nci", *options), 2, "s3://bucket/data is a URL")
