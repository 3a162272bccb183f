"""Launches that skip what Triton does each time: the same compiled kernel, the same arguments."""

import os

import pytest
import torch

from collamo_kernels.testing import Case, attend, make_inputs, required_backends, with_gradients

if "triton" in required_backends():
    import triton
else:
    triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel, make_backend
from triton.runtime import driver
from triton.runtime.jit import create_function_from_signature

from collamo_kernels import triton_launch
from collamo_kernels.coattention.triton import backend as on_triton
from collamo_kernels.coattention.triton import trust

EVERYTHING = Case(
    *("everything", (6, 4)),
    **{"width": 8, "bias": True, "sink": True, "conformer_missing": True, "head": "mlp"},
)


class Compiled(CompiledKernel):
    """A compiled kernel that counts what it is launched with."""

    def __init__(self):
        self.launches, self.module = [], None

    def __getitem__(self, grid):
        return lambda *arguments: self.launches.append((grid, arguments))


class Compiler:
    """Stands in for `JITFunction.run`: what it was called with, and what it returned."""

    def __init__(self):
        self.calls = []

    def runner(self):
        """Return a method of a kernel."""

        def run(kernel, *arguments, grid, warmup, **options):
            self.calls.append((kernel, arguments, options, Compiled()))
            return self.calls[-1][-1]

        return run


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that compiles nothing, for a driver that has one GPU."""
    compiler = Compiler()
    monkeypatch.setattr(JITFunction, "run", compiler.runner())
    monkeypatch.setattr(triton_launch, "RUN", JITFunction.run)
    monkeypatch.setattr(triton_launch, "_COMPILED", {})
    active = type("Driver", (), {"get_current_device": lambda self: 0})()
    monkeypatch.setattr(driver, "_active", active)
    monkeypatch.setattr(on_triton, "INTERPRETED", True)
    trust.refused.cache_clear()
    return compiler


@triton.jit(do_not_specialize=["of_batch"])
def kernel(x, places, of_batch, number, real, WIDTH: triton.language.constexpr):
    pass


def planned(of_batch=7, number=7, real=0.5, width=4, **options):
    """A launch that nothing is known of but its numbers."""
    numbers = {"of_batch": of_batch, "number": number, "real": real, "WIDTH": width}
    return triton_launch.Launch(kernel, (3,), **numbers, **options)


def launch_kernel(x, y=None, **numbers):
    planned(**numbers)(x, (y, None))


def test_a_second_plan_asks_triton_nothing(compiler):
    x, other = torch.zeros(4), torch.ones(4)
    launch_kernel(x)
    launch_kernel(other, of_batch=8, real=0.25)
    ((_, first, options, compiled),) = compiler.calls
    assert first[0] is x
    assert first[1:] == ((None, None), 7, 7, 0.5, 4)
    assert options == {"num_warps": 4, "enable_fp_fusion": True}
    ((grid, second),) = compiled.launches
    assert grid == (3, 1, 1)
    assert second[0] is other
    assert second[1:] == ((None, None), 8, 7, 0.25, 4)


@pytest.mark.parametrize("name", ["dtype", "alignment", "a tensor that was None", "its alignment"])
def test_a_plan_takes_other_tensors(name, compiler):
    """Each kind has a compiled kernel of its own, and is launched on it from then on."""
    launch = planned()
    plain = {"x": torch.zeros(4), "y": None}
    other = plain | OTHERS[name]
    for tensors in (plain, other) * 3:
        launch(tensors["x"], (tensors["y"], None))
    assert len(compiler.calls) == 2
    for (_, first, _, compiled), kind in zip(compiler.calls, (plain, other), strict=True):
        assert [x[0] for _, x in compiled.launches] == [kind["x"]] * 2
        assert first[0] is kind["x"]


def test_a_plan_that_lacks_a_number_is_refused():
    with pytest.raises(TypeError, match=r"ends with \['real', 'WIDTH'\], but got \['number', 'WI"):
        triton_launch.Launch(kernel, (3,), number=1, WIDTH=4)


def test_plans_are_made_once_and_forgotten():
    made = []
    make = triton_launch.planned(lambda x: made.append(x) or x)
    assert [make(1), make(1), make(2)] == [1, 1, 2]
    assert made == [1, 2]
    triton_launch.forget_plans()
    make(1)
    assert made == [1, 2, 1]


def test_whoever_replaces_the_launch_of_triton_sees_every_one(compiler, monkeypatch):
    monkeypatch.setattr(JITFunction, "run", compiler.runner())
    for _ in range(3):
        launch_kernel(torch.zeros(4))
    assert len(compiler.calls) == 3


OTHERS = {
    "dtype": {"x": torch.zeros(4, dtype=torch.float16)},
    "alignment": {"x": torch.zeros(5)[1:]},
    "a tensor that was None": {"y": torch.zeros(4)},
    "its alignment": {"y": torch.zeros(5)[1:]},
    "a number": {"number": 16},
    "one": {"number": 1},
    "a large number of the batch": {"of_batch": 2**31},
    "compiled in": {"width": 8},
    "warps": {"num_warps": 8},
    "stages": {"num_stages": 1},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_another_kernel_is_compiled_for(name, compiler):
    launch_kernel(torch.zeros(4))
    launch_kernel(**{"x": torch.zeros(4)} | OTHERS[name])
    assert len(compiler.calls) == 2
    launch_kernel(**{"x": torch.zeros(4)} | OTHERS[name])
    assert len(compiler.calls) == 2


def test_on_another_gpu_the_kernel_is_another(compiler, monkeypatch):
    launch_kernel(torch.zeros(4))
    monkeypatch.setattr(type(driver.active), "get_current_device", lambda self: 1)
    launch_kernel(torch.zeros(4))
    assert len(compiler.calls) == 2


def variants(x):
    """Other values of an argument, as Triton might tell them apart."""
    if isinstance(x, tuple):
        for at, field in enumerate(x):
            for other in variants(field):
                fields = (*x[:at], other, *x[at + 1 :])
                yield type(x)(*fields) if hasattr(x, "_fields") else fields
    elif isinstance(x, torch.Tensor):
        yield None
        yield x.new_empty(x.numel() + 1)[1:]
        yield x.to(torch.float64)
    elif x is None:
        yield torch.zeros(4)
    elif isinstance(x, bool):
        yield not x
    elif isinstance(x, int):
        yield from (0, 1, 2, 15, 16, 32, 2**31 - 1, 2**31, 2**40, -(2**31), -(2**31) - 1)
    elif isinstance(x, float):
        yield from (0.0, 1.0, 16.0, 0.3)


def test_no_key_stands_for_two_compiled_kernels(compiler, monkeypatch):
    """Whatever argument of a launch changes: where Triton's own key does, so does ours."""
    launched, launch = [], triton_launch.Launch.__call__

    def record(self, *tensors):
        launched.append((self, tensors))
        return launch(self, *tensors)

    monkeypatch.setattr(triton_launch.Launch, "__call__", record)
    inputs = make_inputs(EVERYTHING)
    inputs.relations.coordinates.requires_grad_()
    with_gradients(lambda x: attend(x, "packed", backend="triton", dropout_p=0.1), inputs)
    backend, compared = make_backend(GPUTarget("cuda", 90, 32)), 0
    assert len({plan.kernel for plan, _ in launched}) >= 9
    for plan, tensors in launched:
        kernel, arguments = plan.kernel, (*tensors, *plan.numbers)
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)

        def keys(values, plan=plan, bind=bind):
            first = len(values) - len(plan.numbers)
            names = plan.kernel.arg_names[first:]
            numbers = dict(zip(names, values[first:], strict=True))
            own = triton_launch.Launch(plan.kernel, plan.grid, **numbers)
            return (triton_launch.described(values[:first]), own.compiled_for), bind(*values)[1]

        for at, x in enumerate(arguments):
            seen = [keys(arguments)]
            seen += [keys((*arguments[:at], y, *arguments[at + 1 :])) for y in variants(x)]
            for ours, theirs in seen:
                assert all(theirs == y for x, y in seen if x == ours), kernel.arg_names[at]
            compared += len(seen)
    assert compared > 1000
