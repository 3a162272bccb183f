"""The claims: every run has one row, a row is not run again, the page says what the rows say."""

import datetime
import re

import numpy as np
import pytest

from collamo.data.prepared import PreparedData
from evidence import __main__ as main_module
from evidence import report
from evidence.claim import Claim, Finding, Workplace
from evidence.claims import CLAIMS
from evidence.intervals import relative_change
from evidence.ledger import ROOT, Ledger
from evidence.relation_report import report_relations
from evidence.runs import run_missing

NOW = datetime.datetime.now(datetime.UTC)


def add(ledger, errors, **run):
    metrics = {"test": 4, "train": 9, "steps": 2, "batch": 2, "mae_gap": float(errors.mean())}
    ledger.add(run, {**metrics, "details": {"errors": errors}}, started=NOW, device="cpu")


def test_a_ledger_gives_back_what_was_added(tmp_path):
    ledger = Ledger("claim", tmp_path)
    run = {"size": "tiny", "seed": 1, "relations": "Φ2d + Φ3d"}
    assert ledger.rows() == []
    add(ledger, np.ones((4, 1)), **run)
    ledger.add({"size": "tiny", "seed": 2}, {"other": 3}, started=NOW, device="cpu")
    assert ledger.has(run)
    assert not ledger.has({**run, "seed": 3})
    first, second = ledger.rows()
    assert (first["mae_gap"], first["other"], second["other"]) == ("1.0", "", "3")
    assert {"commit", "machine", "seconds", "started", "versions"} <= first.keys()
    np.testing.assert_array_equal(ledger.details(first)["errors"], np.ones((4, 1)))
    assert len(ledger.rows(size="tiny")) == 2
    assert len(ledger.rows(seed=1)) == 1


def test_an_interval_is_of_paired_rows_and_covers_the_seeds():
    rng = np.random.default_rng(0)
    reference = rng.gamma(2, size=(3, 500))
    change = relative_change(0.9 * reference, reference)
    assert change.value == pytest.approx(-0.1)
    assert (change.low, change.high) == pytest.approx((-0.1, -0.1))
    factors = np.array([[0.7], [0.9], [1.1]])
    uncertain = relative_change(factors * reference, reference)
    assert uncertain.low < -0.2
    assert uncertain.high > 0


def test_conformers_of_one_molecule_are_drawn_together():
    rng = np.random.default_rng(0)
    per_molecule = rng.normal(1, 0.5, size=(1, 20)) ** 2
    errors, reference = np.repeat(per_molecule, 10, axis=1), np.ones((1, 200))
    together = relative_change(errors, reference, np.repeat(np.arange(20), 10))
    apart = relative_change(errors, reference)
    assert together.high - together.low > 2 * (apart.high - apart.low)


@pytest.mark.parametrize(
    ("factor", "words", "short"),
    [
        (0.8, "lower the error of gap (-20.0%", "shown (error of gap -20.0%; 3 seeds)"),
        (1.3, "raise the error of gap (+30.0%", "not shown (error of gap +30.0%; 3 seeds)"),
        (
            1.0,
            "make no clear difference to the error of gap (+0.0%",
            "not shown (no clear change; 3 seeds)",
        ),
    ],
)
def test_the_verdict_says_what_the_rows_say(tmp_path, factor, words, short):
    ledger, rng = Ledger("relations", tmp_path), np.random.default_rng(0)
    for seed in range(3):
        errors = rng.gamma(2, size=(50, 1))
        common = {"size": "cpu", "attention": "softmax", "seed": seed}
        add(ledger, errors, relations="neither", **common)
        add(ledger, factor * errors, relations="Φ2d + Φ3d", **common)
    finding = report_relations(ledger, ["gap [eV]"])
    assert words in finding.verdict
    assert "(3 seeds)." in finding.verdict
    assert finding.summary == f"softmax: {short}; sinks: not run yet."
    assert finding.table.count("\n| softmax | ") == 2


def test_what_lacks_its_counterpart_is_not_run_yet(tmp_path):
    ledger = Ledger("relations", tmp_path)
    add(ledger, np.ones((4, 1)), size="cpu", attention="softmax", relations="neither", seed=0)
    assert "With softmax: not run yet." in report_relations(ledger, ["gap [eV]"]).verdict


