"""The shorter way round an operator: the same numbers, and the operator where somebody looks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from collamo_kernels.eager import shortened


class Nothing(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class OtherTensor(torch.Tensor):
    """A kind of its own."""


class Scaling:
    """x·factor, whose calls of the operator and of what it does are counted."""

    def __init__(self):
        self.operated, self.ran = 0, 0
        self.call = shortened(self.operator, self.run, self.keep, self.differentiate)

    def operator(self, x, factor, *_):
        self.operated += 1
        return x * factor

    def run(self, x, factor, *_):
        self.ran += 1
        return x * factor

    @staticmethod
    def keep(ctx, inputs, output):
        ctx.factor, ctx.others = inputs[1], len(inputs) - 2

    @staticmethod
    def differentiate(ctx, grad):
        return grad * ctx.factor, *[None] * (1 + ctx.others)


def test_gradients_without_the_operator():
    scaling, x = Scaling(), torch.randn(3, requires_grad=True)
    out = scaling.call(x, 2.0)
    out.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    with torch.no_grad():
        assert not scaling.call(x, 2.0).requires_grad
    with torch.inference_mode():
        assert torch.equal(scaling.call(x, 2.0), 2 * x)
    assert (scaling.operated, scaling.ran) == (0, 3)


def in_a_mode(call, x):
    with Nothing():
        return call(x, 2.0)


LOOKING = {
    "a mode": in_a_mode,
    "another kind of tensor": lambda call, x: call(x.as_subclass(OtherTensor), 2.0),
    "torch.func": lambda call, x: torch.func.jvp(lambda y: call(y, 2.0), (x,), (x,))[0],
    "a compiler": lambda call, x: torch.compile(
        lambda y: call(y, 2.0), fullgraph=True, backend="eager"
    )(x),
}


@pytest.mark.parametrize("name", LOOKING)
def test_the_operator_runs_where_somebody_looks(name):
    scaling, x = Scaling(), torch.randn(3)
    assert torch.equal(LOOKING[name](scaling.call, x), 2 * x)
    assert scaling.ran == 0
    assert name == "a compiler" or scaling.operated == 1  # traced, not called
