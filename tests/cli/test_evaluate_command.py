"""`collamo evaluate` on good and bad input: exit code, one clear line, nothing lost."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
from command_line import assert_fails

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.slow
def test_evaluate_writes_the_report_and_shows_it(collamo, run, tmp_path):
    out = tmp_path / "evaluation"
    options = [run.checkpoint, "--data", run.data, "--out", out]
    options += ["--limit", "5", "--max-new-tokens", "8"]
    code, text, err = collamo("evaluate", *options)
    assert code == 0, err
    report = json.loads((out / "report.json").read_text())
    assert {v["task"] for v in report["verdicts"]} >= {"motif_count", "property_2d", "caption"}
    for verdict in report["verdicts"]:
        assert verdict["task"] in text
    variants = report["variants"]["motif_count"]
    assert {"CoLLaMo", "wrong molecule", "same-size molecule", "scattered atoms"} <= set(variants)
    assert {"1d only", "without 2d", "most common answer", "train median"} <= set(variants)
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert len(rows) == report["manifest"]["questions"]
    assert sum(counts["rows"] for counts in report["counts"].values()) == len(rows)
    for counts in report["counts"].values():
        assert sum(counts.values()) == 2 * counts["rows"]
    manifest = report["manifest"]
    assert all(len(manifest[f"{source}_sha256"]) == 64 for source in ("checkpoint", "data"))
    assert manifest["tokenizer"] == "13a"
    assert manifest["versions"]["torch"]
    assert "| CoLLaMo |" in (out / "report.md").read_text()
    # Again with another tokeniser: every answer is there already.
    said = (out / "answers.jsonl").read_text()
    more = ["--tokenizer", "whitespace", "--entities", "offline"]
    assert collamo("evaluate", *options, *more)[0] == 0
    assert (out / "answers.jsonl").read_text() == said + said.splitlines()[-1] + "\n"
    again = json.loads((out / "report.json").read_text())
    assert again["manifest"]["tokenizer"] == "whitespace"
    assert again["manifest"]["entities"] == "offline"
    captions = again["entity_counts"]
    for name in ("rows", "variants"):
        table = pq.read_table(out / f"{name}.parquet")
        asked = zip(table["task"].to_pylist(), table["entity_status"].to_pylist(), strict=True)
        assert {task == "caption" for task, status in asked if status is not None} == {True}
    found = Counter(pq.read_table(out / "rows.parquet")["entity_status"].to_pylist())
    del found[None]
    assert found == {name: n for name, n in captions.items() if name != "rows" and n}
    assert captions["rows"] == again["counts"]["caption"]["rows"] == sum(captions.values()) / 2
    assert "rcharm" in again["scores"]["caption"]
    assert "| entities of captions |" in (out / "report.md").read_text()
    assert pq.read_table(out / "rows.parquet")["prediction"].to_pylist() == [
        row["prediction"] for row in rows
    ]
    code, text, _ = collamo("compare", out, out)
    assert code == 0
    assert "motif_count › exact" in text


def test_evaluate_without_reliance_asks_the_two_of_the_verdict(collamo, run, tmp_path):
    options = [run.checkpoint, "--data", run.data, "--out", tmp_path]
    options += ["--limit", "3", "--max-new-tokens", "4", "--no-reliance"]
    assert collamo("evaluate", *options)[0] == 0
    report = json.loads((tmp_path / "report.json").read_text())
    names = {"CoLLaMo", "wrong molecule", "most common answer"}
    assert set(report["variants"]["caption"]) == names
    assert not (tmp_path / "reliance.svg").exists()


@pytest.mark.slow
def test_an_evaluation_that_was_cut_off_goes_on(collamo, run, tmp_path, monkeypatch):
    from collamo.inference import answers

    options = [run.checkpoint, "--data", run.data, "--limit", "2", "--diagnose"]
    options += ["--max-new-tokens", "4", "--batch-size", "1"]
    assert collamo("evaluate", *options, "--out", tmp_path / "whole")[0] == 0
    generate, asked = answers._generate, []

    def counted(*arguments):
        asked.append(1)
        if len(asked) == 30:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(answers, "_generate", counted)
    assert collamo("evaluate", *options, "--out", tmp_path / "cut")[0] == 130
    assert not (tmp_path / "cut" / "report.json").exists()
    # Another question in the same folder would mix two evaluations.
    refused = collamo("evaluate", *options, "--out", tmp_path / "cut", "--seed", "1")
    assert refused[0] == 2
    assert "unfinished evaluation that differs in seed" in refused[2]
    assert collamo("evaluate", *options, "--out", tmp_path / "cut")[0] == 0
    lines = [(tmp_path / name / "answers.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    assert len(asked) == lines[0].count('"answer"') + 1  # the one that was interrupted
    reports = [(tmp_path / name / "report.json").read_text() for name in ("whole", "cut")]
    assert reports[0] == reports[1]
    found = json.loads(reports[0])["diagnostics"]
    assert found["thresholds"]["flat"] == 0.1
    assert all(finding["sentence"] for finding in found["findings"])
    for name in ("attention", "soft_tokens", "phi", "reliance"):
        assert (tmp_path / "whole" / f"{name}.svg").read_text().count("<svg") == 1
    assert (tmp_path / "whole" / "report.html").read_text().count("<svg") == 4


def test_evaluate_without_data_or_weights(collamo, run, tmp_path):
    assert_fails(collamo("evaluate", "--data", tmp_path / "nowhere"), 2, "nowhere")
    assert_fails(collamo("evaluate", "--data", run.data), 4, "no trained weights")


def test_evaluate_has_no_options_of_score(collamo):
    assert_fails(collamo("evaluate", "--task", "captions"), 2, "No such option: --task")
