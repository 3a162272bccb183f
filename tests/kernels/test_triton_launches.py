"""What the Triton backend launches, and where: on a driver that launches nothing."""

import contextlib
import dataclasses
import os
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import collamo_kernels as ck
from collamo_kernels.coattention.call import CoattentionCall
from collamo_kernels.coattention.shared import why_in_tile
from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.pairwise_distances import _triton as on_distances
from collamo_kernels.pairwise_distances.call import DistancesCall
from collamo_kernels.testing import Case, attend, make_inputs, required_backends, with_gradients

EVERYTHING = Case(
    "everything", (6, 4), width=8, bias=True, sink=True, conformer_missing=True, types="atom"
)


class Launch(NamedTuple):
    """A kernel, the GPU that was the current one, and what it was launched with, by name."""

    kernel: str
    gpu: int
    arguments: dict[str, Any]


class Driver:
    """Which GPU is the current one, and what was launched."""

    def __init__(self):
        self.current, self.launches = 0, []

    @contextlib.contextmanager
    def device(self, device):
        """Stand in for `torch.cuda.device`."""
        before, self.current = self.current, torch.device(device).index
        try:
            yield
        finally:
            self.current = before

    def launcher(self):
        """Return what stands in for `JITFunction.run`."""

        def run(kernel, *arguments, **options):
            named = dict(zip(kernel.arg_names, arguments, strict=False)) | options
            self.launches.append(Launch(kernel.fn.__name__, self.current, named))

        return run


