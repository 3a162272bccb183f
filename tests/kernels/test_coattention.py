"""The attention: by hand, against float64, under symmetries, and at its edges."""

import dataclasses
import math
from types import MethodType

import pytest
import torch
from torch import nn

import collamo_kernels as ck
from collamo_kernels.testing import (
    CASES,
    Case,
    assert_accurate,
    assert_all_accurate,
    attend,
    attend_eagerly,
    device_of,
    make_inputs,
    one_rounding_away,
    random_graphs,
    with_gradients,
)

BY_NAME = {case.name: case for case in CASES}
LAYOUTS = ("padded", "packed")
EVERYTHING = Case("everything", (5, 3), bias=True, conformer_missing=True, types="pair", width=4)
SINKS = pytest.mark.parametrize("sink", [False, True], ids=["plain", "sink"])


def ids(case):
    return case.name.replace(" ", "-")


def two_atoms(**relations):
    """Two atoms whose q·k is 0, so that the logits are the biases alone; values 1 and 3."""
    q = torch.zeros(1, 1, 2, 1, dtype=torch.float64)
    v = torch.tensor([1.0, 3.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    return {"q": q, "k": q, "v": v, "relations": ck.Relations(**relations)}


def mix(logit_1, logit_3):
    """What attention over the values 1 and 3 gives for these logits."""
    a, b = math.exp(logit_1), math.exp(logit_3)
    return (a + 3 * b) / (a + b)


class TestByHand:
    def test_no_bias_is_the_mean(self):
        out = ck.coattention(**two_atoms())
        torch.testing.assert_close(out.flatten().tolist(), [2.0, 2.0])

    def test_content(self):
        q = torch.tensor([2.0, 1.0], dtype=torch.float64).reshape(1, 1, 2, 1)
        out = ck.coattention(q, q, two_atoms()["v"], scale=0.5)
        torch.testing.assert_close(out.flatten().tolist(), [mix(2.0, 1.0), mix(1.0, 0.5)])

    def test_scale_is_one_over_root_width(self):
        q = torch.ones(1, 1, 2, 4, dtype=torch.float64)
        k = torch.stack([torch.zeros(4), torch.ones(4)]).double()[None, None]
        v = torch.tensor([1.0, 3.0]).double().reshape(1, 1, 2, 1).expand(1, 1, 2, 4)
        out = ck.coattention(q, k, v)
        torch.testing.assert_close(out[0, 0, :, 0].tolist(), [mix(0, 2), mix(0, 2)])

    @pytest.mark.parametrize(
        ("hop", "column"), [(1, 1), (2, 2), (3, 2), (253, 2), (254, 2), (255, 3)]
    )
    def test_hops_read_their_column(self, hop, column):
        hops = torch.tensor([[[0, hop], [hop, 0]]], dtype=torch.uint8)
        table = torch.tensor([[0.3, -1.0, 0.7, 2.0]], dtype=torch.float64)  # S = 4
        out = ck.coattention(**two_atoms(hops=hops), hop_bias=table)
        other = float(table[0, column])
        torch.testing.assert_close(out.flatten().tolist(), [mix(0.3, other), mix(other, 0.3)])

    def test_direction_is_query_to_key(self):
        hops = torch.tensor([[[0, 1], [255, 0]]], dtype=torch.uint8)
        table = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64)
        out = ck.coattention(**two_atoms(hops=hops), hop_bias=table)
        torch.testing.assert_close(out.flatten().tolist(), [mix(0, 1), mix(-1, 0)])

    def test_distance_in_angstrom(self):
        x = torch.tensor([[[0.0, 0, 0], [1.0, 2.0, 2.0]]], dtype=torch.float64)
        out = ck.coattention(**two_atoms(coordinates=x), radial=lambda r: r[:, None] / 2)
        torch.testing.assert_close(out.flatten().tolist(), [mix(0, 1.5), mix(1.5, 0)])

    def test_terms_add_up(self):
        x = torch.tensor([[[0.0, 0, 0], [0.0, 0.0, 3.0]]], dtype=torch.float64)
        hops = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)
        out = ck.coattention(
            **two_atoms(coordinates=x, hops=hops),
            hop_bias=torch.tensor([[0.0, 0.25, 9.0]], dtype=torch.float64),
            radial=lambda r: r[:, None],
            bias=torch.tensor([[[[0.0, 0.5], [-1.0, 0.0]]]], dtype=torch.float64),
        )
        torch.testing.assert_close(out.flatten().tolist(), [mix(0, 3.75), mix(2.25, 0)])

    def test_minus_infinity_excludes_a_pair(self):
        bias = torch.tensor([[[[0.0, -math.inf], [-math.inf, -math.inf]]]], dtype=torch.float64)
        bias.requires_grad_()
        out = ck.coattention(**two_atoms(), bias=bias)
        assert out.flatten().tolist() == [1.0, 0.0]
        (gradient,) = torch.autograd.grad(out.sum(), bias)
        assert gradient.abs().max() == 0


