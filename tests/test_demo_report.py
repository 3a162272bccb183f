"""The demo's report on a small run: verdicts from the numbers, pictures that open."""

import importlib.util
import json
from pathlib import Path

import pytest
from trained import trained

from collamo.errors import UsageError

EXAMPLE = Path(__file__).parents[1] / "examples" / "demo_report.py"


@pytest.fixture(scope="module")
def demo_report():
    spec = importlib.util.spec_from_file_location("demo_report", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_demo_report_shows_verdicts_curves_and_molecules(demo_report, tmp_path):
    from collamo.data.prepared import PreparedData
    from collamo.evaluation.examine.split import evaluate
    from collamo.model import load_checkpoint

    run = trained()
    for name in ("data", "tiny_lm", "stage1", "stage2"):
        (tmp_path / name).symlink_to(run.folder / name)
    model, processor = load_checkpoint(run.checkpoint)
    data = PreparedData.open(run.data)
    options = {"limit": 6, "max_new_tokens": 6}
    evaluate(model, processor, data, out=tmp_path / "evaluation", **options)

    text = demo_report.main(tmp_path).read_text()
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    for verdict in report["verdicts"]:
        assert f"{'✓' if verdict['beats_both'] else '✗'} {verdict['sentence']}" in text
        assert f"- {verdict['reading']}" in text
    assert (tmp_path / "evaluation" / "reliance.svg").is_file()
    assert "48 train, 6 validation, 6 test molecules" in text
    assert "| tiny language model | 10 |" in text
    for picture in ("learning_curves.png", "molecules.png"):
        assert f"({picture})" in text
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_a_demo_that_did_not_finish_says_what_is_missing(demo_report, tmp_path):
    with pytest.raises(UsageError, match=r"report\.json is missing; run `make demo`"):
        demo_report.main(tmp_path)
