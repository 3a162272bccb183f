"""The benchmarks load, refuse a wrong answer and record what they measured; nothing is timed."""

import csv
import json
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


def test_the_answers_of_uni_mol_are_checked(benchmarks, monkeypatch):
    import bench_model as bench

    monkeypatch.setattr(bench, "RELEASE", bench.UniMolConfig(num_layers=2))
    _, inputs = bench.unimol_batch(2)
    representation, pair = bench.unimol()(*inputs)
    bench.check_unimol((representation, pair), inputs)
    with pytest.raises(AssertionError, match="error"):
        bench.check_unimol((representation + 1e-4, pair), inputs)


def test_gin_is_torch_geometrics(benchmarks):
    pytest.importorskip("torch_geometric")
    import bench_model as bench

    _, graph = bench.graph_batch(3)
    levels = bench.gin()(*graph)
    bench.check_gin(levels, graph)
    with pytest.raises(AssertionError, match="error"):
        bench.check_gin([*levels[:-1], levels[-1] + 1e-3 * levels[-1].abs().max()], graph)


def test_hops_of_all_rivals_have_one_form(benchmarks):
    import bench_shortest_paths as bench

    propane_and_salt = [torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]).numpy(), 4]
    by_scipy = bench.packed(bench.by_scipy([bench.sparse(*propane_and_salt)]))
    assert by_scipy.tolist() == [0, 1, 2, 255, 1, 0, 1, 255, 2, 1, 0, 255, 255, 255, 255, 0]
    found = bench.by_networkx([bench.as_networkx(*propane_and_salt)])
    assert torch.equal(bench.from_networkx(found), by_scipy)


def test_rows_are_added_under_the_kind_of_machine(benchmarks, tmp_path, monkeypatch):
    import platform

    import measurements

    monkeypatch.setattr(measurements, "HERE", tmp_path)
    for figure in (1.5, 2.5):
        path = measurements.append("op", [{"workload": "w", "rival": "ours", "median_ms": figure}])
    assert path.parent.name == measurements.machine()
    assert platform.node() not in measurements.machine()
    rows = list(csv.DictReader(path.open()))
    assert [row["median_ms"] for row in rows] == ["1.5", "2.5"]
    assert f"torch={torch.__version__}" in rows[0]["versions"]


