"""Launches Triton kernels, with less around it than ``kernel[grid](…)`` from the second time on.

`JITFunction.run` binds and describes all arguments, and looks the compiled kernel up by the text of
what it found: 7 to 35 µs a launch, of which a layer has nine. Here the compiled kernel is found by
a key that holds at least what Triton's does, and launched by the interface that Triton's tutorials
use: ``compiled[grid](*arguments)``. Versions 3.6 to 3.9 have it. Triton's switches, TRITON_DEBUG
say, count when a kernel is compiled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, driver

FUSION = True  # a·b + c in one rounding; said aloud because Triton's default is about to change
NARROW = range(-(2**31), 2**31)  # numbers that a kernel takes as int32
RUN = JITFunction.run  # who replaces it, to record launches say, wants every one
ALIGNMENT = 16  # bytes: an address divisible by it is compiled for


def cdiv(count: int, size: int) -> int:
    """Return how many blocks of a size there are (`triton.cdiv`, made for kernels, takes 4 µs)."""
    return -(-count // size)


def launch(
    kernel: JITFunction,
    grid: tuple[int, ...],
    /,
    *arguments: Any,
    num_warps: int = 4,
    num_stages: int | None = None,
    **named: Any,
) -> None:
    """Launch a kernel on the current GPU.

    Parameters
    ----------
    kernel
        What `triton.jit` made; in Triton's interpreter too.
    grid
        Programs along each axis.
    arguments, named
        Of the kernel, as in ``kernel[grid](…)``: none left out.
    num_warps, num_stages
        What it is compiled with; None leaves Triton its default.
    """
    if named:
        names = kernel.arg_names[len(arguments) :]
        if len(names) != len(named):
            raise TypeError(f"the kernel takes {names} by name, but got {[*named]}")
        arguments += tuple(map(named.__getitem__, names))
    options = {"num_warps": num_warps, "enable_fp_fusion": FUSION}
    if num_stages is not None:
        options["num_stages"] = num_stages
    if not isinstance(kernel, JITFunction) or kernel.pre_run_hooks or type(kernel).run is not RUN:
        kernel[grid](*arguments, **options)
        return
    known = _KNOWN.get(id(kernel))
    if known is None:
        known = _KNOWN[id(kernel)] = _Known(kernel)
    key = known.key(driver.active.get_current_device(), num_warps, num_stages, arguments)
    compiled = known.compiled.get(key)
    if compiled is not None:
        compiled[grid if len(grid) == 3 else (*grid, 1, 1)[:3]](*arguments)
        return
    compiled = kernel[grid](*arguments, **options)
    if isinstance(compiled, CompiledKernel):  # not one whose compilation goes on
        known.compiled[key] = compiled


class _Known:
    """A kernel, and what was compiled of it, by a key."""

    def __init__(self, kernel: JITFunction):
        self.kernel = kernel  # so that nothing else gets its id
        self.compiled: dict[tuple[Any, ...], CompiledKernel] = {}
        parameters = kernel.params
        self.of_batch = [x.do_not_specialize and not x.is_constexpr for x in parameters]

    def key(self, device: int, num_warps: int, num_stages: int | None, arguments: Any) -> Any:
        """Return what a compiled kernel depends on.

        Of an address its type and where it is between two multiples of 16; of a number of the batch
        whether it is an int32. Any other number is taken as it is: Triton asks only whether it is
        1, divisible by 16 or an int32.
        """
        key: list[Any] = [device, num_warps, num_stages]
        for of_batch, x in zip(self.of_batch, arguments, strict=True):
            if isinstance(x, Tensor):
                past = x.data_ptr() % ALIGNMENT
                key.append((x.dtype, past) if past else x.dtype)
            elif of_batch:
                key.append(x in NARROW if type(x) is int else type(x))
            elif isinstance(x, tuple):
                _add_fields(key, x)
            else:
                key.append(float if type(x) is float else x)
        return tuple(key)


_KNOWN: dict[int, _Known] = {}


def _add_fields(key: list[Any], fields: tuple[Any, ...]) -> None:
    """Add what a compiled kernel depends on of a tuple of arguments, or of what is compiled in."""
    for x in fields:
        if isinstance(x, Tensor):
            past = x.data_ptr() % ALIGNMENT
            key.append((x.dtype, past) if past else x.dtype)
        else:
            key.append(x)
