"""Φ3d: by hand, its options, and the official Transformer-M and Graphormer-3D numbers."""

import json
import math

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.coattention.reference import radial_term
from collamo_kernels.radial import TABLE_TOLERANCE, RadialTable
from collamo_kernels.testing import FACTORS, assert_accurate, assert_all_accurate


def one_gaussian(mu, sigma, **options):
    radial = ck.GaussianRadial(1, 1, head="linear", **options).double()
    with torch.no_grad():
        radial.mu.fill_(mu)
        radial.sigma.fill_(sigma)
        radial.head[0].weight.fill_(1.0)
        radial.head[0].bias.zero_()
    return radial


class TestByHand:
    @pytest.mark.parametrize("sign", [1, -1])
    def test_bell(self, sign):
        radial = one_gaussian(1.0, sign * 0.49)  # s = 0.49 + 0.01
        r = torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
        wanted = [1.0, math.exp(-0.5), math.exp(-2.0)]
        torch.testing.assert_close(radial(r).flatten().tolist(), wanted)

    def test_normalized_is_a_density(self):
        radial = one_gaussian(5.0, 0.7, normalized=True)
        r = torch.linspace(0, 10, 2001, dtype=torch.float64)
        assert radial(r).sum().item() * 0.005 == pytest.approx(1.0)

    def test_pair_types_stretch_and_shift(self):
        radial = one_gaussian(0.0, 0.99, pair_types=2)  # s = 1
        with torch.no_grad():
            radial.gamma.copy_(torch.tensor([1.0, 2.0]))
            radial.beta.copy_(torch.tensor([0.0, 0.5]))
        r = torch.ones(2, dtype=torch.float64)
        one_each = radial(r, torch.tensor([0, 1])).flatten().tolist()
        torch.testing.assert_close(one_each, [math.exp(-0.5), math.exp(-0.5 * 2.5**2)])
        added = radial(r[:1], torch.tensor([[0, 1]])).item()
        assert added == pytest.approx(math.exp(-0.5 * 3.5**2))

    def test_mlp_head(self):
        radial = ck.GaussianRadial(2, 5).double()
        r = torch.rand(7, dtype=torch.float64)
        psi = radial.gaussians(r)
        first, gelu, second = radial.head
        torch.testing.assert_close(radial(r), second(gelu(first(psi))))
        assert gelu.approximate == "none"


def test_start():
    radial = ck.GaussianRadial(4)
    assert radial.mu.shape == radial.sigma.shape == (128,)
    for parameter in (radial.mu, radial.sigma):  # U(0, 3)
        assert 0 <= parameter.min() < 0.3 < 2.7 < parameter.max() <= 3
    assert set(radial.state_dict()) == {
        "mu", "sigma", "head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias",
    }  # fmt: skip


def test_fixed_grid():
    radial = ck.GaussianRadial(2, 10, head="linear", grid="fixed")
    assert radial.mu.tolist() == pytest.approx(list(range(10)))
    assert radial.widths().tolist() == pytest.approx([1.0] * 10)
    assert {name for name, _ in radial.named_parameters()} == {"head.0.weight", "head.0.bias"}
    assert "mu" in radial.state_dict()


@pytest.mark.parametrize("head", ["mlp", "linear"])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("width", [None, 2])
def test_gradcheck(head, normalized, width):
    types = None if width is None else torch.randint(3, (5, width))
    radial = ck.GaussianRadial(
        2, 4, head=head, normalized=normalized, pair_types=None if width is None else 3
    ).double()
    r = torch.rand(5, dtype=torch.float64, requires_grad=True)
    inputs = (r, *radial.parameters())
    assert torch.autograd.gradcheck(lambda r, *_: radial(r, types), inputs)


def test_gradient_stays_finite_at_the_narrowest():
    radial = ck.GaussianRadial(2, 8)
    with torch.no_grad():
        radial.sigma.zero_()
        radial.mu.fill_(1.0)
    r = torch.linspace(0, 30, 100, requires_grad=True)
    grads = torch.autograd.grad(radial(r).square().sum(), [r, *radial.parameters()])
    assert all(x.isfinite().all() for x in grads)


