"""Backends under test: each is a parameter, and one that is required must not be skipped."""

import contextlib
import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from collamo_kernels import build_info
from collamo_kernels.backends import BACKENDS, BackendError
from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.radial import FIXED_KNOTS
from collamo_kernels.testing import required_backends


@pytest.fixture
def serves():
    """``serves(backend, call)``: run the call; skip where the backend refuses, unless required."""

    def run(backend, call):
        try:
            return call()
        except BackendError as refusal:
            if backend in required_backends():
                raise
            pytest.skip(str(refusal))

    return run


@pytest.fixture(autouse=True)
def no_plans_of_others():
    """Plans of launches hold what tests change: sizes of blocks, memory set aside."""
    launches = sys.modules.get("collamo_kernels.triton_launch")
    if launches is not None:
        launches.forget_plans()


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """In Triton's interpreter, which takes 5 ms a program: larger blocks and small tables."""
    if not (_triton.INTERPRETED and _triton.INSTALLED):
        return
    from collamo_kernels.coattention.triton import launch_pairs as launch

    for dtype in FIXED_KNOTS:
        monkeypatch.setitem(FIXED_KNOTS, dtype, 2048)
    larger = dataclasses.replace(
        *(launch.PAIRS,), cells=1024, entries=1024, runs=2, hop_entries=32, pairs=2048
    )
    monkeypatch.setattr(launch, "PAIRS", larger)
    radial = launch.on_radial
    larger = dataclasses.replace(radial.RADIAL, blocks=64, places=256, entries=2048)
    monkeypatch.setattr(radial, "RADIAL", larger)


def patch_the_language_once():
    """A third of the interpreter's time: it patches Triton's language for a launch, and again for
    each function that the kernel calls, although those see one of two modules."""
    from triton.runtime import interpreter

    language, patch, patched = interpreter.tl, interpreter._patch_lang, set()

    def patch_once(fn):
        seen = fn.__globals__.values()
        modules = tuple(any(x is y for x in seen) for y in (language, language.core))
        if modules in patched:
            return None  # only a launch, which comes first, puts back what was patched
        scope = patch(fn)
        if not patched:
            restore, scope.restore = scope.restore, lambda: (restore(), patched.clear())
        patched.add(modules)
        return scope

    interpreter._patch_lang = patch_once


if _triton.INTERPRETED and _triton.INSTALLED:
    patch_the_language_once()


@contextlib.contextmanager
def recorded_launches():
    """The names of the kernels that are launched, in order."""
    if _triton.INTERPRETED:
        from triton.runtime.interpreter import GridExecutor as Launcher
    else:
        from triton import JITFunction as Launcher
    method = "__call__" if _triton.INTERPRETED else "run"
    names, call = [], getattr(Launcher, method)

    def counted(self, *arguments, **options):
        names.append(self.fn.__name__)
        return call(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launcher, method, counted)
        yield names


@pytest.fixture
def launches():
    """``with launches() as names``: the Triton kernels that are launched meanwhile."""
    return recorded_launches


class NoWaiting(TorchDispatchMode):
    """Fail where the host would wait for a number that is on a GPU: a value, a count of trues."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function._opname, kwargs or {}
        assert name not in self.waiting, name
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert all(x is None or x.dtype != torch.bool for x in args[1]), "a mask as an index"
        if name == "repeat_interleave" and "Tensor" in function._overloadname:
            assert kwargs.get("output_size") is not None, "repeat_interleave of unknown size"
        return function(*args, **kwargs)


@pytest.fixture
def no_waiting():
    """``with no_waiting()``: fail where the host would wait."""
    return NoWaiting


CAPABILITIES = ("baseline", "avx2_narrow", "avx2", "avx512")
CAPABILITY, ASKED = build_info()["cpu_capability"], os.environ.get("COLLAMO_CPU_CAPABILITY")
assert ASKED in (None, CAPABILITY), f"COLLAMO_CPU_CAPABILITY={ASKED}, but {CAPABILITY} would run"


@pytest.fixture(params=("baseline", "avx2", "avx512"))
def on_instruction_set(request):
    """``on_instruction_set(file, selection)``: run tests of a file on the instruction set of the
    parameter, in a process of its own. -P: of the same build (`make sanitize`).

    Only the attention has one of narrow vectors, and asks for it by a parameter of its own.
    """
    if CAPABILITY not in CAPABILITIES[CAPABILITIES.index(request.param) + 1 :]:
        pytest.skip("the widest runs in every other test, a wider one not at all on this processor")

    def run(file, selection):
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
        environment = {"COLLAMO_CPU_CAPABILITY": request.param, "COLLAMO_TEST_BACKENDS": "cpu"}
        done = subprocess.run(
            [*command, "-k", selection],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:]

    return run


def pytest_generate_tests(metafunc):
    """Give every test that takes ``<op>_backend`` one run per backend of that operation."""
    for op, rows in BACKENDS.items():
        name = f"{op}_backend"
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [row.name for row in rows])