@pytest.fixture
def driver(monkeypatch):
    """A driver that takes CPU tensors for a GPU's, and launches nothing."""
    if "triton" not in required_backends():
        pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter has launches of its own")
    from triton import JITFunction

    from collamo_kernels import triton_launch as triton_launch  # it keeps the `run` that it finds
    from collamo_kernels.coattention.triton import trust

    trust.refused.cache_clear()
    monkeypatch.setenv("COLLAMO_KERNELS_CACHE", "/nowhere")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    fake = Driver()
    monkeypatch.setattr(JITFunction, "run", fake.launcher())
    monkeypatch.setattr(torch.cuda, "device", fake.device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for module in (_triton, on_distances):
        monkeypatch.setattr(module, "INTERPRETED", True)
    return fake


class OnSecondGPU(torch.Tensor):
    """A tensor of the CPU that says it is on the second GPU."""

    device = torch.device("cuda", 1)


LAUNCHING = {
    *("coattention_triton_forward", "coattention_triton_backward"),
    *("pair_bias", "pair_bias_backward", "radial_table", "radial_table_backward"),
    *("radial_argument", "radial_argument_backward"),
    *("pairwise_distances_triton", "pairwise_distances_triton_backward"),
    *("pair_bias_attention_triton", "pair_bias_attention_triton_backward"),
    "pair_bias_attention_triton_",
}


def on_second_gpu(arguments):
    """The same arguments of an operator, whose tensors say that they are there."""
    return tuple(
        x.detach().as_subclass(OnSecondGPU) if isinstance(x, torch.Tensor) else x for x in arguments
    )


class Calls(TorchDispatchMode):
    """The first call of every operator that launches kernels."""

    def __init__(self):
        super().__init__()
        self.arguments = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "collamo_kernels" and function._opname in LAUNCHING:
            self.arguments.setdefault(function, args)
        return function(*args, **(kwargs or {}))


def operator_calls(inputs):
    """Arguments of every operator that attention, Φ built once, distances and pair bias call."""
    relations, phi = inputs.relations, {"hop_bias": inputs.hop_bias, "radial": inputs.radial}
    with Calls() as calls:
        with_gradients(lambda x: attend(x, "packed", backend="triton", dropout_p=0.1), inputs)
        dense = ck.share_bias(relations, layers=4, dtype=torch.float16, **phi)["bias"]
        dense.backward(torch.ones_like(dense))
        padded = relations.padded()
        x = padded.coordinates.detach().requires_grad_()
        ck.pairwise_distances(x, padded.valid, backend="triton").sum().backward()
        qkv, packed = (inputs.q, inputs.k, inputs.v), ck.Relations(cu_seqlens=relations.cu_seqlens)
        pairs = torch.zeros(inputs.case.heads, packed.num_pairs, requires_grad=True)
        out, logits = ck.pair_bias_attention(*qkv, pairs, packed, backend="triton")
        torch.autograd.grad([out, logits], pairs, [out, logits])
        qkv, pairs = (x.detach() for x in qkv), pairs.detach()
        ck.pair_bias_attention(*qkv, pairs, packed, in_place=True, backend="triton")
    return calls.arguments


def test_kernels_run_on_the_gpu_of_their_tensors(driver):
    """Whatever GPU is the current one: every operator that launches something."""
    inputs = make_inputs(dataclasses.replace(EVERYTHING, head="mlp"))
    calls = operator_calls(inputs)
    assert {operator._opname for operator in calls} == LAUNCHING
    for operator, arguments in calls.items():
        driver.launches.clear()
        with torch.no_grad():
            operator(*on_second_gpu(arguments))
        assert {launch.gpu for launch in driver.launches} == {1}, operator
    assert driver.current == 0


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((7, 0), torch.float16, "compute capability 7.0 of cuda:0 < 7.5, the oldest Triton"),
        ((7, 5), torch.float16, None),
        ((7, 5), torch.bfloat16, "compute capability 7.5 of cuda:0 has no bfloat16"),
        ((8, 0), torch.bfloat16, None),
        ("ROCm", torch.float32, "this torch is built for ROCm"),
    ],
    ids=str,
)
def test_gpus_without_kernels(capability, dtype, reason, driver, monkeypatch):
    """Attention, distances and Φ built once say so before a compiler fails."""
    if capability == "ROCm":
        monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(OnSecondGPU, "device", torch.device("cuda", 0))
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    inputs = make_inputs(Case("plain", (2,)), dtype)
    q, x = (y.detach().as_subclass(OnSecondGPU) for y in (inputs.q, inputs.relations.coordinates))
    why = _triton.unsupported(CoattentionCall(q, q, q, inputs.relations))
    assert (why or "").startswith(reason or ""), why
    assert (why is None) == (reason is None)
    half = on_distances.unsupported(DistancesCall(x.to(dtype)[None], None))
    assert half == why
    monkeypatch.setattr(ck.Relations, "device", torch.device("cuda", 0))
    phi = {"hop_bias": inputs.hop_bias, "radial": inputs.radial}
    shared = why_in_tile(inputs.relations, 9, dtype, **phi)
    if dtype != torch.float32:
        assert shared == (None if why is None else f"only Triton has a builder: {why}")


SETTINGS = {
    "none": ({}, "ieee"),
    "new": ({"torch.backends.cuda.matmul": "tf32"}, "tf32"),
    "for all backends": ({"torch.backends": "tf32"}, "tf32"),
    "all but products": ({"torch.backends": "tf32", "torch.backends.cuda.matmul": "ieee"}, "ieee"),
    "old": ("high", "tf32"),
}


@pytest.fixture
def precision():
    """``precision(setting)``: choose the precision of float32 products in one of PyTorch's ways."""

    def choose(setting):
        if isinstance(setting, str):
            torch.set_float32_matmul_precision(setting)
            return
        for place, value in setting.items():
            owner = torch.backends if place == "torch.backends" else torch.backends.cuda.matmul
            owner.fp32_precision = value

    yield choose
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_precision_of_float32_products(name, dtype, driver, precision):
    setting, expected = SETTINGS[name]
    precision(setting)
    inputs = make_inputs(Case("plain", (6, 4), hops=False, distances=False), dtype)
    with_gradients(lambda x: attend(x, "packed", backend="triton"), inputs)
    builds = {launch.arguments["build"].PRECISION for launch in driver.launches}
    assert builds == {expected if dtype == torch.float32 else "ieee"}


