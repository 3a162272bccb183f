"""The Triton attention at sizes for a GPU; in Triton's interpreter the same on a few atoms."""

from pathlib import Path

import pytest
import torch

from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.testing import (
    Case,
    assert_all_accurate,
    attend,
    attend_eagerly,
    make_inputs,
    with_gradients,
)

pytestmark = pytest.mark.skipif(
    not (_triton.INTERPRETED or torch.cuda.is_available()),
    reason="runs on a GPU, or in `make test-interpreter`",
)
DEVICE = "cpu" if _triton.INTERPRETED else "cuda"
MOLECULES, HEADS, REPEATS = (1, 1, 1) if _triton.INTERPRETED else (512, 32, 20)
DTYPE = torch.float16 if _triton.INTERPRETED else torch.bfloat16


def ours(x):
    return attend(x, "packed", backend="triton")


def sizes(low, high):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(low, high + 1, (MOLECULES,), generator=generator).tolist())


@pytest.mark.parametrize("atoms", [(1, 88), (20, 32)], ids=["loop", "one tile"])
def test_the_same_bits_under_load(atoms):
    """More programs than a GPU runs at a time, which end in another order every time."""
    atoms = (3, 3) if _triton.INTERPRETED else atoms
    case = Case("stress", sizes(*atoms), HEADS, 24, 64, gaussians=16, head="mlp", sink=True)
    inputs = make_inputs(case, DTYPE, DEVICE)
    inputs.relations.prepare()
    first = with_gradients(ours, inputs)
    assert all(x.isfinite().all() for x in first.values())
    for _ in range(REPEATS):
        again = with_gradients(ours, inputs)
        different = [name for name in first if not torch.equal(first[name], again[name])]
        assert not different


@pytest.fixture
def doubted_too(request, monkeypatch):
    """Take what the rule of `trust` doubts as well; being wrong there is no surprise."""
    from collamo_kernels.coattention.triton import trust

    device = torch.device("cuda", torch.cuda.current_device())
    if trust.refused(device, 32, DTYPE):
        request.applymarker(pytest.mark.xfail(reason="doubted on this GPU with this Triton"))
    monkeypatch.setattr(trust, "DOUBTED", ())
    trust.refused.cache_clear()
    yield
    trust.refused.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("atoms", "bucket"), [(48, 64), (100, 128)])
def test_tiles_of_64_rows(atoms, bucket, dtype, doubted_too):
    """All molecules alike, so that they are taken (`test_triton_trust.py` holds that): on Hopper
    their products are wgmma."""
    from collamo_kernels.coattention.triton import configuration

    assert bucket in configuration.buckets(32, dtype)
    inputs = make_inputs(Case("alike", (atoms,) * 3, 2, 24, bias=True, sink=True), dtype, DEVICE)
    exact = with_gradients(lambda x: attend(x, backend="reference"), inputs.double())
    yardstick = with_gradients(attend_eagerly, inputs)
    for layout in ("packed", "padded"):
        actual = with_gradients(lambda x, y=layout: attend(x, y, backend="triton"), inputs)
        assert_all_accurate(actual, yardstick, exact)


@pytest.mark.skipif(not _triton.INTERPRETED, reason="a GPU runs benchmarks/gpu.py itself")
def test_the_benchmark_finds_ours_right(monkeypatch):
    """Its rows of ours, from real numbers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import gpu
    import gpu_timing

    monkeypatch.setattr(gpu_timing, "WARMUP", 0)
    monkeypatch.setattr(gpu_timing, "PROFILED", 1)
    workload = gpu.Workload("one molecule", 1, 8, count=1, atoms=5)
    at = gpu.Setting(device="cpu", dtype=DTYPE, rounds=1)
    (_, forward), (_, both), (_, host), (table, kernels) = gpu.our_rows(workload, at)
    assert [row["right"] for row in forward + both] == ["yes", "yes"]
    assert all(float(row["median_us"]) > 0 for row in forward + both)
    assert all(float(row["host_us"]) > 0 for row in forward + both + host)
    assert table == "kernels"
    assert kernels == []  # the interpreter launches none, and the model knows other workloads