@pytest.mark.slow
class TestGPUBenchmark:
    """Everything but the GPU: workloads, rivals, their check and the report, on a few molecules."""

    @pytest.fixture
    def gpu(self, benchmarks):
        import gpu

        return gpu

    def test_without_a_gpu_it_says_so(self, gpu, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert gpu.main([]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: no NVIDIA GPU answers")
        assert err.count("\n") == 1

    def test_stored_molecules_are_real(self, gpu):
        batch = gpu.molecules.stored(4096)
        sizes = batch.ptr.diff()
        assert sizes.max() <= 100
        assert 25 < sizes.double().mean() < 35
        assert abs(gpu.molecules.stored(256).ptr.diff().double().mean() - 29.6) < 2
        bonds = batch.coordinates[batch.edges[0]] - batch.coordinates[batch.edges[1]]
        lengths = bonds.norm(dim=1)
        assert lengths.min() > 0.8
        assert lengths.quantile(0.99) < 2.3
        with pytest.raises(ValueError, match="9999999 molecules asked for"):
            gpu.molecules.stored(9999999)

    def test_hops(self, gpu):
        pytest.importorskip("scipy")
        rows = gpu.hops_rows(9, "cpu", rounds=2)
        assert [row["rival"] for row in rows] == ["ours", "SciPy, on the CPU"]
        assert all(float(row["median_us"]) > 0 for row in rows)
        rows[0]["of_floor"], rows[1]["ratio"] = "0.25", "600"
        floor, scipy = gpu.hop_verdicts(rows)
        assert "MISSED: 4 x the floor (goal 3 x)" in floor
        assert "met: 600 x (goal 500 x) SciPy" in scipy

    def test_attention(self, gpu, monkeypatch, tmp_path):
        import measurements

        monkeypatch.setattr(measurements, "HERE", tmp_path)
        rivals = ("eager", "SDPA", "FlexAttention")
        goals = {"eager": 50, "torch.compile": 10}
        workload = gpu.Workload("3 molecules", 2, 8, 3, rivals=rivals, goals=goals)
        limits = gpu.Limits(4e12, 3.0, 2.0, 3e13)
        parts = list(
            gpu.attention_rows(
                workload, torch.float32, "cpu", limits, compiler=lambda f: f, rounds=1
            )
        )
        rows = [row for part in parts for row in part]
        assert [row["rival"] for row in rows[:2]] == ["ours", "ours"]
        forward = {row["rival"]: row for row in rows if "backward" not in row["workload"]}
        assert list(forward) == ["ours", "eager", "SDPA, bias ready-built", *gpu.FLEX]
        assert all(row["median_us"] for row in forward.values())
        assert float(forward["ours"]["of_floor"]) > 0
        path = measurements.append_gpu("NVIDIA Nothing", "coattention", rows)
        assert path == tmp_path / "results" / "nvidia-nothing" / "coattention.csv"
        assert len(path.read_text().splitlines()) == len(rows) + 1
        assert any(
            "not measured (goal 10 x)" in line for line in gpu.attention_verdicts(workload, rows)
        )
        gpu.show(rows)
        pytest.importorskip("matplotlib")
        assert str(tmp_path) in gpu.draw(rows, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 1000

    def test_a_rival_that_fails_takes_no_other_along(self, gpu, monkeypatch):
        flexible, count = gpu.flexible, iter(range(99))

        def failing(*arguments):
            if next(count) == 0:
                raise MemoryError("not for this one")
            forward, tensors = flexible(*arguments)
            calls = iter(range(99))

            def twice():
                if next(calls) == 2:
                    raise RuntimeError("an illegal memory access\nand a story")
                return forward()

            return twice, tensors

        monkeypatch.setattr(gpu, "flexible", failing)
        workload = gpu.Workload("2 molecules", 2, 8, 2, rivals=("FlexAttention", "SDPA"))
        parts = gpu.attention_rows(
            workload, torch.float32, "cpu", compiler=lambda f: f, rounds=1, deadline=float("inf")
        )
        both, forward, *others = [row for part in parts for row in part]
        assert both["rival"] == forward["rival"] == "ours"
        notes = [(row["rival"], row["note"], "ratio" in row) for row in others]
        assert notes[0] == ("FlexAttention", "does not run: MemoryError: not for this one", False)
        assert notes[1] == ("SDPA, bias ready-built", "", True)
        broken = "does not run: RuntimeError: an illegal memory access"
        assert notes[2:4] == [(name, broken, False) for name in gpu.FLEX]
        assert notes[4] == ("SDPA, bias ready-built", "", True)

    def test_a_part_that_ends_early_keeps_its_rows(self, gpu, monkeypatch, tmp_path, capsys):
        import measurements

        monkeypatch.setattr(measurements, "HERE", tmp_path)
        row = {"workload": "w, forward", "rival": "ours", "median_us": "2", "note": "", "rounds": 1}
        line = f"print({gpu.MARK!r} + {json.dumps([row])!r}, flush=True)"
        ends = {
            gpu.PATHS: "raise SystemExit(3)",
            gpu.WORKLOADS[0].name: f"{line}; import os; os.abort()",
            gpu.WORKLOADS[1].name: f"{line}; import time; time.sleep(60)",
        }

        def command(part, seconds):
            return [sys.executable, "-c", ends.get(part, f"print('noise'); {line}")]

        monkeypatch.setattr(gpu, "part_command", command)
        assert gpu.measure_all("NVIDIA Nothing", budget=5, grace=1) == 1
        out = capsys.readouterr().out
        assert "shortest_paths: ended early, with exit code 3" in out
        assert "H=32, d=24: ended early, with exit code -6" in out
        assert "H=8, d=64: ended early, with exit code -9" in out
        assert "noise" in out
        path = measurements.gpu_path("NVIDIA Nothing", "coattention")
        assert len(path.read_text().splitlines()) == 1 + 4

    def test_sdpa_copies_no_bias(self, gpu):
        bias = torch.randn(2, 3, 5, 5, dtype=torch.bfloat16)
        laid = gpu.aligned(bias)
        assert torch.equal(laid, bias)
        assert all(stride % 16 == 0 for stride in laid.stride()[:-1])

    def test_the_legend_hides_no_bar(self, gpu, monkeypatch, tmp_path):
        pyplot = pytest.importorskip("matplotlib.pyplot")
        monkeypatch.setattr(pyplot, "close", lambda figure: None)
        rivals = ("ours", "eager", "torch.compile", "SDPA, bias ready-built", *gpu.FLEX)
        rows = [
            {"workload": f"{workload.name}, forward", "rival": rival, "median_us": f"{10**place}"}
            for workload in gpu.WORKLOADS
            for place, rival in enumerate(rivals)
        ]
        gpu.draw(rows, tmp_path / "plot.png")
        figure = pyplot.gcf()
        (legend,), (axes,) = figure.legends, figure.axes
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        monkeypatch.undo()
        pyplot.close(figure)

    def test_a_wrong_answer_is_not_timed(self, gpu):
        def wrong():
            return torch.ones(2)

        wrong.packed = wrong
        right = torch.zeros(2)
        assert "not timed, wrong answer" in gpu.checked({"wrong": wrong}, right, right)["wrong"]


def test_a_step_of_training_is_checked(benchmarks):
    import bench_training as bench

    _, features = bench.featurized(2)
    on, off = bench.checked(features)
    assert (on.backend, off.backend) == (None, "reference")
    assert on.step() < 10
    with pytest.MonkeyPatch.context() as patch:
        step = bench.Training.step
        patch.setattr(bench.Training, "step", lambda self: step(self) + (self.backend is None))
        with pytest.raises(AssertionError):
            bench.checked(features)
