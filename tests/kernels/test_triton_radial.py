"""The radial table that Triton makes, in its interpreter (by ``test_triton.py``) or on a GPU."""

import dataclasses

import pytest
import torch
from torch.library import opcheck

import collamo_kernels as ck
from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.radial import FIXED_KNOTS, TABLE_TOLERANCE
from collamo_kernels.radial.derivatives import derivatives
from collamo_kernels.radial.parameters import join, separate
from collamo_kernels.testing import TABLE_FACTOR, assert_accurate, hardware_rounding

pytestmark = pytest.mark.skipif(
    not (_triton.INTERPRETED or torch.cuda.is_available()),
    reason="runs on a GPU, or in `make test-interpreter`",
)
DEVICE = "cpu" if _triton.INTERPRETED else "cuda"

REACH = 19.0  # Å
# Cotangents that a gradient is tried with. The narrowest Gaussian has nearly all of the error of
# dL/dμ and dL/ds, whose terms are of one size; over 25 draws ours was 1.4 and 0.9 times PyTorch's
# (root mean square), but of a single number PyTorch's may be ten times below what it usually is.
DRAWS = 3
OTHER = {"centre": 1, "width": 0}


def narrow(radial, by=0.3):
    """As after training: narrow Gaussians, some at the floor, and a head that amplifies."""
    with torch.no_grad():
        radial.sigma.mul_(by)
        radial.sigma[::16] = 0
        for layer in radial.head[::2]:
            layer.weight.mul_(2)
    return radial


def typed(radial, gammas=(1.0, -0.5, 2.0), betas=(0.0, 0.3, -2.0)):
    with torch.no_grad():
        radial.gamma.copy_(torch.tensor(gammas))
        radial.beta.copy_(torch.tensor(betas))
    return radial


# The kernels take 64 (or 32) Gaussians and 32 hidden units at a time. The interpreter works erf out
# number by number, so MLP heads are no larger than it takes to need several turns.
MODULES = {
    "mlp": lambda: ck.GaussianRadial(8, 40, min_sigma=0.1),
    "linear": lambda: ck.GaussianRadial(32, 20, head="linear"),
    "normalized": lambda: ck.GaussianRadial(8, 20, normalized=True),
    "normalized linear": lambda: ck.GaussianRadial(5, 37, head="linear", normalized=True),
    "fixed": lambda: ck.GaussianRadial(8, 20, grid="fixed"),
    "trained": lambda: narrow(ck.GaussianRadial(3, 20, min_sigma=0.05)),
    "one of everything": lambda: ck.GaussianRadial(1, 1),
    "many heads": lambda: ck.GaussianRadial(64, 10),
    "many Gaussians": lambda: ck.GaussianRadial(4, 130, head="linear", min_sigma=0.3),
    "pair types": lambda: typed(ck.GaussianRadial(4, 16, pair_types=3)),
    "half precision": lambda: ck.GaussianRadial(4, 16).half(),
}
KINDS = [
    pytest.param(torch.float32, False, id="float32"),
    pytest.param(torch.float32, True, id="float32-derivative"),
    pytest.param(torch.bfloat16, True, id="bfloat16-derivative"),
]