def test_a_new_dropout_compiles_nothing(driver):
    inputs = make_inputs(Case("plain", (6, 4), hops=False, distances=False))
    compiled_in, numbers = set(), set()
    for dropout_p in (0.1, 0.5, 1 - 2**-40):
        driver.launches.clear()
        with_gradients(
            lambda x, p=dropout_p: attend(x, "packed", backend="triton", dropout_p=p), inputs
        )
        compiled_in |= {launch.arguments["build"] for launch in driver.launches}
        numbers |= {launch.arguments["terms"].dropout_p.item() for launch in driver.launches}
    assert len(compiled_in) == 1
    assert numbers == {0.1, 0.5, 1 - 2**-40}


@pytest.mark.parametrize(("version", "rows"), [("3.6.0", {32}), ("3.9.0", {32, 64})])
def test_no_tile_of_64_rows_is_launched_on_hopper_by_an_older_triton(
    version, rows, driver, monkeypatch
):
    import triton

    monkeypatch.setattr(triton, "__version__", version)
    inputs = make_inputs(Case("two", (64, 40), hops=False, distances=False), torch.float16)
    with Calls() as calls:
        with_gradients(lambda x: attend(x, "packed", backend="triton"), inputs)
    assert len(calls.arguments) == 2
    driver.launches.clear()
    with torch.no_grad():
        for operator, arguments in calls.arguments.items():
            operator(*on_second_gpu(arguments))
    assert {launch.arguments["build"].BLOCK for launch in driver.launches} == rows


@pytest.mark.parametrize(
    ("longest", "mean", "refused", "classes"),
    [
        (30, 30, (), [(32, 0)]),
        (30, 20, (), [(32, 0)]),
        (64, 64, (), [(64, 0)]),
        (64, 20, (), [(32, 0), (64, 32)]),
        (88, 30, (), [(32, 0), (64, 32), ("loop", 64)]),
        (128, 64, (), [(128, 0)]),
        (128, 128, (), [(128, 0)]),
        (300, 63, (), [(32, 0), (64, 32), ("loop", 64)]),
        (300, 90, (), [("loop", 0)]),
        (88, 30, (64, 128), [(32, 0), ("2 x 32", 32), ("loop", 64)]),  # Hopper, Triton 3.6
        (88, 30, (64, "2 x 32"), [(32, 0), ("loop", 32)]),
        (88, 30, (32,), [(64, 0), ("loop", 64)]),
        (30, 20, (32,), [(64, 0)]),
        (30, 20, (32, 64, 128, "2 x 32"), [("loop", 0)]),
    ],
    ids=str,
)
def test_launches_of_a_batch(longest, mean, refused, classes):
    """By numbers that the host knows: no molecule is left out, and none is in two of them."""
    if "triton" not in required_backends():
        pytest.importorskip("triton")
    from collamo_kernels.coattention.triton import configuration

    found = configuration.size_classes(longest, mean, 32, torch.bfloat16, frozenset(refused))
    assert [(x.bucket, x.above) for x in found] == classes


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [(20, 5), (20, 40, 64), (20, 40, 88), (40, 40)], ids=str)
def test_every_molecule_is_in_one_launch(sizes, dtype, driver):
    inputs = make_inputs(Case("sizes", sizes, hops=False, distances=False), dtype)
    with_gradients(lambda x: attend(x, "packed", backend="triton"), inputs)
    for kernels in ({"attend"}, {"differentiate", "differentiate_tile"}):
        taken = []
        for kernel, _gpu, arguments in driver.launches:
            if kernel in kernels:
                build = arguments["build"]
                tiles = 1 if build.SINGLE else 2 if kernel == "differentiate" else 10
                limits = arguments["above"], tiles * build.BLOCK
                taken += [n for n in sizes if limits[0] < n <= limits[1]]
        assert sorted(taken) == sorted(sizes), kernels
