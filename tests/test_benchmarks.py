"""The benchmarks load, refuse a wrong answer and record what they measured; nothing is timed."""

import argparse
import csv
import dataclasses
import json
import re
import runpy
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


def test_every_pass_of_the_hosts_time_runs(benchmarks, monkeypatch):
    import host_time

    calls = []
    monkeypatch.setattr(host_time.ck, "coattention", lambda q, *_, **__: calls.append(q) or 2 * q)
    for name in host_time.CASES:
        calls.clear()
        for call in host_time.passes(name, "cpu").values():
            median, least = host_time.microseconds(call, 3, "cpu")
            assert 0 < least <= median
        assert len(calls) == 3 * (host_time.WARM + 3)


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


def test_the_pictures_of_the_docs_are_those_of_the_rows(benchmarks):
    import plots

    def words(svg):
        return re.findall(r">([^<>]+)</text>", svg)

    drawn = plots.pictures()
    assert {path.stem for path in plots.FIGURES.glob("*.svg")} == set(drawn)
    for name, svg in drawn.items():
        there = (plots.FIGURES / f"{name}.svg").read_text(encoding="utf-8")
        assert words(svg) == words(there), "run: python benchmarks/plots.py"
        assert any("×" in word for word in words(svg))


def test_a_run_ends_beside_the_committed_rows(benchmarks, tmp_path):
    import measurements

    committed = runpy.run_path(str(BENCHMARKS / "conftest.py"))["committed"]

    for machine, ratio in (("another-machine", "7"), (measurements.machine(), "8")):
        for op in ("attention", "hops") if ratio == "7" else ("attention",):
            (tmp_path / machine).mkdir(exist_ok=True)
            text = f"workload,rival,median_ms,ratio\nw,RDKit,1,{ratio}\n"
            (tmp_path / machine / f"{op}.csv").write_text(text)
    found = committed(tmp_path)
    assert found["attention"][0] == measurements.machine()
    assert found["hops"] == (
        "another-machine",
        [
            dict(
                zip(
                    ("workload", "rival", "median_ms", "ratio"),
                    ("w", "RDKit", "1", "7"),
                    strict=True,
                )
            )
        ],
    )


def test_rows_from_a_gpu_are_kept_once(benchmarks, tmp_path):
    import measurements

    rows = [{"workload": "w, forward", "rival": "ours", "median_us": "2.5", "right": "yes"}]
    run, results = tmp_path / "run", tmp_path / "results"
    measurements.append_gpu(run, "coattention", "NVIDIA Nothing", rows)
    for _ in range(2):
        (path,) = measurements.keep(run, results)
    assert path == results / "nvidia-nothing" / "coattention.csv"
    measurements.append_gpu(run, "coattention", "NVIDIA Nothing", [rows[0] | {"median_us": "3"}])
    measurements.keep(run, results)
    kept = measurements.rows_of(path.parent, "coattention")
    assert [row["median_us"] for row in kept] == ["2.5", "3"]
    assert kept[0]["sources"] == measurements.sources()
    assert measurements.rows_of_these_sources(run, "coattention", "NVIDIA Other") == []


def test_without_git_rows_name_the_code_by_what_it_says(benchmarks, monkeypatch):
    import measurements

    monkeypatch.setenv("PATH", "")
    measurements.commit.cache_clear()
    assert measurements.commit() == "unknown"
    assert len(measurements.sources()) == 12
    measurements.commit.cache_clear()