@pytest.fixture
def pages(tmp_path):
    """A page and a README with nothing but the markers, and words around them."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for path in (docs / "evidence.md", tmp_path / "README.md"):
        path.write_text(f"before\n{report._START}\nold\n{report._END}\nafter\n")
    return docs


def test_a_claim_without_rows_is_not_run_yet(tmp_path, pages):
    report.write_report(tmp_path / "results", pages, tmp_path)
    page = (pages / "evidence.md").read_text()
    assert page.count(report.NOT_RUN) == len(CLAIMS)
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert report.NOT_RUN in (tmp_path / "README.md").read_text()


def test_a_page_without_its_markers_is_refused(tmp_path, pages):
    (pages / "evidence.md").write_text("nothing")
    with pytest.raises(ValueError, match="lacks the lines"):
        report.write_report(tmp_path / "results", pages, tmp_path)


def test_the_page_and_the_readme_are_those_of_the_rows(tmp_path, pages):
    """`python -m evidence report` changes nothing that is committed."""
    for name in ("docs/evidence.md", "README.md"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    report.write_report(ROOT / "results", pages, tmp_path)
    for name in ("docs/evidence.md", "README.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
    figures = {path.name for path in (pages / "evidence").glob("*.svg")}
    assert figures == {path.name for path in (ROOT / "docs" / "evidence").glob("*.svg")}


def test_every_row_has_its_seed_and_every_figure_its_text():
    for name in CLAIMS:
        for row in Ledger(name).rows():
            assert re.fullmatch(r"\d+", row["seed"])
            assert row["commit"] != "unknown"


@pytest.mark.slow
def test_every_claim_runs_and_no_run_twice(tmp_path, pages):
    place = Workplace("tiny", "cpu", tmp_path / "data")
    results = tmp_path / "results"
    run_missing(list(CLAIMS.values()), place, results, jobs=2)
    before = {name: Ledger(name, results).rows() for name in CLAIMS}
    for name, claim in CLAIMS.items():
        assert len(before[name]) == len(claim.runs("tiny"))
    run_missing(list(CLAIMS.values()), place, results)
    assert {name: Ledger(name, results).rows() for name in CLAIMS} == before
    folders = [path.parent for path in place.data.rglob("splits.parquet")]
    assert folders
    for folder in folders:
        assert PreparedData.open(folder).manifest.overlaps == {}
    report.write_report(results, pages, tmp_path)
    page = (pages / "evidence.md").read_text()
    assert report.NOT_RUN not in page
    for name, claim in CLAIMS.items():
        assert claim.title in page
        assert f"run {name}" in page


def test_the_makefile_calls_what_is_there(tmp_path, monkeypatch):
    """The commands of `make evidence` but with the deadline passed, so that nothing runs."""
    calls = re.findall(r"-m evidence (.*)", (ROOT / "Makefile").read_text())
    assert len(calls) == 2
    reports = []
    monkeypatch.setattr(main_module, "write_report", reports.append)
    for call in calls:
        main_module.main(
            re.sub(r"--minutes \d+", "--minutes 0", call).replace("$(OUT)", str(tmp_path)).split()
        )
    assert reports == [tmp_path]
    assert not list(tmp_path.rglob("rows.csv"))


def test_a_deadline_that_has_passed_begins_no_run(tmp_path, capsys):
    def fail(*arguments):
        raise AssertionError("the deadline has passed")

    claim = Claim("none", "", "", lambda size: [{"seed": 0}], fail, lambda ledger: Finding("", ""))
    run_missing([claim], Workplace("tiny", "cpu", tmp_path), tmp_path, minutes=0)
    assert "no time left for size tiny, seed 0" in capsys.readouterr().err
    assert Ledger("none", tmp_path).rows() == []


@pytest.mark.slow
def test_a_claim_without_its_file_stops_no_other(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLLAMO_TEST_DATA", raising=False)
    run_missing([CLAIMS["language_model"]], Workplace("cpu", "cpu", tmp_path), tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("language_model: COLLAMO_TEST_DATA names no folder with data/")
    assert Ledger("language_model", tmp_path).rows() == []