class TestSinkByHand:
    def test_of_two_atoms(self):
        bias = torch.tensor([[[[0.5, -1.0], [0.0, 2.0]]]], dtype=torch.float64)
        sink = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
        out = ck.coattention(**two_atoms(), bias=bias, sink=sink)
        zero = math.exp(1.5)
        sums = math.exp(0.5) + math.exp(-1) + zero, math.exp(0) + math.exp(2) + zero
        first = (math.exp(0.5) + 3 * math.exp(-1)) / sums[0]
        second = (math.exp(0) + 3 * math.exp(2)) / sums[1]
        torch.testing.assert_close(out.flatten().tolist(), [first, second])
        (gradient,) = torch.autograd.grad(out, sink, torch.tensor([1.0, -2.0]).view_as(out))
        slope = -(zero / sums[0]) * first + (zero / sums[1]) * 2 * second
        torch.testing.assert_close(gradient.tolist(), [slope])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_counts_equal_tokens(self, layout, coattention_backend, serves):
        """n tokens of logit s weigh n·e^s / (n·e^s + e^sink); an average weighs 1."""
        device, sizes, logit = device_of(coattention_backend), (1, 2, 5, 40), 0.75
        inputs = make_inputs(
            Case("equal", sizes, hops=False, distances=False, bias=True, sink=True, width=8),
            device=device,
        )
        with torch.no_grad():
            inputs.q.zero_(), inputs.v.fill_(1.0), inputs.bias.fill_(logit)
            inputs.sink.copy_(torch.tensor([-1.0, 3.0]))
        run = lambda: attend(inputs, layout, backend=coattention_backend)  # noqa: E731
        out = serves(coattention_backend, run)
        start = 0
        for n in sizes:
            for head, sink in enumerate((-1.0, 3.0)):
                counted = n * math.exp(logit) / (n * math.exp(logit) + math.exp(sink))
                rows = out[start : start + n, head]
                torch.testing.assert_close(rows, torch.full_like(rows, counted))
            start += n


