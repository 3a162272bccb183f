"""The compiled knots of a radial table: against their definition, registration, bits."""

import pytest
import torch
from torch.library import opcheck

import collamo_kernels as ck
from collamo_kernels.extension import why_absent
from collamo_kernels.radial import tabulation
from collamo_kernels.radial.bounds import derivative_bounds
from collamo_kernels.radial.derivatives import derivatives
from collamo_kernels.testing import TABLE_FACTOR, assert_accurate, required_backends

ABSENT = why_absent() if "cpu" not in required_backends() else None
pytestmark = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))

NAMES = ("centre", "width", "weight", "bias", "weight2", "bias2")
# Gaussians, hidden (None: linear), heads: whole vectors, parts of one, and a single lane.
SHAPES = {
    "graphormer": (128, 128, 32),
    "odd": (37, 21, 5),
    "one": (1, 1, 1),
    "linear": (128, None, 32),
    "odd linear": (37, None, 17),
}


def rows(u, *parameters, used=None, curvature=False):
    return torch.ops.collamo_kernels.radial_rows(u, used, *parameters, curvature)


def grid(*arguments):
    """u, first_knot and errors where nothing is known of the places."""
    parameters, demands = arguments[:6], arguments[6:]
    found = torch.ops.collamo_kernels.radial_grid(*parameters, None, 0.0, 0.0, *demands)
    assert not len(found[3])
    return found[:3]


@pytest.fixture(params=SHAPES)
def parameters(request):
    """Leaves that ask for gradients, spread so that every branch of GELU is met."""
    gaussians, hidden, heads = SHAPES[request.param]
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return 2 * torch.randn(shape, generator=draw)

    first = heads if hidden is None else hidden
    found = [normal(gaussians) + 1, normal(gaussians).abs() + 0.3]
    found += [normal(first, gaussians), normal(first)]
    found += [None, None] if hidden is None else [normal(heads, hidden), normal(heads)]
    return tuple(None if x is None else x.requires_grad_() for x in found)


def double(tensors):
    return tuple(None if x is None else x.detach().double().requires_grad_() for x in tensors)


U = torch.linspace(-1, 12, 101)  # three whole tiles and a part of one
USED = torch.arange(len(U)) % 3 > 0


