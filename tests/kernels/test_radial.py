"""Φ3d: by hand, its options, and the official Transformer-M and Graphormer-3D numbers."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import collamo_kernels as ck
from collamo_kernels.coattention.reference import radial_term
from collamo_kernels.testing import assert_accurate


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
        torch.testing.assert_close(phi[real], wanted[real], atol=2e-5, rtol=0)
        assert phi[~real].abs().max() == 0