def test_half_precision_parameters_compute_in_float32():
    exact = ck.GaussianRadial(4, 16)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.bfloat16().float())
    r = torch.rand(20) * 10
    yardstick = exact(r)
    low = ck.GaussianRadial(4, 16)
    low.load_state_dict(exact.state_dict())
    assert_accurate(low.bfloat16()(r), yardstick, exact.double()(r.double()))


def test_autocast_changes_nothing():
    radial = ck.GaussianRadial(4, 16)
    r = torch.rand(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = radial(r)
    assert torch.equal(inside, radial(r))


def test_no_distances():
    assert ck.GaussianRadial(3, pair_types=2)(torch.zeros(0), torch.zeros(0).long()).shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_gaussians": 0}, "num_gaussians is 0"),
        ({"num_gaussians": 1, "grid": "fixed"}, "num_gaussians is 1; it must be at least 2"),
        ({"head": "conv"}, "head is 'conv'; use 'mlp' or 'linear'"),
        ({"grid": "even"}, "grid is 'even'"),
        ({"min_sigma": 0.0}, "min_sigma is 0.0"),
        ({"pair_types": 0}, "pair_types is 0"),
    ],
)
def test_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ck.GaussianRadial(**({"num_heads": 2} | options))


def test_wrong_types_are_named():
    r = torch.rand(4)
    with pytest.raises(ValueError, match="types is missing"):
        ck.GaussianRadial(2, pair_types=3)(r)
    with pytest.raises(ValueError, match="types is given, but pair_types=None"):
        ck.GaussianRadial(2)(r, torch.zeros(4).long())
    with pytest.raises(ValueError, match="types has shape"):
        ck.GaussianRadial(2, pair_types=3)(r, torch.zeros(3).long())


@pytest.fixture(params=["transformer_m", "graphormer_3d"])
def official(request, shared_golden):
    """The official tensors, their configuration, and our module with their weights."""
    stem = shared_golden / f"relation_bias_{request.param}"
    load_file = pytest.importorskip("safetensors.torch").load_file
    golden = load_file(stem.with_suffix(".safetensors"))
    config = json.loads(stem.with_suffix(".json").read_text())["config"]
    additive = request.param == "transformer_m"
    radial = ck.GaussianRadial(
        config["num_heads"],
        config["num_kernel"],
        min_sigma=config["sigma_floor"],
        normalized=True,
        pair_types=config["num_edges"] if additive else config["edge_types"],
    )
    prefix = "param.molecule_3d_bias." if additive else "param."
    head = f"{prefix}{'gbf_proj' if additive else 'bias_proj'}"
    weights = {name: golden[f"{prefix}gbf.{theirs}.weight"].flatten() for name, theirs in (
        ("mu", "means"), ("sigma", "stds"), ("gamma", "mul"), ("beta", "bias"),
    )}  # fmt: skip
    for ours, theirs in (("head.0", "layer1"), ("head.2", "layer2")):
        weights |= {f"{ours}.{x}": golden[f"{head}.{theirs}.{x}"] for x in ("weight", "bias")}
    radial.load_state_dict(weights)
    return golden, radial, golden["in.node_type_edge" if additive else "in.edge_type"]