class TestAgainstTheDefinition:
    def test_rows(self, parameters):
        ours, slope_rows = rows(U, *parameters, curvature=True)
        plain = derivatives(U, *parameters, order=2)
        exact = derivatives(U.double(), *double(parameters), order=2)
        for order in range(2):
            assert_accurate(ours[:, order], plain[order], exact[order], name=f"order {order}")
        for order in range(2):
            assert_accurate(slope_rows[:, order], plain[order + 1], exact[order + 1])
        alone, nothing = rows(U, *parameters)
        assert torch.equal(alone, ours)
        assert nothing.numel() == 0

    def test_gradients(self, parameters):
        cotangent = torch.randn(len(U), 2, len(rows(U, *parameters)[0][0, 0]))

        def gradients(values, tensors):
            given = [x for x in tensors if x is not None]
            return torch.autograd.grad(values, given, cotangent.to(values))

        ours = gradients(rows(U, *parameters)[0], parameters)
        plain, exact = (
            gradients(torch.stack(derivatives(u, *x, order=1), 1), x)
            for u, x in ((U, parameters), (U.double(), double(parameters)))
        )
        for name, *grads in zip(NAMES, ours, plain, exact, strict=False):
            assert_accurate(*grads, TABLE_FACTOR, name)

    @pytest.mark.parametrize("slopes", [0, 1])
    @pytest.mark.parametrize("share", [0.0, 0.25])
    def test_grid(self, parameters, slopes, share):
        low, block, blocks, tolerance, slack = -1.0, 0.5, 26, 1e-3, 2.0
        u, first_knot, errors = grid(
            *parameters, low, block, blocks, slopes, tolerance, slack, share, 2**16
        )
        centres = low + block * (torch.arange(blocks).double() + 0.5)
        exact = double(parameters)
        centre, width, weight, _, weight2, _ = exact
        weights = weight.abs(), None if weight2 is None else weight2.abs()
        bounds, gaussian = derivative_bounds(
            centres, block / 2, centre, width, *weights, 4 + slopes
        )
        values = derivatives(centres, *exact, order=slopes)
        scale = torch.stack([x.abs().max().clamp(min=1) for x in values]) * slack
        worst = (bounds / scale).amax(1)
        if share:
            worst = torch.maximum(worst, gaussian / share)
        exponent = (block * (worst / (384 * tolerance)) ** 0.25).clamp(min=1).log2()
        cells = first_knot.diff().double()
        near_a_power = (exponent - exponent.round()).abs() < 1e-4
        assert torch.equal(cells.log2()[~near_a_power], exponent.ceil()[~near_a_power])
        assert near_a_power[exponent > 0].sum() <= 1
        wanted = (bounds * (block / cells[:, None]) ** 4).amax(0) / 384
        # Bounds of an error, in float32, of fourth derivatives that cancel: four digits do.
        torch.testing.assert_close(errors.double(), wanted, rtol=1e-4, atol=0)
        assert first_knot[0] == 0
        assert first_knot[-1] == len(u) - 1
        starts = low + block * torch.arange(blocks + 1)
        assert torch.equal(u[first_knot.long()], starts.float())
        lengths = u.diff()
        assert torch.equal(lengths, (block / cells).repeat_interleave(cells.long()).float())

    def test_no_grid_of_too_many_knots(self, parameters):
        demands = -1.0, 0.5, 26, 0, 1e-3, 1.0, 0.0
        knots = len(grid(*parameters, *demands, 2**16)[0])
        assert len(grid(*parameters, *demands, knots)[0]) == knots
        assert len(grid(*parameters, *demands, knots - 1)[0]) == 0

    def test_second_derivative(self, parameters):
        """Of a fixed functional of the first gradients, so that their rounding plays no part."""

        def second(values, tensors):
            tensors = [x for x in tensors if x is not None]
            cotangent = torch.linspace(-1, 1, values.numel()).view(values.shape).to(values)
            cotangent.requires_grad_()
            first = torch.autograd.grad(values, tensors, cotangent, create_graph=True)
            loss = sum((g * torch.linspace(-1, 2, g.numel()).view(g.shape)).sum() for g in first)
            # The last bias moves every value alike: no first gradient knows of it.
            return torch.autograd.grad(loss, [cotangent, *tensors], materialize_grads=True)

        ours = second(rows(U, *parameters)[0], parameters)
        plain, exact = (
            second(torch.stack(derivatives(u, *x, order=1), 1), x)
            for u, x in ((U, parameters), (U.double(), double(parameters)))
        )
        assert len(ours) == 1 + sum(x is not None for x in parameters)
        for name, *grads in zip(("grad", *NAMES), ours, plain, exact, strict=False):
            assert_accurate(*grads, TABLE_FACTOR, name)


class TestRegistration:
    def test_rows(self, parameters):
        for used in (None, USED):
            operator = torch.ops.collamo_kernels.radial_rows.default
            opcheck(operator, (U, used, *parameters, True))

    @pytest.mark.slow
    def test_backward(self, parameters):
        grad = torch.randn_like(rows(U, *parameters)[0]).requires_grad_()
        operator = torch.ops.collamo_kernels.radial_rows_backward.default
        for used in (None, USED):
            opcheck(operator, (grad, U, used, *parameters))

    def test_grid(self, parameters):
        given = [x if x is None else x.detach() for x in parameters]
        operator = torch.ops.collamo_kernels.radial_grid.default
        for occurring in (None, torch.arange(50) > 20):
            places = occurring, -1.0, 12.0
            opcheck(operator, (*given, *places, -1.0, 0.5, 26, 1, 1e-3, 1.0, 0.25, 2**16))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_every_time(parameters, threads):
    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            values, _ = rows(U, *parameters)
            given = [x for x in parameters if x is not None]
            return values, *torch.autograd.grad(values, given, values.detach().cos())
        finally:
            torch.set_num_threads(before)

    first = run(1)
    for _ in range(20):
        assert all(map(torch.equal, run(threads), first))


