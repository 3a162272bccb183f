"""Expansion in normal densities and its gradients, on every backend."""

import math

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.gaussian_basis import reference
from collamo_kernels.testing import assert_accurate


@pytest.fixture
def expand(gaussian_basis_backend, serves):
    """`collamo_kernels.gaussian_basis` on the backend under test."""

    def run(*arguments):
        backend = gaussian_basis_backend
        return serves(backend, lambda: ck.gaussian_basis(*arguments, backend=backend))

    return run


def inputs(places, gaussians, seed=0):
    """u as distances are, centres and widths as they start."""
    generator = torch.Generator().manual_seed(seed)
    u, centre, width = (torch.rand(n, generator=generator) for n in (places, gaussians, gaussians))
    return 12 * u, 3 * centre, 3 * width + 1e-2


def learned(tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def test_by_hand(expand):
    u, centre, width = torch.tensor([1.0, 3.0, 99.0]), torch.tensor([1.0]), torch.tensor([2.0])
    peak = 1 / (2 * math.sqrt(2 * math.pi))
    expected = torch.tensor([[peak], [peak * math.exp(-0.5)], [0.0]])
    torch.testing.assert_close(expand(u, centre, width), expected)


SHAPES = [(0, 3), (5, 0), (1, 1), (2, 15), (17, 16), (33, 17), (600, 32), (4000, 128), (20000, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape, expand):
    """Values and the gradients of u, centre and width."""
    tensors = inputs(*shape)
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def results(run, dtype):
        leaves = learned(x.to(dtype) for x in tensors)
        out = run(*leaves)
        return out, *torch.autograd.grad(out, leaves, cotangent.to(dtype))

    exact = results(reference.gaussian_basis, torch.float64)
    yardstick = results(reference.gaussian_basis, torch.float32)
    actual = results(expand, torch.float32)
    factors = {"out": 2, "u": 3, "centre": 5, "width": 5}
    for (name, factor), *values in zip(factors.items(), actual, yardstick, exact, strict=True):
        assert_accurate(*values, factor=factor, name=name)


def test_nan_goes_through(expand):
    u, centre, width = inputs(9, 5)
    u[3], centre[1] = math.nan, math.nan
    wrong = expand(u, centre, width).isnan()
    assert wrong[3].all()
    assert wrong[:, 1].all()
    assert wrong.sum() == 9 + 5 - 1


def test_any_strides(expand):
    tensors = inputs(70, 20)
    odd = [torch.stack([x, x], 1)[:, 0] for x in tensors]
    assert not any(x.is_contiguous() for x in odd)
    assert torch.equal(expand(*odd), expand(*tensors))


def test_gradcheck():
    tensors = learned(x.double() for x in inputs(5, 4))
    assert torch.autograd.gradcheck(ck.gaussian_basis, tensors)
    assert torch.autograd.gradgradcheck(ck.gaussian_basis, tensors)


@pytest.mark.slow
def test_every_instruction_set(on_instruction_set):
    on_instruction_set(__file__, "cpu and accuracy")


@pytest.mark.usefixtures("compiled")
class TestOperator:
    """The compiled operator alone."""

    @pytest.fixture
    def compiled(self, serves):
        serves("cpu", lambda: ck.gaussian_basis(*inputs(2, 3), backend="cpu"))

    def test_same_bits_whatever_the_threads(self):
        leaves, found, before = learned(inputs(3000, 33)), [], torch.get_num_threads()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = ck.gaussian_basis(*leaves, backend="cpu")
            found.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
        torch.set_num_threads(before)
        for other in found[1:]:
            assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))

    def test_second_derivative_is_that_of_the_definition(self):
        def results(run, dtype):
            leaves = learned(x.to(dtype) for x in inputs(20, 5))
            first = torch.autograd.grad(run(*leaves).sin().sum(), leaves, create_graph=True)
            return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)

        definition = reference.gaussian_basis
        ours = results(lambda *x: ck.gaussian_basis(*x, backend="cpu"), torch.float32)
        plain, exact = (results(definition, x) for x in (torch.float32, torch.float64))
        for values in zip(ours, plain, exact, strict=True):
            assert_accurate(*values, factor=5)

    def test_opcheck(self):
        leaves, operators = learned(inputs(9, 5)), torch.ops.collamo_kernels
        torch.library.opcheck(operators.gaussian_basis, leaves)
        grad = torch.randn(9, 5, requires_grad=True)
        torch.library.opcheck(operators.gaussian_basis_backward, (grad, *leaves))

    def test_compiles_as_one_graph(self):
        leaves = learned(inputs(9, 5))

        def run(*leaves):
            return ck.gaussian_basis(*leaves, backend="cpu").square().sum(-1)

        eager = run(*leaves)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves)
        assert torch.equal(compiled, eager)
        ours, wanted = (torch.autograd.grad(x.sum(), leaves) for x in (compiled, eager))
        assert all(torch.equal(one, two) for one, two in zip(ours, wanted, strict=True))

    def test_never_reads_beyond_its_input(self):
        u, centre, width = inputs(9, 5)
        operators = torch.ops.collamo_kernels
        for wrong in ((u, centre, width[:4]), (u[:, None], centre, width)):
            with pytest.raises(ValueError, match="gaussian_basis: "):
                operators.gaussian_basis(*wrong)
        with pytest.raises(ValueError, match=r"grad must be float32 \[M, K\]"):
            operators.gaussian_basis_backward(torch.zeros(9, 4), u, centre, width)

    def test_other_dtypes_run_the_reference(self):
        for dtype in (torch.float64, torch.bfloat16):
            arguments = [x.to(dtype) for x in inputs(3, 2)]
            assert ck.gaussian_basis(*arguments).dtype == dtype
            with pytest.raises(ck.BackendError, match=f"u is {dtype}; this backend takes float32"):
                ck.gaussian_basis(*arguments, backend="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": [1.0]}, "u is a list; make it a tensor"),
        ({"u": torch.zeros(3, 1)}, r"u is torch.float32 \[3, 1\]; it must be floating point"),
        ({"centre": torch.zeros(5).long()}, "centre is torch.int64"),
        ({"centre": torch.zeros(5).double()}, "centre is torch.float64 on cpu; make it that of u"),
        ({"width": torch.zeros(4)}, r"width has shape \[4\]; it must be that of centre, \[5\]"),
        ({"width": torch.zeros(5, device="meta")}, "width is torch.float32 on meta"),
    ],
)
def test_wrong_form_is_named(changes, message):
    arguments = dict(zip(("u", "centre", "width"), inputs(3, 5), strict=True)) | changes
    with pytest.raises(ValueError, match=message):
        ck.gaussian_basis(**arguments)