class TestOfficial:
    """Tolerances of the golden set's README: psi 1e-5, Phi3d 2e-5, between two float32 runs."""

    def test_gaussians_and_head(self, official):
        golden, radial, types = official
        pairs = golden["mid.dist"].numel()
        types = types.reshape(pairs, *types.shape[3:])
        distance = golden["mid.dist"].flatten()
        psi = radial.gaussians(radial.affine(distance, types))
        # Three to four times what the official code in float32 is off from itself in float64.
        torch.testing.assert_close(psi, golden["out.psi"].flatten(0, 2), atol=1e-5, rtol=0)
        phi = golden["out.phi3d_unmasked"].permute(0, 2, 3, 1).flatten(0, 2)
        torch.testing.assert_close(radial(distance, types), phi, atol=2e-5, rtol=0)

    def test_through_relations(self, official):
        golden, radial, types = official
        valid = ~golden["in.padding_mask"].bool()
        separate = types.dim() == 4
        relations = ck.Relations(
            coordinates=golden["in.pos"],
            valid=valid,
            pair_types=None if separate else types,
            # Transformer-M numbers the key atom's ids after the query atom's: (t_i, t_j + 512)
            atom_types=torch.stack([types[:, :, 0, 0], types[:, 0, :, 1]], -1)
            if separate
            else None,
        )
        phi = radial_term(relations, radial)
        real = (valid[:, :, None] & valid[:, None, :])[:, None].expand_as(phi)
        wanted = golden["out.phi3d_unmasked"]
        # As above: the official code is off by 6e-6.
        torch.testing.assert_close(phi[real], wanted[real], atol=2e-5, rtol=0)
        assert phi[~real].abs().max() == 0


def trained(radial):
    """Narrow Gaussians, some at the floor, and a head that amplifies."""
    with torch.no_grad():
        radial.sigma.mul_(0.3)
        radial.sigma[::16] = 0
        for layer in radial.head[::2]:
            layer.weight.mul_(2)
    return radial


def at_the_floor(radial):
    with torch.no_grad():
        radial.sigma.zero_()
    return radial


TABLES = {
    "init": lambda: ck.GaussianRadial(8),
    "linear": lambda: ck.GaussianRadial(8, head="linear"),
    "normalized": lambda: ck.GaussianRadial(8, normalized=True),
    "fixed": lambda: ck.GaussianRadial(8, grid="fixed"),
    "fixed linear": lambda: ck.GaussianRadial(8, 20, head="linear", grid="fixed"),
    "at the floor": lambda: at_the_floor(ck.GaussianRadial(8)),
    "few": lambda: ck.GaussianRadial(8, 8, head="linear"),
    "trained": lambda: trained(ck.GaussianRadial(8, min_sigma=0.02)),
    "trained linear": lambda: trained(ck.GaussianRadial(8, head="linear", min_sigma=0.02)),
}


@pytest.fixture(params=TABLES)
def tabulated(request):
    return TABLES[request.param]()


def anywhere(pairs, low=0.0, high=25.0):
    return low + torch.rand(pairs) * (high - low)


