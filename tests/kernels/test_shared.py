"""share_bias and tabulated_together: the rules that decide, and what layers make of the answer."""

from dataclasses import replace

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.coattention import shared
from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.coattention.triton import tables
from collamo_kernels.testing import Case, make_inputs

INPUTS = make_inputs(Case("two", (5, 3), width=8))
PHI = {"hop_bias": INPUTS.hop_bias, "radial": INPUTS.radial}


class Doubled(ck.GaussianRadial):
    """Computes something else than what it inherits."""

    def forward(self, distances, types=None):
        return 2 * super().forward(distances, types)


def reason(monkeypatch, interpreted=True, relations=INPUTS.relations, **changes):
    monkeypatch.setattr(_triton, "INTERPRETED", interpreted)
    monkeypatch.setattr(_triton, "INSTALLED", True)
    arguments = {"layers": 6, "dtype": torch.bfloat16, **PHI} | changes
    return shared.why_in_tile(relations, **arguments)


def test_is_built_where_many_layers_read_it_in_half_precision(monkeypatch):
    assert reason(monkeypatch) is None
    assert reason(monkeypatch, radial=None) is None
    assert reason(monkeypatch, hop_bias=None) is None
    assert reason(monkeypatch, radial=ck.GaussianRadial(2, num_gaussians=129)) is None
    assert reason(monkeypatch, relations=INPUTS.relations.padded()) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"interpreted": False}, "relations are on cpu; only Triton has a builder"),
        ({"layers": 3}, "3 layers < 4"),
        ({"dtype": torch.float32}, "in torch.float32 Φ is twice as large"),
        ({"radial": torch.nn.Identity()}, "radial is no GaussianRadial"),
        ({"radial": Doubled(2)}, "radial is no GaussianRadial"),
        ({"hop_bias": None, "radial": None}, "there is no Φ"),
        ({"relations": ck.Relations()}, "there is no Φ"),
    ],
)
def test_is_looked_up_otherwise(changes, why, monkeypatch):
    assert why in reason(monkeypatch, **changes)


def test_is_looked_up_where_it_is_too_large(monkeypatch):
    monkeypatch.setattr(shared, "BUDGET", 2 * 2 * INPUTS.relations.num_pairs - 1)
    assert "Φ of all heads takes" in reason(monkeypatch)


@pytest.mark.skipif(_triton.INTERPRETED, reason="Triton's interpreter builds Φ on the CPU")
def test_on_the_cpu_every_layer_looks_it_up():
    phi = ck.share_bias(INPUTS.relations, layers=12, dtype=torch.bfloat16, **PHI)
    assert phi == PHI


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_layer_takes_a_dense_bias_and_shows_it_in_its_weights(layout):
    relations = INPUTS.relations if layout == "packed" else INPUTS.relations.padded()
    shape = (2, relations.num_pairs) if layout == "packed" else (2, 2, 5, 5)
    layer = ck.CoAttention(16, 2, hop_buckets=0, radial=None)
    x = torch.randn(8, 16) if layout == "packed" else torch.randn(2, 5, 16)
    bias = torch.zeros(shape)
    bias[..., 0] = -torch.inf  # of the first pair, or of all pairs with the first atom as key
    _, weights = layer(x, relations, bias=bias, need_weights=True)
    _, plain = layer(x, relations, need_weights=True)
    assert (weights[..., 0] == 0).all()
    assert not torch.equal(weights, plain)


@pytest.mark.parametrize(
    "radials",
    [
        [ck.GaussianRadial(2)],
        [ck.GaussianRadial(2), None, torch.nn.Identity(), Doubled(2)],
        [ck.GaussianRadial(2, pair_types=3), ck.GaussianRadial(2, pair_types=3)],
    ],
    ids=["one", "one that is known", "types"],
)
def test_nothing_is_tabulated_together_where_nothing_can_be(radials, monkeypatch):
    monkeypatch.setattr(_triton, "INTERPRETED", True)
    relations = replace(INPUTS.relations, coordinates=INPUTS.relations.coordinates.detach())
    with ck.tabulated_together(relations, radials, dtype=torch.float32):
        assert tables.find(radials[0], relations.farthest, torch.float32) is None


@pytest.mark.skipif(_triton.INTERPRETED, reason="Triton's interpreter tabulates on the CPU")
def test_on_the_cpu_every_layer_tabulates():
    layers = [ck.CoAttention(16, 2, hop_buckets=0) for _ in range(2)]
    x = torch.randn(8, 16)
    alone = [layer(x, INPUTS.relations) for layer in layers]
    radials = [layer.radial for layer in layers]
    with ck.tabulated_together(INPUTS.relations, radials, dtype=torch.float32):
        together = [layer(x, INPUTS.relations) for layer in layers]
    assert all(map(torch.equal, together, alone))