class TestTable:
    """`GaussianRadial.table` through the operators and through the definition."""

    @pytest.mark.parametrize("head", ["mlp", "linear"])
    @pytest.mark.parametrize("normalized", [False, True])
    @pytest.mark.parametrize("derivative", [False, True])
    @pytest.mark.parametrize("learning", [False, True])
    def test_is_the_same_grid(self, head, normalized, derivative, learning, monkeypatch):
        module = ck.GaussianRadial(4, head=head, normalized=normalized).requires_grad_(learning)
        ours = module.table(0.0, 25.0, derivative=derivative)
        monkeypatch.setattr(tabulation, "serves", lambda _: False)
        plain = module.table(0.0, 25.0, derivative=derivative)
        assert torch.equal(ours.first_knot, plain.first_knot)
        assert ours.errors == pytest.approx(plain.errors, rel=1e-4)
        assert (ours.slope_rows is None) is (plain.slope_rows is None)

    @pytest.mark.parametrize("parts", [1, 7, 4096])
    def test_is_worked_out_where_distances_occur(self, parts):
        """And nowhere else, so far as the parts tell."""
        module, draw = ck.GaussianRadial(4), torch.Generator().manual_seed(0)
        r = torch.cat([torch.zeros(1), 0.9 + 9 * torch.rand(60, generator=draw) ** 2])
        occurring = torch.zeros(parts, dtype=torch.bool)
        occurring[(r / 25 * parts).long()] = True
        every = module.table(0.0, 25.0, derivative=True)
        some = module.table(0.0, 25.0, derivative=True, occurring=occurring)
        assert torch.equal(every.first_knot, some.first_knot)
        assert torch.equal(every.lookup(r), some.lookup(r))
        left_out = (some.rows == 0).all(2).all(1)
        assert torch.equal(every.rows[~left_out], some.rows[~left_out])
        assert torch.equal(every.slope_rows[~left_out], some.slope_rows[~left_out])
        assert left_out.float().mean() > {1: -1, 7: 0.01, 4096: 0.7}[parts]

    @pytest.mark.parametrize(
        ("occurring", "message"),
        [
            (torch.ones(5), "occurring must be bool, and not empty"),
            (torch.ones(0, dtype=torch.bool), "occurring must be bool, and not empty"),
        ],
    )
    def test_bad_places(self, occurring, message):
        with pytest.raises(ValueError, match=message):
            ck.GaussianRadial(4).table(0.0, 25.0, occurring=occurring)

    @pytest.mark.parametrize("name", ["mu", "sigma", "0.weight", "0.bias", "2.weight", "2.bias"])
    def test_none_where_a_parameter_is_not_a_number(self, name):
        module = ck.GaussianRadial(4)
        parameter = dict((module if "." not in name else module.head).named_parameters())[name]
        with torch.no_grad():
            parameter.view(-1)[-1] = torch.nan
        assert module.table(0.0, 25.0) is None

    def test_large_activations(self):
        """GELU far from 0 on either side, where the normal distribution is 0 or 1."""
        module = ck.GaussianRadial(4, 128)
        far = torch.tensor([-1e4, -100, -7, -5.9, 5.9, 7, 100, 1e4])
        with torch.no_grad():
            module.head[0].bias.copy_(far.repeat(16))
        arguments = module.float_parameters()
        plain = derivatives(U, *arguments, order=1)
        exact = derivatives(U.double(), *double(arguments), order=1)
        for order in range(2):
            assert_accurate(rows(U, *arguments)[0][:, order], plain[order], exact[order])