@pytest.mark.slow
class TestGPUBenchmark:
    """Everything but the GPU: workloads, rivals, their check and the report, on a few molecules."""

    @pytest.fixture
    def gpu(self, benchmarks):
        import gpu

        return gpu

    @pytest.fixture
    def at(self, gpu):
        """On the CPU, once."""
        kind = {"device": "cpu", "backend": "cpu", "dtype": torch.float32, "rounds": 1}
        return gpu.Setting(**kind, gpu=gpu.Limits(4e12, 3.0, 2.0, 132, 2e9), compiler=lambda f: f)

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
        assert rows[0]["right"] == "yes"
        assert all(float(row["median_us"]) > 0 for row in rows)
        rows[0]["of_floor"], rows[1]["ratio"] = "0.25", "600"
        floor, scipy = gpu.hop_verdicts(rows)
        assert "MISSED: 4 x the floor (goal 3 x)" in floor
        assert "met: 600 x as called (goal 500 x) SciPy" in scipy

    def test_attention(self, gpu, at, tmp_path):
        import measurements

        rivals = ("eager", "SDPA", "FlexAttention")
        goals = {"eager": 50, "torch.compile": 10}
        workload = gpu.Workload("3 molecules", 2, 8, 3, rivals=rivals, goals=goals)
        parts = [*gpu.our_rows(workload, at), *gpu.rival_rows(workload, at, frozenset())]
        rows = [row for table, part in parts for row in part if table == "coattention"]
        assert [row["rival"] for row in rows[:2]] == ["ours", "ours"]
        assert [row["right"] for row in rows[:2]] == ["yes", "yes"]
        forward = {row["rival"]: row for row in rows if row["workload"].endswith("forward")}
        assert list(forward) == ["ours", "eager", "SDPA, bias ready-built", *gpu.gpu_rivals.FLEX]
        assert all(row["median_us"] and row["host_us"] for row in forward.values())
        assert float(forward["ours"]["of_floor"]) > 0
        path = measurements.append_gpu(tmp_path, "coattention", "NVIDIA Nothing", rows)
        assert len(path.read_text().splitlines()) == len(rows) + 1
        verdicts = gpu.attention_verdicts(workload, rows)
        assert any("not measured (goal 10 x)" in line for line in verdicts)
        assert sum("of the host (goal" in line for line in verdicts) == 2
        gpu.show("coattention", rows)
        done = gpu.finished(tmp_path, "NVIDIA Nothing")
        assert list(gpu.rival_rows(workload, at, done)) == []

    def test_a_wrong_answer_of_ours_is_timed_and_said(self, gpu, at, monkeypatch):
        check = gpu.assert_all_accurate
        swapped = lambda ours, *others: check(ours | {"q": ours["k"]}, *others)  # noqa: E731
        monkeypatch.setattr(gpu, "assert_all_accurate", swapped)
        workload = gpu.Workload("2 molecules", 2, 8, 2)
        (_, forward), (_, both), _host, _kernels = gpu.our_rows(workload, at)
        for row in forward + both:
            assert (row["right"], row["note"][:15]) == ("no", "wrong: q: error")
            assert float(row["median_us"]) > 0

    def test_both_ratios_must_reach_a_goal(self, gpu):
        row = {"rival": "FlexAttention", "ratio": "4", "graph_ratio": "2.5"}
        assert gpu.verdict([row], 3) == "MISSED: 4 x as called, 2.5 x in a graph (goal 3 x)"
        assert gpu.verdict([row | {"graph_ratio": "3"}], 3).startswith("met: ")
        assert gpu.verdict([row | {"graph_ratio": ""}], 3) == "met: 4 x as called (goal 3 x)"
        assert gpu.verdict([], 3) == "not measured (goal 3 x)"

    def test_a_rival_that_fails_takes_no_other_along(self, gpu, at, monkeypatch):
        import gpu_rivals

        flexible, count = gpu_rivals.flexible, iter(range(99))

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

        monkeypatch.setattr(gpu_rivals, "flexible", failing)
        workload = gpu.Workload("2 molecules", 2, 8, 2, rivals=("FlexAttention", "SDPA"))
        parts = gpu.rival_rows(workload, at, frozenset())
        others = [row for _, part in parts for row in part]
        notes = [(row["rival"], row["note"], "ratio" in row) for row in others]
        assert notes[0] == ("FlexAttention", "does not run: MemoryError: not for this one", False)
        assert notes[1] == ("SDPA, bias ready-built", "", True)
        broken = "does not run: RuntimeError: an illegal memory access"
        assert notes[2:4] == [(name, broken, False) for name in gpu_rivals.FLEX]
        assert notes[4] == ("SDPA, bias ready-built", "", True)

    def test_rivals_that_come_too_late_are_named_and_run_next_time(self, gpu, at, tmp_path):
        import measurements

        workload = gpu.Workload("2 molecules", 2, 8, 2, rivals=("SDPA",))
        late = dataclasses.replace(at, deadline=0.0)
        rows = [row for _, part in gpu.rival_rows(workload, late, frozenset()) for row in part]
        assert [row["note"] for row in rows] == [gpu.NOT_RUN] * 2
        measurements.append_gpu(tmp_path, "coattention", "NVIDIA Nothing", rows)
        assert gpu.finished(tmp_path, "NVIDIA Nothing") == frozenset()

    def test_a_part_that_ends_early_keeps_its_rows(self, gpu, monkeypatch, tmp_path, capsys):
        import measurements

        options = argparse.Namespace(out=tmp_path, seconds=45, small=False)
        workload = gpu.WORKLOADS[0]
        row = {"workload": workload.timed(False), "rival": "ours", "median_us": "2", "note": ""}
        row |= {"right": "yes", "rounds": 1}
        line = f"print({measurements.MARK + json.dumps(['coattention', [row]])!r}, flush=True)"

        def part(name, text, seconds=20.0):
            return gpu.Piece(name, (sys.executable, "-c", text), seconds=seconds)

        alone = [
            part("dies", f"{line}; import os; os.abort()"),
            part("hangs", f"{line}; import time; time.sleep(60)", 3.0),
            part("ends", f"print('noise'); {line}"),
        ]
        before = [part("compile of it", "raise SystemExit(3)")]
        assert gpu.measure_all("NVIDIA Nothing", options, before, alone) == 1
        out = capsys.readouterr().out
        assert "failed: dies; hangs\n" in out
        assert "stopped after 3 s" in out
        assert "noise" in (tmp_path / "bench.log").read_text()
        assert len(measurements.rows_of(tmp_path, "coattention")) == 3

    def test_what_has_rows_is_not_measured_again(self, gpu, tmp_path):
        import measurements

        options = argparse.Namespace(out=tmp_path, seconds=60, small=False)
        before, alone = gpu.parts(options, "NVIDIA Nothing")
        names = [piece.name for piece in before + alone]
        assert [name for name in names if name.startswith("bucket")] == names[: 2 * 4]
        assert sum(name.startswith("ours") for name in names) == len(gpu.WORKLOADS)
        workload = gpu.WORKLOADS[2]
        rows = [
            {"workload": workload.timed(backward), "rival": rival, "note": ""}
            for backward in (False, True)
            for rival in ("ours", "SDPA, bias ready-built", "FlexAttention")
        ]
        measurements.append_gpu(tmp_path, "coattention", "NVIDIA Nothing", rows)
        measurements.append_gpu(tmp_path, "shortest_paths", "NVIDIA Nothing", [{"rival": "ours"}])
        left = [piece.name for pieces in gpu.parts(options, "NVIDIA Nothing") for piece in pieces]
        gone = [f"{kind} of {workload.name}" for kind in ("ours", "rivals", "compile")]
        assert set(names) - set(left) == {*gone, "shortest_paths"}

    def test_kernels_are_summed_by_name(self, benchmarks):
        import types

        import gpu_timing

        def event(name, us, device=torch.autograd.DeviceType.CUDA):
            span = types.SimpleNamespace(elapsed_us=lambda: us)
            return types.SimpleNamespace(name=name, device_type=device, time_range=span)

        events = [event("attend", 8), event("collect", 3), event("attend", 12)]
        events.append(event("aten::empty", 99, torch.autograd.DeviceType.CPU))
        assert gpu_timing.sum_up(events, 2) == {"attend": (1.0, 10.0), "collect": (0.5, 1.5)}

    def test_sdpa_copies_no_bias(self, benchmarks):
        import gpu_rivals

        bias = torch.randn(2, 3, 5, 5, dtype=torch.bfloat16)
        laid = gpu_rivals.aligned(bias)
        assert torch.equal(laid, bias)
        assert all(stride % 16 == 0 for stride in laid.stride()[:-1])

    def test_the_legend_hides_no_bar(self, gpu, monkeypatch, tmp_path):
        import measurements

        pyplot = pytest.importorskip("matplotlib.pyplot")
        monkeypatch.setattr(pyplot, "close", lambda figure: None)
        names = ("ours", "eager", "torch.compile", "SDPA, bias ready-built", *gpu.gpu_rivals.FLEX)
        rows = [
            {"workload": f"{workload.name}, forward", "rival": rival, "median_us": f"{10**place}"}
            for workload in gpu.WORKLOADS
            for place, rival in enumerate(names)
        ]
        path = measurements.draw(rows, tmp_path / "plot.png")
        assert path.stat().st_size > 1000
        figure = pyplot.gcf()
        (legend,), (axes,) = figure.legends, figure.axes
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        monkeypatch.undo()
        pyplot.close(figure)

    def test_a_wrong_answer_is_not_timed(self, benchmarks):
        import gpu_rivals

        def wrong():
            return torch.ones(2)

        wrong.packed = wrong
        right = torch.zeros(2)
        reason = gpu_rivals.checked({"wrong": wrong}, right, right)["wrong"]
        assert "not timed, wrong answer" in reason


SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E R2, [R4] ;
        /*0020*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0030*/                   FADD R2, R2, R3 ;
        /*0040*/               @P1 BRA 0x30 ;
        /*0050*/              @!P0 BRA 0x10 ;
        /*0060*/                   EXIT ;
        /*0070*/                   BRA 0x70;
        /*0080*/                   NOP;
"""


class TestLayerModel:
    @pytest.fixture
    def model(self, benchmarks):
        import layer_model

        return layer_model

    def figures(self, model, **changes):
        code = model.Code(model.Block(100, 0, 0), (model.Block(50, 4, 2),))
        numbers = {"programs": 132 * 40, "warps": 2, "registers": 128, "shared": 8192, "bytes": 0}
        numbers |= {"above": 0, "tile": 0, "tiles": 0}
        kind = {"backward": False, "kernel": "some", "code": code}
        return model.Figures(**kind | numbers | changes)

    def test_reads_machine_code(self, model):
        code = model.code_of(SASS)
        assert code.outside == (3, 0, 0)  # the jump of the last line to itself is no loop
        assert code.loops == ((3, 1, 1), (2, 0, 0))

    def test_trips(self, model):
        shape = model.Shape((20, 33, 65), heads=4, width=24)  # 1, 2 and 3 tiles
        loop = self.figures(model, kernel="attend", tile=32)
        assert model.work_of(loop, shape) == (1, (pytest.approx(14 / 6),))
        each = model.executed(loop, model.work_of(loop, shape))
        assert each == pytest.approx((100 + 50 * 14 / 6, 28 / 3, 14 / 3))
        larger = dataclasses.replace(loop, above=32)
        assert model.work_of(larger, shape) == (pytest.approx(5 / 6), (pytest.approx(13 / 5),))
        single = dataclasses.replace(loop, kernel="differentiate", tiles=1)
        assert model.work_of(single, shape) == (pytest.approx(1 / 3), (0, 1, 1))
        double = dataclasses.replace(single, tiles=2, above=32)
        assert model.work_of(double, shape) == (pytest.approx(1 / 3), (0, 2, 4))
        assert model.work_of(dataclasses.replace(double, above=64), shape).share == 0
        unknown = self.figures(model)
        assert model.executed(unknown, model.work_of(unknown, shape)) == (150, 4, 2)

    def test_how_many_programs_fit(self, model):
        machine = model.Machine()
        assert model.resident(self.figures(model), machine) == 8  # 65,536 / (128 · 64)
        assert model.resident(self.figures(model, registers=129), machine) == 7
        assert model.resident(self.figures(model, registers=255, warps=8), machine) == 1
        assert model.resident(self.figures(model, registers=16), machine) == 25  # shared memory
        assert model.resident(self.figures(model, registers=16, shared=0), machine) == 32

    def test_times_by_hand(self, model, monkeypatch):
        """5,280 programs of 2 warps, each of 150 instructions and 2 loads; 4 warps a scheduler."""
        monkeypatch.setattr(model, "CYCLES", 5)
        monkeypatch.setattr(model, "WAIT", 75)
        machine, shape = model.Machine(clock=1e9, bandwidth=1e12), model.Shape((9,), 1, 8)
        time = model.time_of(self.figures(model, bytes=10**7), shape, machine)
        assert time.bytes_us == pytest.approx(10)
        assert time.issue_us == pytest.approx(5280 * 2 * 150 * 1e-3 / (132 * 4))
        assert time.latency_us == pytest.approx(1.5 * time.issue_us)  # 900 cycles a warp, not 600
        assert (time.bound, time.us) == ("bytes", pytest.approx(11))
        full = model.time_of(self.figures(model, registers=64), shape, machine)
        assert full.latency_us == pytest.approx(full.issue_us)
        few = model.time_of(self.figures(model, programs=3), shape, machine)  # one program long
        assert few.latency_us == pytest.approx(0.9)

    def test_stored_figures_are_of_every_workload(self, model):
        import gpu

        for workload in gpu.WORKLOADS:
            launches = model.stored_figures(workload.name)
            times = model.layer(launches, gpu.shape_of(workload))
            assert all(0 <= time.least_us <= time.us for time in times)
            assert {"attend", model.PYTORCH} <= model.by_kernel(times).keys()
            assert {figures.backward for figures in launches} == {False, True}

    def test_floors_by_hand(self, model):
        """Two molecules of 3 and 4 atoms, two heads of 8: 25 pairs, 7 atoms."""
        machine = model.Machine(clock=1e9, bandwidth=1e12)
        bytes_us, issue_us = model.floors_us(model.Shape((3, 4), 2, 8), False, machine)
        assert bytes_us == pytest.approx(1e-6 * (4 * 7 * 2 * 8 * 2 + 25 + 12 * 7))
        assert issue_us == pytest.approx(1e-3 * 13 * 25 * 2 / (132 * 4 * 32))
        both = model.floors_us(model.Shape((3, 4), 2, 8), True, machine)
        assert both[0] == pytest.approx(1e-6 * (12 * 7 * 2 * 8 * 2 + 2 * (25 + 84) + 4 * 7 * 2))
        assert both[1] == pytest.approx(issue_us * 37 / 13)

    def test_the_tables_of_the_docs_are_those_of_the_figures(self, model):
        import gpu

        page = (BENCHMARKS.parent / "docs" / "performance.md").read_text()
        first = gpu.WORKLOADS[0]
        launches, shape = model.stored_figures(first.name), gpu.shape_of(first)
        assert model.table(model.layer(launches, shape), launches, shape) in page
        for workload in gpu.WORKLOADS:
            assert model.summary(workload.name, gpu.shape_of(workload)) in page


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