class TestSinkAtItsEdges:
    CASE = Case("edges", (0, 1, 9, 24), heads=3, bias=True, sink=True)

    def run(self, sink, backend, serves, layout="packed", **options):
        """Result and gradients with this sink in every head; None: without any."""
        inputs = make_inputs(self.CASE, device=device_of(backend))
        with torch.no_grad():
            inputs.sink.fill_(0.0 if sink is None else sink)

        def call(x):
            options_of_sink = {"sink": None} if sink is None else {}
            return attend(x, layout, backend=backend, **options, **options_of_sink)

        return serves(backend, lambda: with_gradients(call, inputs))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("sink", [-math.inf, -1e30, -200.0], ids=str)
    def test_far_below_every_logit_it_is_not_there(self, sink, layout, coattention_backend, serves):
        low = self.run(sink, coattention_backend, serves, layout)
        none = self.run(None, coattention_backend, serves, layout)
        assert low.pop("sink").abs().max() == 0
        for name, value in low.items():
            torch.testing.assert_close(value, none[name])

    @pytest.mark.parametrize("sink", [200.0, 1e30], ids=str)
    def test_far_above_every_logit_nothing_else_is(self, sink, coattention_backend, serves):
        for name, value in self.run(sink, coattention_backend, serves).items():
            assert value.abs().max() == 0, name

    def test_nan_is_seen(self, coattention_backend, serves):
        inputs = make_inputs(self.CASE, device=device_of(coattention_backend))
        with torch.no_grad():
            inputs.sink[1] = math.nan
        out = serves(coattention_backend, lambda: attend(inputs, backend=coattention_backend))
        assert out[:, 1].isnan().all()
        assert out[:, ::2].isfinite().all()

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_rows_without_a_key_are_zero(self, layout, coattention_backend, serves):
        """And send no gradient to the sink: a molecule whose pairs are all excluded."""
        inputs = make_inputs(self.CASE, device=device_of(coattention_backend))
        with torch.no_grad():
            inputs.bias[:, 1 : 1 + 81] = -math.inf
        inputs.cotangent[:1], inputs.cotangent[10:] = 0, 0  # only its rows are asked for

        def run(x):
            return attend(x, layout, backend=coattention_backend)

        found = serves(coattention_backend, lambda: with_gradients(run, inputs))
        assert found["out"][1:10].abs().max() == 0
        assert found["out"][10:].abs().min() > 0
        assert all(x.abs().max() == 0 for name, x in found.items() if name != "out")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_its_gradient_has_its_dtype(self, dtype, coattention_backend, serves):
        inputs = make_inputs(self.CASE, device=device_of(coattention_backend))
        wide = inputs.sink
        inputs.sink = wide.detach().to(dtype).requires_grad_()

        def run(x):
            return attend(x, "packed", backend=coattention_backend)

        found = serves(coattention_backend, lambda: with_gradients(run, inputs))
        assert found["sink"].dtype == dtype
        inputs.sink = inputs.sink.detach().float().requires_grad_()
        same = with_gradients(run, inputs)
        assert torch.equal(found["out"], same["out"])
        assert torch.equal(found["sink"], same["sink"].to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_accuracy(case, dtype, layout, coattention_backend, serves):
    inputs = make_inputs(case, dtype, device_of(coattention_backend))
    exact = with_gradients(lambda x: attend(x, backend="reference"), inputs.double())
    yardstick = with_gradients(attend_eagerly, inputs)
    drawn = range(3) if dtype == torch.float32 and inputs.radial is not None else ()
    others = [with_gradients(attend_eagerly, one_rounding_away(inputs, draw)) for draw in drawn]

    def run(x):
        return attend(x, layout, backend=coattention_backend)

    actual = serves(coattention_backend, lambda: with_gradients(run, inputs))
    assert actual["out"].dtype == dtype
    assert_all_accurate(actual, yardstick, exact, others)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(dtype, coattention_backend, serves):
    """Sums and softmax are float32: what comes out is the float32 result, rounded at the end."""
    if coattention_backend == "triton":
        pytest.skip("Triton rounds the weights before they meet V, as tensor cores want them")
    inputs, wide = make_inputs(BY_NAME["hops only"], dtype), make_inputs(BY_NAME["hops only"])
    wide.q, wide.k, wide.v = inputs.q.float(), inputs.k.float(), inputs.v.float()
    half, full = (
        serves(coattention_backend, lambda x=x: attend(x, backend=coattention_backend))
        for x in (inputs, wide)
    )
    assert torch.equal(half, full.to(dtype))


@SINKS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(layout, sink):
    inputs = make_inputs(dataclasses.replace(EVERYTHING, sink=sink), torch.float64)
    names, tensors = zip(*inputs.grads(), strict=True)
    assert {"q", "k", "v", "bias", "coordinates", "hop_bias", "radial.mu", "radial.gamma"} <= {
        *names
    }
    assert ("sink" in names) == sink
    assert torch.autograd.gradcheck(lambda *_: attend(inputs, layout), tensors)


@SINKS
def test_second_gradients(sink):
    sizes = {"heads": 1, "width": 2, "hop_buckets": 3, "gaussians": 3}
    case = Case("small", (3, 2), **sizes, bias=True, sink=sink)
    inputs = make_inputs(case, torch.float64)
    tensors = [tensor for _, tensor in inputs.grads()]
    assert torch.autograd.gradgradcheck(lambda *_: attend(inputs), tensors)


@SINKS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_of_atoms_does_not_matter(layout, sink):
    inputs = make_inputs(Case("one", (9,), fragments=2, sink=sink), torch.float64)
    order = torch.randperm(9)
    shuffled = inputs.double()
    relations = ck.Relations(
        hops=inputs.relations.hops.view(9, 9)[order][:, order].flatten(),
        coordinates=inputs.relations.coordinates[order],
        cu_seqlens=inputs.relations.cu_seqlens,
    )
    shuffled.relations = relations
    shuffled.q, shuffled.k, shuffled.v = inputs.q[order], inputs.k[order], inputs.v[order]
    torch.testing.assert_close(attend(shuffled, layout), attend(inputs, layout)[order])


@SINKS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_molecules_do_not_see_each_other(layout, sink):
    inputs = make_inputs(Case("three", (4, 6, 5), sink=sink), torch.float64)
    together = attend(inputs, layout)
    with torch.no_grad():
        for x in (inputs.q, inputs.k, inputs.v, inputs.relations.coordinates):
            x[4:10] = torch.randn_like(x[4:10])
    apart = attend(inputs, layout)
    assert torch.equal(together[:4], apart[:4])
    assert torch.equal(together[10:], apart[10:])
    assert not torch.equal(together[4:10], apart[4:10])


def test_rotation_translation_and_mirror_do_not_matter():
    inputs = make_inputs(Case("one", (9,), hops=False), torch.float64)
    before = attend(inputs)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    with torch.no_grad():
        inputs.relations.coordinates.copy_(inputs.relations.coordinates @ rotation + 5.0)
    torch.testing.assert_close(attend(inputs), before)


def test_no_force_and_no_torque_on_the_whole_molecule():
    inputs = make_inputs(Case("one", (9,)), torch.float64)
    force = with_gradients(attend, inputs)["coordinates"]
    assert force.abs().max() > 1e-3
    torch.testing.assert_close(force.sum(0), torch.zeros(3, dtype=torch.float64))
    torque = torch.linalg.cross(inputs.relations.coordinates, force).sum(0)
    torch.testing.assert_close(torque, torch.zeros(3, dtype=torch.float64))


class TestPadding:
    def padded(self, extra=3, garbage=math.nan, sink=False):
        """A case padded by hand, with leaf tensors whose padding holds garbage."""
        inputs = make_inputs(Case("two", (5, 2), bias=True, sink=sink))
        relations = ck.Relations(
            hops=inputs.relations.hops,
            coordinates=inputs.relations.coordinates.detach(),
            cu_seqlens=inputs.relations.cu_seqlens,
            max_seqlen=5 + extra,
        )
        place = relations.packed_layout()
        packed = inputs.q, inputs.k, inputs.v
        q, k, v = (place.pad(x.detach(), garbage).transpose(1, 2).clone() for x in packed)
        bias = place.pad_pairs(inputs.bias.detach().t(), garbage).permute(0, 3, 1, 2).clone()
        coordinates = place.pad(relations.coordinates, garbage)
        leaves = [x.requires_grad_() for x in (q, k, v, bias, coordinates)]
        hops, valid = relations.padded().hops, relations.padded().valid
        relations = ck.Relations(hops=hops, coordinates=coordinates, valid=valid)
        shared = {"hop_bias": inputs.hop_bias, "radial": inputs.radial, "bias": bias}
        out = ck.coattention(q, k, v, relations=relations, sink=inputs.sink, **shared)
        parameters = [inputs.hop_bias, *inputs.radial.parameters(), *[inputs.sink] * sink]
        grads = torch.autograd.grad(out, [*leaves, *parameters], torch.randn_like(out))
        return place, out, grads

    @SINKS
    @pytest.mark.parametrize("garbage", [math.nan, math.inf, -1e30])
    def test_garbage_changes_nothing(self, garbage, sink):
        torch.manual_seed(0)
        _, clean, clean_grads = self.padded(garbage=0.0, sink=sink)
        torch.manual_seed(0)
        _, out, grads = self.padded(garbage=garbage, sink=sink)
        assert torch.equal(out, clean)
        for dirty, wanted in zip(grads, clean_grads, strict=True):
            assert torch.equal(dirty, wanted)

    @SINKS
    def test_padding_is_exactly_zero(self, sink):
        place, out, (dq, dk, dv, dbias, dx, *_) = self.padded(sink=sink)
        for x in (out, dq, dk, dv):
            assert x.transpose(1, 2)[~place.valid].abs().max() == 0
            assert x.transpose(1, 2)[place.valid].abs().min() > 0
        assert dbias.permute(0, 2, 3, 1)[~place.pair_valid].abs().max() == 0
        assert dx[~place.valid].abs().max() == 0

    @SINKS
    def test_more_padding_changes_nothing(self, sink):
        torch.manual_seed(0)
        place, out, _ = self.padded(extra=0, sink=sink)
        torch.manual_seed(0)
        wider, more, _ = self.padded(extra=9, sink=sink)
        a, b = place.pack(out.transpose(1, 2)), wider.pack(more.transpose(1, 2))
        assert_accurate(b, a, a.double())

    def test_a_molecule_of_padding_alone(self):
        q = torch.full((2, 1, 3, 4), math.nan, requires_grad=True)
        sink = torch.ones(1, requires_grad=True)
        relations = ck.Relations(valid=torch.zeros(2, 3, dtype=torch.bool))
        for learned in ([q], [q, sink]):
            out = ck.coattention(q, q, q, relations=relations, sink=(*learned, None)[1])
            gradients = torch.autograd.grad(out, learned, torch.randn_like(out))
            assert torch.equal(out, torch.zeros_like(out))
            assert all(torch.equal(x, torch.zeros_like(x)) for x in gradients)


class TestMissingRelations:
    def test_no_hops_no_phi2d(self):
        inputs = make_inputs(BY_NAME["no relations"])
        plain = attend(inputs)
        inputs.hop_bias = torch.randn(2, 12)
        inputs.radial = ck.GaussianRadial(2)
        assert torch.equal(attend(inputs), plain)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_molecule_without_conformer_is_as_if_it_had_no_radial(self, layout):
        inputs = make_inputs(Case("two", (5, 6), conformer_missing=True), torch.float64)
        mixed = attend(inputs, layout)
        inputs.relations = ck.Relations(
            hops=inputs.relations.hops, cu_seqlens=inputs.relations.cu_seqlens
        )
        without = attend(inputs, layout)
        assert torch.equal(mixed[5:], without[5:])
        assert not torch.equal(mixed[:5], without[:5])

    def test_its_coordinates_get_no_gradient(self):
        inputs = make_inputs(Case("two", (5, 6), conformer_missing=True))
        gradient = with_gradients(attend, inputs)["coordinates"]
        assert gradient[5:].abs().max() == 0
        assert gradient[:5].abs().max() > 0


def test_atoms_in_one_place_have_finite_gradients():
    inputs = make_inputs(Case("one", (4,)), torch.float64)
    with torch.no_grad():
        inputs.relations.coordinates.zero_()
    grads = with_gradients(attend, inputs)
    assert all(x.isfinite().all() for x in grads.values())
    assert grads["coordinates"].abs().max() == 0


class Doubled(ck.GaussianRadial):
    """A formula that no kernel knows."""

    def forward(self, distances, types=None):
        return 2 * super().forward(distances, types)


class Adapted(nn.Module):
    """As peft adapts a layer: it, and something learned beside it."""

    def __init__(self, layer, out_features):
        super().__init__()
        self.layer, self.beside = layer, nn.Linear(16, out_features)

    def forward(self, x):
        return self.layer(x) + self.beside(x)


def twice(self, *x):
    """What the class computes, doubled."""
    return 2 * type(self).forward(self, *x)


def change_radial(radial, what):
    """Change the formula of a GaussianRadial of 16 Gaussians and 2 heads in place."""
    layers = {"radial": radial, "head": radial.head, "layer": radial.head[0]}
    kind, _, place = what.partition(" ")
    if kind == "another":
        new = {"head": nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 2, bias=False))}
        new["activation"] = nn.Tanh()
    elif kind == "adapted":
        new = {place: Adapted(layers[place], 2 if place == "head" else 16)}
    elif kind == "hooked":
        layers[place].register_forward_hook(lambda _, __, out: 2 * out)
        return
    else:  # as accelerate surrounds a layer's own forward
        layers[place].forward = MethodType(twice, layers[place])
        return
    places = {"head": (radial, "head"), "layer": (radial.head, "0")}
    setattr(*places.get(place, (radial.head, "1")), new[place])


