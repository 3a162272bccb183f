"""Distances in Å and their gradient, on every backend."""

import math
import os
import subprocess
import sys

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.pairwise_distances import reference
from collamo_kernels.pairwise_distances._triton import BLOCK, NUM_WARPS
from collamo_kernels.pairwise_distances.call import DistancesCall
from collamo_kernels.testing import assert_accurate, device_of, required_backends


@pytest.fixture
def distances_of(pairwise_distances_backend, serves):
    """``distances_of(coordinates, valid)`` on the backend under test and its device."""
    backend, device = pairwise_distances_backend, device_of(pairwise_distances_backend)

    def run(coordinates, valid=None):
        valid = None if valid is None else valid.to(device)
        arguments = coordinates.to(device), valid
        return serves(backend, lambda: ck.pairwise_distances(*arguments, backend=backend)).cpu()

    return run


def molecules(*sizes, seed=0):
    """Coordinates [B, N, 3] of molecules of these sizes, NaN in the padding, and valid [B, N]."""
    generator = torch.Generator().manual_seed(seed)
    atoms = max(sizes, default=0)
    valid = torch.arange(atoms) < torch.tensor(sizes, dtype=torch.int64)[:, None]
    x = 3 * torch.randn(len(sizes), atoms, 3, generator=generator)
    return torch.where(valid[..., None], x, math.nan), valid


def test_by_hand(distances_of):
    x = torch.tensor([[[0.0, 0, 0], [3.0, 4.0, 0.0], [3.0, 4.0, 12.0]]])
    assert distances_of(x)[0].tolist() == [[0, 5, 13], [5, 0, 12], [13, 12, 0]]