def test_knots_without_a_gradient_cost_nothing(parameters):
    """The bits are those of the other knots alone, so the rest were never worked out."""
    parameters = [x if x is None else x.detach() for x in parameters]
    heads = next(x for x in reversed(parameters) if x is not None).shape[0]
    grad = torch.randn(len(U), 2, heads, generator=torch.Generator().manual_seed(1))
    used = torch.arange(len(U)) % 3 > 0
    grad[~used] = 0
    backward = torch.ops.collamo_kernels.radial_rows_backward
    some = backward(grad[used], U[used], None, *parameters)
    for given in (None, used):
        every = backward(grad, U, given, *parameters)
        assert all(torch.equal(a, b) for a, b in zip(every, some, strict=True))


def test_knots_that_are_not_used(parameters):
    """They are 0 and have no gradient; the others are what they would be alone."""
    some, slopes = rows(U, *parameters, used=USED, curvature=True)
    alone, slopes_alone = rows(U[USED], *parameters, curvature=True)
    for found, wanted in ((some, alone), (slopes, slopes_alone)):
        assert torch.equal(found[USED], wanted)
        assert not found[~USED].any()
    given = [x for x in parameters if x is not None]
    grad = torch.randn(some.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(some, given, grad, retain_graph=True)
    wanted = torch.autograd.grad(alone, given, grad[USED])
    assert all(map(torch.equal, found, wanted))


def test_second_derivative_knows_the_used_knots(parameters):
    grad = torch.randn(len(U), 2, 1, generator=torch.Generator().manual_seed(1))

    def second(run, dtype):
        learned = [x if x is None else x.detach().to(dtype).requires_grad_() for x in parameters]
        given = [x for x in learned if x is not None]
        cotangent = grad.to(dtype).expand(-1, -1, given[-1].shape[0])
        first = torch.autograd.grad(run(*learned), given, cotangent, create_graph=True)
        total = sum(x.sin().sum() for x in first)
        return torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True)

    def definition(*parameters):
        u = U.to(parameters[0].dtype)
        found = torch.stack(derivatives(u, *parameters, order=1), 1)
        return found * USED[:, None, None]

    ours = second(lambda *parameters: rows(U, *parameters, used=USED)[0], torch.float32)
    plain, exact = second(definition, torch.float32), second(definition, torch.float64)
    for result, yardstick, truth in zip(ours, plain, exact, strict=True):
        assert_accurate(result, yardstick, truth, factor=TABLE_FACTOR)


BAD = {
    "width must be float32": {"width": torch.ones(3).double()},
    "centre has the wrong number of elements": {"centre": torch.zeros(4)},
    "bias has the wrong number of elements": {"bias": torch.zeros(1)},
    r"weights must be \[out, in\]": {"weight": torch.zeros(6)},
    "weight must not be empty": {"weight": torch.zeros(0, 3)},
    r"weight2 must be \[H, K'\]": {"weight2": torch.zeros(2, 5), "bias2": torch.zeros(2)},
    "weight2 and bias2 go together": {"weight2": torch.zeros(2, 2)},
}


@pytest.mark.parametrize("message", BAD)
def test_the_operators_guard_their_memory(message):
    arguments = {"centre": torch.zeros(3), "width": torch.ones(3), "weight": torch.zeros(2, 3)}
    arguments |= {"bias": torch.zeros(2), "weight2": None, "bias2": None} | BAD[message]
    with pytest.raises(ValueError, match=message):
        rows(U, *arguments.values())
    grad = torch.zeros(len(U), 2, 2)
    with pytest.raises(ValueError, match=message):
        torch.ops.collamo_kernels.radial_rows_backward(grad, U, None, *arguments.values())


@pytest.mark.slow
def test_every_instruction_set(on_instruction_set):
    on_instruction_set(__file__, "TestAgainstTheDefinition or large or threads")
