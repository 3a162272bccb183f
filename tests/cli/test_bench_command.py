"""`collamo bench` on molecules of a user: what is timed, kept and compared. No clock is trusted."""

import csv
import re

import pytest
from command_line import assert_fails

ETHANOL = """
     RDKit          3D

  3  2  0  0  0  0  0  0  0  0999 V2000
   -0.8883    0.1670   -0.0273 C   0  0  0  0  0  0  0  0  0  0  0  0
    0.4658   -0.5116   -0.0368 C   0  0  0  0  0  0  0  0  0  0  0  0
    1.4311    0.3229    0.5867 O   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  2  3  1  0
M  END
$$$$
"""
SIZES = ("--heads", 2, "--width", 8, "--gaussians", 4, "--rounds", 3)


@pytest.fixture
def sdf(tmp_path):
    path = tmp_path / "mine.sdf"
    path.write_text(ETHANOL + ETHANOL.replace(" O ", " Qq") + ETHANOL)
    return path


def test_rows_of_my_molecules_are_shown_kept_and_compared(collamo, sdf, tmp_path):
    out = tmp_path / "measured"
    code, shown, err = collamo("bench", "--sdf", sdf, *SIZES, "--out", out)
    assert code == 0, err
    assert "left out: 1, the first: record 2: " in err
    assert "the file has only 2 molecules that can be read" in err
    workload = "2 molecules of mine.sdf (mean 3.0 atoms), 2 heads of 8, forward + backward"
    assert f"coattention: {workload}\n" in shown
    for operation in ("coattention", "shortest_paths", "pairwise_distances"):
        rows = list(csv.DictReader((out / f"{operation}.csv").open()))
        assert {row["rival"] for row in rows} > {"ours"}
        assert all(float(row["median_ms"]) > 0 for row in rows if not row["note"])
        assert "<svg" in (out / f"{operation}.svg").read_text()
    assert "earlier runs" not in shown

    code, shown, _ = collamo("bench", "--sdf", sdf, *SIZES, "--compare", out)
    assert code == 0
    row = next(csv.DictReader((out / "coattention.csv").open()))
    before = f"{float(row['median_ms']):.3g} ms"
    first = shown[shown.index("coattention") :].split("\n ours ")[1].splitlines()[0]
    assert first.rstrip().endswith(before)


def test_what_stands_in_no_file_is_embedded(collamo, tmp_path):
    (tmp_path / "mine.smi").write_text("CCO\nCC(=O)[O-].[Na+]\n")
    code, shown, err = collamo("bench", "--sdf", tmp_path / "mine.smi", "--molecules", 2, *SIZES)
    assert (code, err) == (0, "")
    assert re.search(r"shortest_paths: 2 molecules of mine.smi \(mean 4.0 atoms\)\n", shown)


def test_bad_input_is_named(collamo, tmp_path, monkeypatch):
    assert_fails(collamo("bench", "--sdf", "absent.sdf"), 2, "absent.sdf", "does not exist")
    bad = tmp_path / "bad.smi"
    bad.write_text("C1CC\n")
    assert_fails(collamo("bench", "--sdf", bad), 2, "bad.smi has no molecule", "unclosed ring")
    assert_fails(collamo("bench", "--compare", tmp_path), 2, "--compare", "holds no rows")
    from collamo.benchmark import workloads

    monkeypatch.setattr(workloads, "_memory", lambda: 1e6)
    good = tmp_path / "good.smi"
    good.write_text("CCCCCCCC\n" * 9)
    failed = collamo("bench", "--sdf", good, "--molecules", 9)
    assert failed[0] == 2
    assert "needs 0.00025 GB for each of 9 molecules of up to 8 atoms" in failed[2]
    assert "say --molecules 4" in failed[2]


def test_without_compiled_kernels_it_says_that_ours_is_plain_pytorch(capsys, monkeypatch):
    import collamo_kernels
    from collamo.cli.bench import _tell_what_is_measured

    for extension, told in ((True, ""), (False, "note: ours is plain PyTorch here")):
        info = {"extension": extension, "why_absent": None if extension else "no compiler"}
        monkeypatch.setattr(collamo_kernels, "build_info", lambda info=info: info)
        _tell_what_is_measured([True], [], few=False)
        said = capsys.readouterr().err
        assert said.startswith(told)
        assert ("no compiler" in said) is not extension