@pytest.fixture(autouse=True)
def on_device():
    """New tensors and modules are on the GPU where there is one."""
    with torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Small tables; in the interpreter fewer, larger blocks."""
    for dtype in FIXED_KNOTS:
        monkeypatch.setitem(FIXED_KNOTS, dtype, 2048)
    if not _triton.INTERPRETED:
        return
    launch = pytest.importorskip("collamo_kernels.radial.triton.launch")
    larger = dataclasses.replace(launch.RADIAL, blocks=64, places=64, entries=4096)
    monkeypatch.setattr(launch, "RADIAL", larger)


@pytest.fixture(params=MODULES)
def radial(request):
    torch.manual_seed(0)
    return MODULES[request.param]()


def tabulate(radial, dtype=torch.float32, derivative=False, terms=1, reach=REACH):
    from collamo_kernels.radial.triton.op import tabulate

    affine = None
    if radial.pair_types is not None:
        affine = torch.stack([radial.gamma, radial.beta], 1)
    return tabulate(radial, torch.tensor(reach), affine, terms, dtype, derivative)


def by_definition(radial, dtype=torch.float32, derivative=False, terms=1):
    low, high = torch.tensor(0.0), torch.tensor(REACH)
    if radial.pair_types is not None:
        u = torch.stack([radial.beta, radial.gamma * REACH + radial.beta])
        low, high = terms * u.min(), terms * u.max()
    return radial.table(low, high, dtype, derivative, fixed_size=True)


@pytest.mark.parametrize(("dtype", "derivative"), KINDS)
def test_is_the_grid_of_the_definition(radial, dtype, derivative):
    table, defined = tabulate(radial, dtype, derivative), by_definition(radial, dtype, derivative)
    first, per_block = table.geometry
    assert (first / per_block, 1 / per_block) == (defined.low, defined.block)
    assert torch.equal(table.first_knot, defined.first_knot)
    cells = table.first_knot[-1]
    assert torch.equal(table.lengths[:cells], defined.lengths[:cells])
    assert table.fits == defined.fits == 1
    # Bounds of an error, both in float32 and summed in other orders: three digits do.
    torch.testing.assert_close(table.errors, defined.errors.float(), rtol=1e-3, atol=0)
    assert (table.slope_rows.numel() > 0) is derivative


@pytest.mark.parametrize("terms", [1, 2])
def test_covers_every_u(terms):
    radial = typed(ck.GaussianRadial(2, 8, pair_types=3), (1.0, -0.7, 0.4), (0.1, -3.0, 5.0))
    table = tabulate(radial, terms=terms)
    first, per_block = table.geometry.tolist()
    u = torch.stack([radial.beta, radial.gamma * REACH + radial.beta])
    assert first / per_block <= terms * u.min()
    assert terms * u.max() <= (first + len(table.first_knot) - 1) / per_block
    assert torch.equal(table.first_knot, by_definition(radial, terms=terms).first_knot)


def test_rows_are_values_and_slopes(radial):
    table = tabulate(radial, derivative=True)
    used = int(table.first_knot[-1]) + 1
    knots = table.knots[:used]
    assert knots.diff().min() > 0
    parameters = radial.float_parameters()
    with hardware_rounding(DEVICE):
        plain = derivatives(knots, *parameters, order=2)
    exact = derivatives(knots.double(), *double(parameters), order=2)
    for order, rows in enumerate((table.rows[:, 0], table.rows[:, 1], table.slope_rows[:, 1])):
        assert_accurate(rows[:used], plain[order], exact[order], name=f"order {order}")
    assert torch.equal(table.slope_rows[:, 0], table.rows[:, 1])
    assert table.rows[used:].abs().sum() == 0


def double(parameters):
    return [None if x is None else x.detach().double().requires_grad_() for x in parameters]


def test_gradients(radial):
    """Of every parameter, through a cotangent on every row; rows to spare send nothing back."""
    parameters = [x.detach().requires_grad_() for x in radial.float_parameters() if x is not None]
    missing = [None] * (6 - len(parameters))
    table = tabulate_parameters(parameters, radial)
    used = int(table.first_knot[-1]) + 1
    knots, cotangents = table.knots[:used], torch.randn(DRAWS, *table.rows.shape)

    def gradients(rows, inputs):
        draws = [
            torch.autograd.grad(rows, inputs, x[: len(rows)].to(rows), retain_graph=True)
            for x in cotangents
        ]
        return [torch.stack(x) for x in zip(*draws, strict=True)]

    def plain(knots, *inputs):
        return torch.stack(derivatives(knots, *inputs, *missing, order=1), 1)

    wide = [x.detach().double().requires_grad_() for x in parameters]
    ours = gradients(table.rows, parameters)
    yardstick = gradients(plain(knots, *parameters), parameters)
    exact = gradients(plain(knots.double(), *wide), wide)
    names = ("centre", "width", "weight", "bias", "weight2", "bias2")
    for name, *results in zip(names, ours, yardstick, exact, strict=False):
        at = OTHER.get(name)
        beside = [] if at is None else [(yardstick[at], exact[at])]
        assert_accurate(*results, TABLE_FACTOR, name, beside)


def tabulate_parameters(parameters, radial):
    from collamo_kernels.radial.triton.op import FixedTable

    hidden = radial.num_gaussians if radial.head_kind == "mlp" else 0
    sizes = radial.num_gaussians, hidden, radial.num_heads
    layers, numbers = join(parameters), (TABLE_TOLERANCE[torch.float32], False, 2048)
    made = torch.ops.collamo_kernels.radial_table(
        torch.tensor(REACH), None, layers, 1, *sizes, *numbers
    )
    return FixedTable(*made, layers, sizes)


def test_every_parameter_of_the_module_learns(radial):
    table = tabulate(radial, torch.float16)
    parameters = {n: x for n, x in radial.named_parameters() if n not in ("gamma", "beta")}
    results = torch.autograd.grad(table.rows, parameters.values(), torch.randn_like(table.rows))
    for (name, x), gradient in zip(parameters.items(), results, strict=True):
        assert gradient.dtype == x.dtype
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_same_bits_every_time(head):
    radial = ck.GaussianRadial(3, 12, head=head, min_sigma=0.1)

    def run():
        table = tabulate(radial, derivative=True)
        (gradient,) = torch.autograd.grad(table.rows, table.layers, table.rows.detach().cos())
        return *table[:8], gradient

    assert all(map(torch.equal, run(), run()))


@pytest.mark.parametrize("head", ["mlp", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_several_together_are_each_by_itself(head, dtype, monkeypatch):
    """Bit by bit, with their gradients: one that does not fit among those that do."""
    from collamo_kernels.radial.triton.op import tabulate_together

    monkeypatch.setitem(FIXED_KNOTS, dtype, 512)
    torch.manual_seed(0)
    radials = [ck.GaussianRadial(3, 12, head=head, min_sigma=x) for x in (0.2, 1e-5, 0.5)]
    with torch.no_grad():
        radials[1].sigma.zero_()
    together = tabulate_together(radials, torch.tensor(REACH), dtype)
    for radial, table in zip(radials, together, strict=True):
        alone = tabulate(radial, dtype)
        assert table.sizes == alone.sizes
        for name in (*alone._fields[:8], "layers"):
            assert torch.equal(getattr(table, name), getattr(alone, name)), name
        parameters = list(radial.parameters())
        cotangent = torch.randn_like(alone.rows)
        ours = torch.autograd.grad(table.rows, parameters, cotangent, retain_graph=True)
        assert all(map(torch.equal, ours, torch.autograd.grad(alone.rows, parameters, cotangent)))
    assert [int(x.fits) for x in together] == [1, 0, 1]


def test_second_derivative_of_several():
    torch.manual_seed(0)
    numbers = 6, 6, 3, TABLE_TOLERANCE[torch.float16], False, 256
    layers = torch.stack([tabulate(ck.GaussianRadial(3, 6)).layers.detach() for _ in range(2)])

    def table(layers):
        return torch.ops.collamo_kernels.radial_table(torch.tensor(2.0), None, layers, 1, *numbers)[
            0
        ]

    def second(layers, rows_of):
        layers = layers.clone().requires_grad_()
        rows = rows_of(layers)
        cotangent = torch.linspace(-1, 1, rows.numel()).view(rows.shape).requires_grad_()
        (first,) = torch.autograd.grad(rows, layers, cotangent, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [cotangent, layers])

    one_by_one = second(layers, lambda x: torch.stack([table(y) for y in x]))
    for x, y in zip(second(layers, table), one_by_one, strict=True):
        torch.testing.assert_close(x, y)


def test_second_derivative():
    torch.manual_seed(0)
    layers = tabulate(ck.GaussianRadial(3, 6)).layers.detach()
    sizes, reach = (6, 6, 3), torch.tensor(2.0)

    def second(layers, rows_of):
        layers = layers.clone().requires_grad_()
        rows = rows_of(layers)
        cotangent = torch.linspace(-1, 1, rows.numel()).view(rows.shape).to(rows).requires_grad_()
        (first,) = torch.autograd.grad(rows, layers, cotangent, create_graph=True)
        loss = (first * torch.linspace(-1, 2, len(first)).to(first)).sum()
        return torch.autograd.grad(loss, [cotangent, layers])

    operator = torch.ops.collamo_kernels.radial_table
    numbers = None, *sizes, TABLE_TOLERANCE[torch.float16], False, 256
    table = operator(reach, numbers[0], layers, 1, *numbers[1:])
    used = torch.arange(256) <= table[4][-1]

    def plain(layers):
        parameters = separate(layers, *sizes)
        rows = torch.stack(derivatives(table[2].to(layers), *parameters, order=1), 1)
        return rows * used[:, None, None]

    ours = second(layers, lambda x: operator(reach, None, x, 1, *numbers[1:])[0])
    for x, y, exact in zip(
        ours, second(layers, plain), second(layers.double(), plain), strict=True
    ):
        assert_accurate(x, y, exact, TABLE_FACTOR)


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_opcheck(head):
    torch.manual_seed(0)
    radial = typed(ck.GaussianRadial(3, 6, head=head, min_sigma=0.3, pair_types=3))
    table = tabulate(radial, torch.float16)
    layers = table.layers.detach().requires_grad_()
    affine = torch.stack([radial.gamma, radial.beta], 1).detach()
    sizes = table.sizes
    numbers = 1, *sizes, TABLE_TOLERANCE[torch.float16], True, 256
    operators = torch.ops.collamo_kernels
    opcheck(operators.radial_table.default, (torch.tensor(3.0), affine, layers, *numbers))
    table = operators.radial_table(torch.tensor(3.0), affine, layers.detach(), *numbers)
    grad = torch.randn_like(table[0]).requires_grad_()
    arguments = grad, table[2], table[4], layers, *sizes
    opcheck(operators.radial_table_backward.default, arguments)


class TestDoesNotFit:
    """The table says on the device that it must not be read."""

    def test_too_narrow(self):
        radial = ck.GaussianRadial(4, min_sigma=1e-5)
        with torch.no_grad():
            radial.sigma[:4] = 0
        assert tabulate(radial).fits == by_definition(radial).fits == 0

    @pytest.mark.parametrize("head", ["mlp", "linear"])
    def test_a_parameter_is_not_a_number(self, head, monkeypatch):
        monkeypatch.setitem(FIXED_KNOTS, torch.float16, 256)
        radial = ck.GaussianRadial(4, 12, head=head, min_sigma=0.3)
        assert tabulate(radial, torch.float16).fits == 1
        for name, _ in list(radial.named_parameters()):
            radial = ck.GaussianRadial(4, 12, head=head, min_sigma=0.3)
            with torch.no_grad():
                radial.get_parameter(name).view(-1)[-1] = torch.nan
            assert tabulate(radial, torch.float16).fits == 0, name

    @pytest.mark.parametrize("reach", [torch.inf, torch.nan])
    def test_the_range_is_not_finite(self, reach):
        assert tabulate(ck.GaussianRadial(4, 12), reach=reach).fits == 0


class TestOtherModules:
    """What the kernels do not know goes through PyTorch, at every pair."""

    def test_one_that_inherits(self):
        class Doubled(ck.GaussianRadial):
            def forward(self, distances, types=None):
                return 2 * super().forward(distances, types)

        class Named(ck.GaussianRadial):
            name = "mine"

        assert not _triton.tabulated(Doubled(2))
        assert _triton.tabulated(Named(2))

    def test_another_head(self):
        radial = ck.GaussianRadial(2, 8)
        assert _triton.tabulated(radial)
        radial.head[0] = torch.nn.Linear(8, 8, bias=False)
        assert not _triton.tabulated(radial)
        assert not _triton.tabulated(torch.nn.Linear(1, 2))