CHANGES = [
    *("another head", "another activation", "adapted head", "adapted layer"),
    *("hooked radial", "hooked head", "hooked layer"),
    *("surrounded radial", "surrounded head", "surrounded layer"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("changed", ["another class", *CHANGES])
def test_a_changed_radial_formula_is_followed(changed, layout, coattention_backend, serves):
    device = device_of(coattention_backend)
    inputs = make_inputs(Case("two", (5, 6), heads=2), device=device)
    radial = (Doubled if changed == "another class" else ck.GaussianRadial)(2, 16)
    plain = ck.GaussianRadial(2, 16)
    plain.load_state_dict(radial.state_dict())
    if changed != "another class":
        change_radial(radial, changed)
    distances = torch.linspace(0, 5, 9)
    assert not torch.allclose(radial(distances), plain(distances))
    inputs.radial = radial.to(device)
    exact = attend(inputs.double(), layout, backend="reference")
    out = serves(coattention_backend, lambda: attend(inputs, layout, backend=coattention_backend))
    assert_accurate(out, attend(inputs, layout, backend="reference"), exact)


@pytest.mark.parametrize("packed", [False, True], ids=LAYOUTS)
def test_nan_coordinate_of_a_real_atom_is_seen(packed, coattention_backend, serves):
    """In its own molecule, forward and backward: a broken conformer is not a good one."""
    device = device_of(coattention_backend)
    q = torch.randn(2, 2, 5, 8, device=device)
    coordinates = 3 * torch.randn(2, 5, 3, device=device)
    coordinates[1, 3, 0] = math.nan
    relations = ck.Relations(coordinates=coordinates)
    if packed:
        q = q.transpose(1, 2).flatten(0, 1)  # [T, H, D]
        ends = torch.tensor([0, 5, 10], dtype=torch.int32, device=device)
        relations = ck.Relations(coordinates=coordinates.flatten(0, 1), cu_seqlens=ends)
    q.requires_grad_()
    phi = {"relations": relations, "radial": ck.GaussianRadial(2).to(device)}

    def run():
        out = ck.coattention(q, q, q, **phi, backend=coattention_backend)
        return out, *torch.autograd.grad(out, q, torch.randn_like(out))

    for x in serves(coattention_backend, run):
        good, broken = x.chunk(2)
        assert good.isfinite().all()
        assert broken.isnan().all()


@pytest.mark.parametrize("view", ["transposed", "expanded", "unaligned", "scattered"])
def test_any_strides(view, coattention_backend, serves):
    device = device_of(coattention_backend)
    base = torch.randn(2, 7, 3, 8, device=device)
    q = {
        "transposed": lambda: base.transpose(1, 2),
        "expanded": lambda: base[:1, :, :1].transpose(1, 2).expand(2, 3, 7, 8),
        "unaligned": lambda: torch.randn(2 * 3 * 7 * 8 + 1, device=device)[1:].view(2, 3, 7, 8),
        "scattered": lambda: base.permute(1, 2, 3, 0).contiguous().permute(3, 1, 0, 2),
    }[view]()
    hops = torch.randint(0, 9, (2, 7, 7), dtype=torch.uint8, device=device).transpose(1, 2)
    bias = torch.randn(1, 1, 7, 7, device=device).expand(2, 3, 7, 7)
    hop_bias = torch.randn(8, 3, device=device).t()

    def run(q, bias, hops, backend):
        phi = {"relations": ck.Relations(hops=hops), "hop_bias": hop_bias, "bias": bias}
        return ck.coattention(q, q, q, **phi, backend=backend)

    strided = serves(coattention_backend, lambda: run(q, bias, hops, coattention_backend))
    plain = run(q.contiguous(), bias.contiguous(), hops.contiguous(), "reference")
    assert_accurate(strided, plain, run(q.double(), bias, hops, "reference"))


class TestDropout:
    def run(self, seed, p=0.25, layout="padded"):
        torch.manual_seed(seed)
        q = torch.zeros(1, 4, 64, 4) if layout == "padded" else torch.zeros(64, 4, 4)
        cu_seqlens = None if layout == "padded" else torch.tensor([0, 64], dtype=torch.int32)
        relations = ck.Relations(cu_seqlens=cu_seqlens)
        return ck.coattention(q, q, torch.ones_like(q), relations=relations, dropout_p=p)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_seed_decides(self, layout):
        assert torch.equal(self.run(1, layout=layout), self.run(1, layout=layout))
        assert not torch.equal(self.run(1, layout=layout), self.run(2, layout=layout))

    def test_statistics(self):
        # Each output is the mean of 64 weights that are 0 or 1/(1-p): mean 1, variance p/(1-p)/64.
        out = torch.stack([self.run(seed)[..., 0] for seed in range(20)])
        deviations = 5 * math.sqrt(0.25 / 0.75 / 64 / out.numel())
        assert abs(float(out.mean()) - 1) < deviations
        assert abs(float(out.var()) * 64 / (0.25 / 0.75) - 1) < 0.1

    def test_zero_is_off(self):
        assert torch.equal(self.run(1, p=0.0), self.run(2, p=0.0))


@pytest.mark.parametrize("name", ["graphormer slim", "sink"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_every_time(layout, name):
    inputs = make_inputs(BY_NAME[name])
    first = with_gradients(lambda x: attend(x, layout), inputs)
    for _ in range(5):
        again = with_gradients(lambda x: attend(x, layout), inputs)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("name", ["around 16", "sink"])
def test_autocast_leaves_the_statistics_alone(name):
    inputs = make_inputs(BY_NAME[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = attend(inputs)
    assert torch.equal(inside, attend(inputs))


@SINKS
def test_compiles_as_one_graph(sink):
    # A compiled graph evaluates Φ3d at every pair: other roundings. So no distances with the sink.
    relations = {"distances": False} if sink else {"types": "pair"}
    inputs = make_inputs(Case("small", (6, 4), bias=True, sink=sink, **relations))
    relations = inputs.relations.padded()
    q = inputs.layout.pad(inputs.q.detach()).transpose(1, 2)
    shared = {"relations": relations, "hop_bias": inputs.hop_bias, "radial": inputs.radial}

    def run(q):
        return ck.coattention(q, q, q, sink=inputs.sink, **shared)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_accurate(compiled(q), run(q), run(q).double())


BAD = {
    "k is a ndarray; make it a tensor": {"k": torch.zeros(1, 2, 3, 4).numpy()},
    "relations is a Tensor; make it Relations": {"relations": torch.ones(1, 3) > 0},
    "q has shape": {"q": torch.zeros(3, 4)},
    "the head width must be at least 1": dict.fromkeys("qkv", torch.zeros(1, 2, 3, 0)),
    "q has dtype": {"q": torch.zeros(1, 2, 3, 4, dtype=torch.int32)},
    "k has shape": {"k": torch.zeros(1, 2, 5, 4)},
    "v has dtype": {"v": torch.zeros(1, 2, 3, 4, dtype=torch.float64)},
    "k is on meta": {"k": torch.zeros(1, 2, 3, 4, device="meta")},
    "hop_bias has shape": {"hop_bias": torch.zeros(3, 8)},
    "hop_bias has 1 columns": {"hop_bias": torch.zeros(2, 1)},
    "hop_bias has dtype": {"hop_bias": torch.zeros(2, 8, dtype=torch.int64)},
    "bias has shape": {"bias": torch.zeros(1, 1, 3, 3)},
    "bias has dtype": {"bias": torch.zeros(1, 2, 3, 3, dtype=torch.bool)},
    "sink has shape": {"sink": torch.zeros(1, 2)},
    "sink has dtype": {"sink": torch.zeros(2, dtype=torch.int64)},
    "sink is on meta": {"sink": torch.zeros(2, device="meta")},
    "sink is a float; make it a tensor": {"sink": 1.0},
    "radial is a str": {"radial": "gaussian"},
    "dropout_p is 1": {"dropout_p": 1.0},
    "relations.valid has shape": {"relations": ck.Relations(valid=torch.ones(1, 4) > 0)},
    "relations are packed": {
        "relations": ck.Relations(cu_seqlens=torch.tensor([0, 3], dtype=torch.int32))
    },
    "relations are on meta": {"relations": ck.Relations(valid=torch.ones(1, 3, device="meta") > 0)},
    "radial returned shape": {
        "radial": lambda r: r,
        "relations": ck.Relations(coordinates=torch.zeros(1, 3, 3)),
    },
    "backend 'cuda' does not exist": {"backend": "cuda"},
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_input_is_named(message):
    arguments = dict.fromkeys("qkv", torch.zeros(1, 2, 3, 4)) | BAD[message]
    with pytest.raises(ValueError, match=message):
        ck.coattention(**arguments)


def test_packed_with_the_wrong_number_of_atoms():
    relations = ck.Relations(cu_seqlens=torch.tensor([0, 3], dtype=torch.int32))
    q = torch.zeros(4, 2, 8)
    with pytest.raises(ValueError, match="q has 4 atoms, but relations"):
        ck.coattention(q, q, q, relations=relations)


def test_property_any_batch_matches_each_molecule_alone():
    """Hypothesis draws batches; each molecule attends as if it were alone."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=15, deadline=None)
    @hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 1000))
    def check(sizes, seed):
        case = Case("drawn", tuple(sizes), conformer_missing=bool(seed % 2), fragments=1 + seed % 3)
        inputs = make_inputs(case, torch.float64, seed=seed)
        whole = attend(inputs)
        start = 0
        hops = inputs.relations.hops.split([n * n for n in sizes])
        for number, n in enumerate(sizes):
            atoms = slice(start, start + n)
            relations = ck.Relations(
                hops=hops[number].view(1, n, n),
                coordinates=inputs.relations.coordinates[None, atoms],
                has_3d=torch.tensor([number % 2 == 0 or not case.conformer_missing]),
            )
            q, k, v = (x[atoms].transpose(0, 1)[None] for x in (inputs.q, inputs.k, inputs.v))
            phi = {"hop_bias": inputs.hop_bias, "radial": inputs.radial}
            alone = ck.coattention(q, k, v, relations=relations, **phi)[0].transpose(0, 1)
            torch.testing.assert_close(whole[atoms], alone)
            start += n

    check()


def test_salt_reads_the_unreachable_column():
    edges, ptr = random_graphs((8,), torch.Generator().manual_seed(0), fragments=2)
    relations = ck.Relations.from_graphs(edges, ptr)
    q = torch.zeros(1, 1, 8, 1)
    v = torch.arange(8.0).reshape(1, 1, 8, 1)
    table = torch.zeros(1, 6)
    table[0, -1] = -1e4  # a table that shuts fragments off from each other
    out = ck.coattention(q, q, v, relations=relations, hop_bias=table)
    assert out.flatten().tolist() == [1.5] * 4 + [5.5] * 4
