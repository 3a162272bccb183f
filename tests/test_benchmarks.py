"""The benchmarks load, refuse a wrong answer and record what they measured; nothing is timed."""

import csv
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_answers_of_attention_are_checked(benchmarks):
    import bench_coattention as bench

    _, inputs = bench.molecule_inputs(2)
    yardstick, exact = bench.answers(inputs)
    sdpa = bench.rivals_of(inputs, backward=False)["SDPA, bias ready-built"]
    assert bench.checked({"SDPA": sdpa}, yardstick["out"], exact["out"]) == {"SDPA": sdpa}
    right = sdpa.packed()
    sdpa.packed = lambda: right + 1e-4
    with pytest.raises(AssertionError, match="SDPA"):
        bench.checked({"SDPA": sdpa}, yardstick["out"], exact["out"])


def test_a_rival_that_cannot_run_is_reported(benchmarks):
    import bench_coattention as bench

    def rival():
        raise NotImplementedError("no backward here\nand a long story")

    rival.packed = rival
    nothing = torch.zeros(0)
    reason = bench.checked({"Flex": rival}, nothing, nothing)["Flex"]
    assert reason == "does not run: NotImplementedError: no backward here"


def test_hops_of_all_rivals_have_one_form(benchmarks):
    import bench_shortest_paths as bench

    propane_and_salt = [torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]).numpy(), 4]
    by_scipy = bench.packed(bench.by_scipy([bench.sparse(*propane_and_salt)]))
    assert by_scipy.tolist() == [0, 1, 2, 255, 1, 0, 1, 255, 2, 1, 0, 255, 255, 255, 255, 0]
    found = bench.by_networkx([bench.as_networkx(*propane_and_salt)])
    assert torch.equal(bench.from_networkx(found), by_scipy)


def test_rows_are_added_under_the_kind_of_machine(benchmarks, tmp_path, monkeypatch):
    import platform

    import results

    monkeypatch.setattr(results, "HERE", tmp_path)
    for figure in (1.5, 2.5):
        path = results.append("op", [{"workload": "w", "rival": "ours", "median_ms": figure}])
    assert path.parent.name == results.machine()
    assert platform.node() not in results.machine()
    rows = list(csv.DictReader(path.open()))
    assert [row["median_ms"] for row in rows] == ["1.5", "2.5"]
    assert f"torch={torch.__version__}" in rows[0]["versions"]
