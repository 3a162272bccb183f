"""Launches Triton kernels, with little around it from the second time on.

`JITFunction.run` binds and describes all arguments, and looks the compiled kernel up by the text of
what it found: 7 to 35 µs a launch, of which a layer has eleven. Here what a launch is but for its
tensors, a `Launch`, is worked out once for all layers and steps that have the same numbers
(`planned`). It finds the compiled kernel by what its tensors are, and calls it by the interface
that Triton's tutorials use: ``compiled[grid](*arguments)``. Versions 3.6 to 3.9 have it. Triton's
switches, TRITON_DEBUG say, count when a kernel is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, cast

from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

P = ParamSpec("P")
T = TypeVar("T")
FUSION = True  # a·b + c in one rounding; said aloud because Triton's default is about to change
NARROW = range(-(2**31), 2**31)  # numbers that a kernel takes as int32
RUN = JITFunction.run  # who replaces it, to record launches say, wants every one
ALIGNMENT = 16  # bytes: an address divisible by it is compiled for
PLANS = 256  # kept of each kind, the last ones used: a batch of other sizes has others


def cdiv(count: int, size: int) -> int:
    """Return how many blocks of a size there are (`triton.cdiv`, made for kernels, takes 4 µs)."""
    return -(-count // size)


# --- plans ----------------------------------------------------------------------------------------


def planned(make: Callable[P, T]) -> Callable[P, T]:
    """Keep what a function makes of numbers alone: launches, and sizes of what they write.

    It may depend on its arguments and on what stands fixed in `configuration`, and must hold no
    tensor, which would outlive its batch.
    """
    kept = functools.lru_cache(PLANS)(make)
    _PLANNED.append(kept.cache_clear)
    return cast(Callable[P, T], kept)


def forget_plans() -> None:
    """Make every plan anew, after something that stands fixed was changed (by a test)."""
    for clear in _PLANNED:
        clear()


_PLANNED: list[Callable[[], None]] = []


# --- launches -------------------------------------------------------------------------------------


class Launch:
    """A launch of a kernel that is known but for its tensors.

    Parameters
    ----------
    kernel
        What `triton.jit` made; in Triton's interpreter too.
    grid
        Programs along each axis.
    num_warps, num_stages
        What it is compiled with; None leaves Triton its default.
    numbers
        The kernel's last arguments, by name, none left out: numbers, and what is compiled in.
    """

    def __init__(
        self,
        kernel: JITFunction,
        grid: tuple[int, ...],
        num_warps: int = 4,
        num_stages: int | None = None,
        **numbers: Any,
    ):
        names = kernel.arg_names[len(kernel.arg_names) - len(numbers) :]
        if {*names} != numbers.keys():
            raise TypeError(f"the kernel ends with {names}, but got {[*numbers]}")
        self.kernel, self.grid = kernel, (*grid, 1, 1)[:3]
        self.numbers = tuple(map(numbers.__getitem__, names))
        self.options = {"num_warps": num_warps, "enable_fp_fusion": FUSION}
        if num_stages is not None:
            self.options["num_stages"] = num_stages
        self.runners: dict[tuple[Any, ...], Callable[..., None]] = {}
        self.compiles = isinstance(kernel, JITFunction)
        kinds = _kinds(kernel, self.numbers) if self.compiles else ()
        self.compiled_for = *self.options.values(), *kinds

    def __call__(self, *tensors: Any) -> None:
        """Launch the kernel on the current GPU: its first arguments, tensors and tuples of them."""
        kernel = self.kernel
        if not self.compiles or kernel.pre_run_hooks or type(kernel).run is not RUN:
            kernel[self.grid](*tensors, *self.numbers, **self.options)
            return
        key = (driver.active.get_current_device(), *described(tensors))
        runner = self.runners.get(key)
        if runner is None:
            compiled = self._compiled(key, tensors)
            if compiled is None:
                return
            runner = self.runners[key] = compiled[self.grid]
        runner(*tensors, *self.numbers)

    def _compiled(self, key: tuple[Any, ...], tensors: tuple[Any, ...]) -> CompiledKernel | None:
        """Return what another plan had compiled; None where it is compiled, and launched, here."""
        _, every = _COMPILED.setdefault(id(self.kernel), (self.kernel, {}))
        place = key, self.compiled_for
        if place in every:
            return every[place]
        compiled = self.kernel[self.grid](*tensors, *self.numbers, **self.options)
        if isinstance(compiled, CompiledKernel):  # not one whose compilation goes on
            every[place] = compiled
        return None


def described(arguments: Iterable[Any]) -> list[Any]:
    """Return what a compiled kernel depends on of tensors, tuples of them, and numbers among them.

    Of an address its type and where it is between two multiples of 16; a number as it is.
    """
    key: list[Any] = []
    for x in arguments:
        if x is None:  # first, because asking whether it is a tensor takes long of what is none
            key.append(x)
        elif isinstance(x, tuple):
            key += described(x)
        elif isinstance(x, Tensor):
            key.append(x.dtype)
            key.append(x.data_ptr() % ALIGNMENT)
        else:
            key.append(x)
    return key


def _kinds(kernel: JITFunction, numbers: tuple[Any, ...]) -> list[Any]:
    """Return what a compiled kernel depends on of its last arguments.

    Of a number of the batch whether it is an int32. Any other number is taken as it is: Triton asks
    only whether it is 1, divisible by 16 or an int32.
    """
    kinds: list[Any] = []
    parameters = kernel.params[len(kernel.params) - len(numbers) :]
    for parameter, x in zip(parameters, numbers, strict=True):
        if parameter.do_not_specialize and not parameter.is_constexpr:
            kinds.append(x in NARROW if type(x) is int else type(x))
        else:
            kinds.append(float if type(x) is float else x)
    return kinds


# By the id of a kernel the kernel, so that nothing else gets its id, and what was compiled of it.
_COMPILED: dict[int, tuple[JITFunction, dict[tuple[Any, ...], CompiledKernel]]] = {}
