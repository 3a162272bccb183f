"""A pytest plugin: Triton's interpreter with the rounding of a GPU's fast instructions.

    TRITON_INTERPRET=1 APPROX_ULP=2 PYTHONPATH=.:tests/kernels pytest -p approx_rounding …

``ex2.approx``, ``div.full`` and ``sqrt.approx`` are off by up to ``APPROX_ULP`` units in the last
place, by a number that their operands' bits decide: the same every time. Where a GPU is exact
(powers of two) so are they.
"""

import os

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

ULP = float(os.environ["APPROX_ULP"])
exponential, power, quotient, root = (
    getattr(InterpreterBuilder, f"create_{name}") for name in ("exp", "exp2", "fdiv", "sqrt")
)


def noise(bits):
    """Units in the last place, by a hash of the operands' bits."""
    mixed = bits * np.uint32(2654435761) ^ bits >> np.uint32(15)
    mixed = mixed * np.uint32(2246822519) ^ mixed >> np.uint32(13)
    return (2 * (mixed / 2**32) - 1) * ULP


def rounded(exact, bits):
    """The float32 that is near an exact number."""
    nearest = exact.astype(np.float32)
    moved = exact + noise(bits) * np.spacing(np.abs(nearest)).astype(np.float64)
    ordinary = np.isfinite(nearest) & (nearest != 0)
    return np.where(ordinary, moved.astype(np.float32), nearest)


def power_of_two(x):
    exact = np.exp2(x.astype(np.float64))
    exact = np.where(exact < 2.0**-126, 0.0, exact)  # flushed
    integer = x == np.floor(x)
    return np.where(integer, exact.astype(np.float32), rounded(exact, x.view(np.uint32)))


def create_exp(self, arg):
    if arg.data.dtype != np.float32:
        return exponential(self, arg)
    x = (arg.data * np.float32(1.44269504)).astype(np.float32)
    return TensorHandle(power_of_two(np.ascontiguousarray(x)), arg.dtype.scalar)


def create_exp2(self, arg):
    if arg.data.dtype != np.float32:
        return power(self, arg)
    return TensorHandle(power_of_two(np.ascontiguousarray(arg.data)), arg.dtype.scalar)


def create_sqrt(self, arg):
    if arg.data.dtype != np.float32:
        return root(self, arg)
    x = np.ascontiguousarray(arg.data)
    return TensorHandle(rounded(np.sqrt(x.astype(np.float64)), x.view(np.uint32)), arg.dtype.scalar)


def create_fdiv(self, left, right):
    if left.data.dtype != np.float32:
        return quotient(self, left, right)
    x, y = map(np.ascontiguousarray, np.broadcast_arrays(left.data, right.data))
    exact = x.astype(np.float64) / y.astype(np.float64)
    bits = x.view(np.uint32) ^ y.view(np.uint32) * np.uint32(40503)
    by_power = np.frexp(np.abs(y))[0] == 0.5
    found = np.where(by_power, exact.astype(np.float32), rounded(exact, bits))
    return TensorHandle(found, left.dtype.scalar)


def pytest_configure():
    np.seterr(all="ignore")
    for name, function in (
        *(("exp", create_exp), ("exp2", create_exp2)),
        *(("fdiv", create_fdiv), ("sqrt", create_sqrt)),
    ):
        setattr(InterpreterBuilder, f"create_{name}", function)