class TestTable:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("learning", [False, True])
    @pytest.mark.slow
    def test_error_is_within_the_proven_bound(self, tabulated, dtype, learning):
        exact = tabulated.double().requires_grad_(learning)
        table = exact.table(0.0, 25.0, dtype)  # float64 rows: no rounding hides in the bound
        u = anywhere(100_000).double()
        with torch.no_grad():
            wanted = exact(u)
            error = (table.lookup(u) - wanted).abs().max()
        assert error <= table.errors[0]
        assert table.errors[0] <= 4 * TABLE_TOLERANCE[dtype] * max(1, wanted.abs().max())

    @pytest.mark.parametrize("head", ["linear", "mlp"])
    def test_bound_of_one_gaussian(self, head):
        """No sum makes the bound loose: it must hold at the peak, and where GELU is steep."""
        exact = ck.GaussianRadial(1, 1, head=head, min_sigma=0.05).double()
        with torch.no_grad():
            exact.mu.fill_(3.1)
            exact.sigma.zero_()
            exact.head[0].weight.fill_(1.0 if head == "linear" else 20.0)
        table = exact.table(0.0, 25.0, torch.bfloat16)
        u = anywhere(20_000, 2.8, 3.4).double()
        error = (table.lookup(u) - exact(u)).abs().max()
        assert 0.1 * table.errors[0] * (head == "linear") <= error <= table.errors[0]

    @pytest.mark.parametrize("name", ["init", "linear", "normalized", "few"])
    def test_error_of_the_slope_is_within_the_proven_bound(self, name):
        exact = TABLES[name]().double()
        table = exact.table(0.0, 25.0, derivative=True)
        u = anywhere(20_000).double().requires_grad_()
        for head in range(2):
            (wanted,) = torch.autograd.grad(exact(u)[:, head].sum(), u)
            (actual,) = torch.autograd.grad(table.lookup(u)[:, head].sum(), u)
            assert (actual - wanted).abs().max() <= table.errors[1]

    @pytest.mark.parametrize("learning", [False, True])
    def test_values(self, tabulated, learning):
        with torch.set_grad_enabled(learning):
            table, u = tabulated.table(0.0, 25.0), anywhere(20_000)
        assert table.rows.dtype == torch.float32
        yardstick = tabulated(u)
        assert_accurate(table.lookup(u), yardstick, tabulated.double()(u.double()))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_values_in_half_precision(self, tabulated, dtype):
        table, u = tabulated.table(0.0, 25.0, dtype), anywhere(20_000)
        yardstick = tabulated(u).to(dtype)
        assert_accurate(table.lookup(u).to(dtype), yardstick, tabulated.double()(u.double()))

    def test_gradients_of_parameters(self, tabulated):
        u = anywhere(20_000, 0.5, 9.0)
        cotangent = torch.randn(len(u), 8)

        def gradients(values, radial):
            parameters = dict(radial.named_parameters())
            grads = torch.autograd.grad(values, parameters.values(), cotangent.to(values))
            return dict(zip(parameters, grads, strict=True))

        actual = gradients(tabulated.table(0.0, 9.0).lookup(u), tabulated)
        yardstick = gradients(tabulated(u), tabulated)
        exact = tabulated.double()
        assert_all_accurate(actual, yardstick, gradients(exact(u.double()), exact))

    @pytest.mark.parametrize("name", ["init", "linear", "few"])
    def test_gradient_of_distances(self, name):
        radial = TABLES[name]()
        u = anywhere(20_000).requires_grad_()
        cotangent = torch.randn(len(u), 8)
        table = radial.table(0.0, 25.0, derivative=True)
        (actual,) = torch.autograd.grad(table.lookup(u), u, cotangent)
        (yardstick,) = torch.autograd.grad(radial(u), u, cotangent)
        wide = u.detach().double().requires_grad_()
        (exact,) = torch.autograd.grad(radial.double()(wide), wide, cotangent.double())
        assert_accurate(actual, yardstick, exact, FACTORS["coordinates"])

    @pytest.mark.parametrize("head", ["mlp", "linear"])
    def test_gradcheck(self, head):
        radial = ck.GaussianRadial(2, 4, head=head, normalized=True).double()
        u = torch.rand(5, dtype=torch.float64)

        def lookup(*_):
            return radial.table(0.0, 2.0, torch.bfloat16).lookup(u)

        assert torch.autograd.gradcheck(lookup, tuple(radial.parameters()))

    def test_is_small_where_training_starts(self):
        radial = ck.GaussianRadial(32)
        assert len(radial.table(0.0, 25.0).rows) < 1500
        assert len(radial.table(0.0, 25.0, torch.bfloat16).rows) < 500
        assert len(radial.table(0.0, 25.0, derivative=True).rows) < 5000
        learning = len(radial.table(0.0, 25.0).rows)
        with torch.no_grad():
            assert len(radial.table(0.0, 25.0).rows) < 0.7 * learning

    def test_knots_are_where_the_gaussians_are(self):
        radial = ck.GaussianRadial(2, 1, head="linear", min_sigma=0.05)
        with torch.no_grad():
            radial.mu.fill_(3.0)
            radial.sigma.zero_()
        table = radial.table(0.0, 16.0)
        cells = table.first_knot.diff()
        centres = table.low + (torch.arange(len(cells)) + 0.5) * table.block
        assert cells[(centres - 3).abs() < table.block].min() >= 8
        assert cells[(centres - 3).abs() > 1].max() == 1

    def test_typed_pairs_share_the_table(self):
        radial = ck.GaussianRadial(4, 16, pair_types=3)
        with torch.no_grad():
            radial.gamma.copy_(torch.tensor([1.0, -0.5, 2.0]))
            radial.beta.copy_(torch.tensor([0.0, 0.3, -2.0]))
        r, types = anywhere(5000), torch.randint(3, (5000,))
        u = radial.affine(r, types)
        table = radial.table(u.min().item(), u.max().item())
        yardstick = radial(r, types)
        exact = radial.double()(r.double(), types)
        assert_accurate(table.lookup(u), yardstick, exact)

    def test_too_narrow_for_a_table(self):
        radial = ck.GaussianRadial(4, min_sigma=1e-5)
        with torch.no_grad():
            radial.sigma[:4] = 0
        assert radial.table(0.0, 25.0) is None
        assert radial.table(0.0, 25.0, torch.bfloat16) is None

    def test_parameters_that_are_not_finite(self):
        radial = ck.GaussianRadial(4)
        with torch.no_grad():
            radial.head[2].weight[0, 0] = math.nan
        assert radial.table(0.0, 25.0) is None

    def test_float64_is_for_exact_work(self):
        assert ck.GaussianRadial(4).table(0.0, 25.0, torch.float64) is None

    def test_autocast_changes_nothing(self):
        radial = ck.GaussianRadial(4, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = radial.table(0.0, 9.0).rows
        assert torch.equal(inside, radial.table(0.0, 9.0).rows)

    def test_one_distance(self):
        radial = ck.GaussianRadial(4)
        table = radial.table(0.0, 0.0)
        torch.testing.assert_close(table.lookup(torch.zeros(1)), radial(torch.zeros(1)))

    @pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, math.inf), (math.nan, 1.0)])
    def test_wrong_range_is_named(self, bounds):
        with pytest.raises(ValueError, match="it must be finite and low <= high"):
            ck.GaussianRadial(2).table(*bounds)