def test_gradient_by_hand(distances_of):
    x = torch.tensor([[[0.0, 0, 0], [3.0, 4.0, 0.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(distances_of(x)[0, 0, 1], x)
    torch.testing.assert_close(gradient[0], torch.tensor([[-0.6, -0.8, 0], [0.6, 0.8, 0]]))


def test_no_digits_lost_far_from_the_origin(distances_of):
    x = torch.tensor([[[1000.0, 1000.0, 1000.0], [1000.0, 1000.0, 1001.5]]])
    assert distances_of(x)[0, 0, 1] == 1.5


SIZES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65)


@pytest.mark.parametrize("sizes", [SIZES, (127, 128, 129), (257,)], ids=str)
def test_accuracy(sizes, distances_of):
    """Value and gradient, with NaN in the padding of coordinates and cotangent."""
    x, valid = molecules(*sizes)
    x.requires_grad_()
    pairs = valid[:, :, None] & valid[:, None]
    cotangent = torch.where(pairs, torch.randn(pairs.shape), math.nan)

    def results(x, run):
        out = run(x, valid)
        (gradient,) = torch.autograd.grad(out, x, cotangent.to(out.dtype))
        return out, gradient

    exact = results(x.double(), reference.pairwise_distances)
    yardstick = results(x, reference.pairwise_distances)
    actual = results(x, distances_of)
    for name, factor, *values in zip(
        ("out", "coordinates"), (2, 3), actual, yardstick, exact, strict=True
    ):
        assert_accurate(*values, factor=factor, name=name)
    assert (actual[0][~pairs] == 0).all()
    assert (actual[1][~valid] == 0).all()


def test_all_atoms_are_real_without_valid(distances_of):
    x, valid = molecules(40, 40)
    assert torch.equal(distances_of(x), distances_of(x, valid))


def test_padding_is_zero_whatever_stands_there(distances_of):
    x, valid = molecules(3, 0, 4)
    wanted = distances_of(torch.nan_to_num(x), valid)
    x.requires_grad_()
    distance = distances_of(x, valid)
    assert torch.equal(distance, wanted)
    (gradient,) = torch.autograd.grad(distance, x, torch.randn_like(distance))
    assert gradient[~valid].abs().max() == 0
    assert gradient.isfinite().all()


def test_nan_of_a_real_atom_is_seen(distances_of):
    """A broken conformer must not pass for one whose atoms meet; other molecules keep theirs."""
    x, _ = molecules(4, 4)
    wanted = distances_of(x)
    x[1, 2, 0] = math.nan
    distance = distances_of(x)
    assert torch.equal(distance[0], wanted[0])
    assert distance[1, 2].isnan().all()
    assert torch.equal(distance[1].isnan().sum(0), torch.tensor([1, 1, 4, 1]))


def test_gradient_is_zero_where_atoms_meet(distances_of):
    x = torch.tensor([[[1.0, 2, 3], [1.0, 2, 3], [0.0, 0, 0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(distances_of(x)[0, 0, 1], x)
    assert gradient.abs().max() == 0


def test_same_bits_every_time(distances_of):
    x, valid = molecules(70, 30)
    x.requires_grad_()
    cotangent = torch.randn(2, 70, 70)
    gradients = [torch.autograd.grad(distances_of(x, valid), x, cotangent)[0] for _ in range(2)]
    assert torch.equal(*gradients)


def test_any_strides(distances_of):
    x, valid = molecules(9, 5)
    apart = torch.stack([x, x], -1)[..., 0]
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    for odd in (apart, turned):
        assert not odd.is_contiguous()
        assert torch.equal(distances_of(odd, valid.t().contiguous().t()), distances_of(x, valid))
    x = x.nan_to_num().requires_grad_()
    distance = distances_of(x, valid)
    cotangent = torch.randn(2, 9, 9)
    (wanted,) = torch.autograd.grad(distance, x, cotangent, retain_graph=True)
    turned = cotangent.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(torch.autograd.grad(distance, x, turned)[0], wanted)


def test_second_gradients(distances_of):
    """The gradient of a function of the gradient: forces that are learned."""
    x, valid = molecules(5, 3)
    x = x.nan_to_num().requires_grad_()

    def second(x, run):
        out = run(x, valid)
        (first,) = torch.autograd.grad(out.cos().sum(), x, create_graph=True)
        return torch.autograd.grad((first * torch.linspace(1, 2, 3, dtype=x.dtype)).sum(), x)[0]

    exact = second(x.double(), reference.pairwise_distances)
    yardstick = second(x, reference.pairwise_distances)
    assert_accurate(second(x, distances_of), yardstick, exact, factor=5)


def test_gradcheck():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    assert torch.autograd.gradcheck(ck.pairwise_distances, (x, valid))
    assert torch.autograd.gradgradcheck(ck.pairwise_distances, (x, valid))


def test_the_definition_of_the_gradient():
    from collamo_kernels.pairwise_distances.op import gradient

    x, valid = molecules(5, 3)
    x = x.double().requires_grad_()
    cotangent = torch.randn(2, 5, 5, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(ck.pairwise_distances(x, valid), x, cotangent)
    torch.testing.assert_close(gradient(cotangent, x, valid), wanted)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 1, 3)])
def test_nothing_to_measure(shape, distances_of):
    x = torch.zeros(shape, requires_grad=True)
    distance = distances_of(x)
    assert distance.shape == (*shape[:2], shape[1])
    (gradient,) = torch.autograd.grad(distance, x, torch.ones_like(distance))
    assert gradient.shape == shape
    assert not gradient.any()


OPERATORS = {"cpu": "pairwise_distances", "triton": "pairwise_distances_triton"}


@pytest.mark.parametrize("backend", OPERATORS)
@pytest.mark.parametrize("padding", [False, True])
def test_opcheck(backend, padding, serves):
    x, valid = molecules(4, 3)
    x = x.nan_to_num().to(device_of(backend)).requires_grad_()
    valid = valid.to(x.device) if padding else None
    serves(backend, lambda: ck.pairwise_distances(x, valid, backend=backend))
    forward = getattr(torch.ops.collamo_kernels, OPERATORS[backend])
    backward = getattr(torch.ops.collamo_kernels, OPERATORS[backend] + "_backward")
    torch.library.opcheck(forward, (x, valid))
    grad = torch.randn(2, 4, 4, device=x.device, requires_grad=True)
    torch.library.opcheck(backward, (grad, x, valid))


def test_compiles_as_one_graph(pairwise_distances_backend, serves):
    backend = pairwise_distances_backend
    x, valid = (t.to(device_of(backend)) for t in molecules(6, 4))
    x.requires_grad_()

    def run(x):
        return ck.pairwise_distances(x, valid, backend=backend).square().sum(-1)

    eager = serves(backend, lambda: run(x))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled, eager)
    gradients = (torch.autograd.grad(out, x, torch.ones_like(out))[0] for out in (eager, compiled))
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 3), None), "coordinates"),
        ((torch.zeros(1, 4, 3).double(), None), "coordinates"),
        ((torch.zeros(1, 4, 3), torch.ones(1, 3) > 0), "valid"),
        ((torch.zeros(1, 4, 3), torch.ones(1, 4)), "valid"),
    ],
)
def test_the_operator_never_reads_beyond_its_input(arguments, message, serves):
    serves("cpu", lambda: ck.pairwise_distances(torch.zeros(1, 1, 3), backend="cpu"))
    with pytest.raises(ValueError, match=message):
        torch.ops.collamo_kernels.pairwise_distances(*arguments)
    backward = torch.ops.collamo_kernels.pairwise_distances_backward
    with pytest.raises(ValueError, match="grad"):
        backward(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), None)