class TestLookup:
    """A cubic is reproduced exactly, whatever the cells."""

    def cubic(self):
        knots = torch.tensor([2.0, 4.0, 4.5, 5.0, 5.5, 6.0], dtype=torch.float64)
        rows = torch.stack([knots**3 - knots, 3 * knots**2 - 1], 1)[..., None]
        slopes = torch.stack([3 * knots**2 - 1, 6 * knots], 1)[..., None]
        first_knot = torch.tensor([0, 1, 5], dtype=torch.int32)
        return RadialTable(rows, first_knot, 2.0, 2.0, errors=[0.0, 0.0], slope_rows=slopes)

    def test_inside(self):
        u = torch.linspace(2, 6, 201, dtype=torch.float64, requires_grad=True)
        values = self.cubic().lookup(u)[:, 0]
        torch.testing.assert_close(values, u**3 - u)
        (slope,) = torch.autograd.grad(values.sum(), u)
        torch.testing.assert_close(slope[1:-1], (3 * u**2 - 1)[1:-1].detach())

    def test_outside_is_the_end(self):
        ends = self.cubic().lookup(torch.tensor([0.0, -1e9, 7.0, 1e9], dtype=torch.float64))
        assert ends[:, 0].tolist() == [6.0, 6.0, 210.0, 210.0]

    def test_nothing(self):
        assert self.cubic().lookup(torch.zeros(0, dtype=torch.float64)).shape == (0, 1)


@pytest.mark.parametrize("grid", ["learned", "fixed"])
def test_made_nowhere_it_can_be_drawn_later(grid):
    with torch.device("meta"):
        radial = ck.GaussianRadial(3, grid=grid, pair_types=4)
    radial.to_empty(device="cpu")
    radial.reset_parameters()
    direct = ck.GaussianRadial(3, grid=grid, pair_types=4)
    for name, value in direct.state_dict().items():
        if name in ("gamma", "beta") or (grid == "fixed" and name in ("mu", "sigma")):
            assert torch.equal(radial.state_dict()[name], value), name
        else:
            assert radial.state_dict()[name].isfinite().all(), name
    assert radial.mu.max() == 9 if grid == "fixed" else 1 < radial.mu.max() <= 3