@pytest.mark.parametrize(
    ("coordinates", "valid", "message"),
    [
        ([[0.0, 0.0, 0.0]], None, "coordinates is a list; make it a tensor"),
        (torch.zeros(4, 3), None, "coordinates has shape"),
        (torch.zeros(1, 4, 2), None, "coordinates has shape"),
        (torch.zeros(1, 4, 3).half(), None, "coordinates has dtype"),
        (torch.zeros(1, 4, 3), torch.ones(1, 4), "valid has dtype"),
        (torch.zeros(1, 4, 3), torch.ones(1, 3) > 0, "valid has shape"),
        (torch.zeros(1, 4, 3), torch.ones(1, 4, device="meta") > 0, "valid is on meta"),
    ],
)
def test_wrong_input_is_named(coordinates, valid, message):
    with pytest.raises(ValueError, match=message):
        ck.pairwise_distances(coordinates, valid)


@pytest.mark.parametrize("backend", OPERATORS)
def test_float64_runs_the_reference(backend):
    from collamo_kernels.pairwise_distances import _cpu, _triton

    class OnItsDevice:
        device = torch.device({"cpu": "cpu", "triton": "cuda"}[backend])
        dtype = torch.float64

    module = {"cpu": _cpu, "triton": _triton}[backend]
    call = DistancesCall(OnItsDevice, None)
    assert module.unsupported(call) == "float64 runs the reference"
    OnItsDevice.device = torch.device("meta")
    assert "coordinates is on meta; this backend runs on" in module.unsupported(call)


# --- Triton without a GPU -------------------------------------------------------------------------


@pytest.mark.slow
def test_in_the_interpreter():
    """All of the above in a process of its own: Triton reads the switch when it is imported."""
    if "triton" not in required_backends():
        pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        pytest.skip("the Triton kernels run in this process already")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "COLLAMO_TEST_BACKENDS": "triton"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "triton and not 257"]  # 81 tiles: slow there
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("padding", [False, True])
def test_compiles_ahead_of_time(capability, padding):
    """For GPUs that are not here; nothing spills."""
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the compiler is off in the interpreter")
    from triton.backends.compiler import GPUTarget

    from collamo_kernels.pairwise_distances import _triton_kernels as kernels

    for kernel in (kernels.measure, kernels.pull):
        constants = {"BLOCK": BLOCK} | ({} if padding else {"valid": None})
        types = dict.fromkeys(kernel.arg_names, "*fp32") | {"valid": "*u8", "atoms": "i32"}
        types |= dict.fromkeys(constants, "constexpr")
        source = triton.compiler.ASTSource(kernel, types, constexprs=constants)
        target = GPUTarget("cuda", capability, 32)
        options = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}
        program = triton.compile(source, target=target, options=options)
        assert ".local" not in program.asm["ptx"]
        assert program.metadata.shared <= 48 * 1024
