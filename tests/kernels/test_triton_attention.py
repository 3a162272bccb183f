"""The Triton attention's numbers, in Triton's interpreter (by ``test_triton.py``) or on a GPU."""

import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import collamo_kernels as ck
from collamo_kernels.coattention.arguments import Arguments
from collamo_kernels.coattention.definition import definition
from collamo_kernels.coattention.reference import hop_term
from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.radial import FIXED_KNOTS
from collamo_kernels.testing import (
    CASES,
    Case,
    assert_accurate,
    assert_all_accurate,
    attend,
    attend_eagerly,
    hardware_rounding,
    make_inputs,
    with_gradients,
)

pytestmark = pytest.mark.skipif(
    not (_triton.INTERPRETED or torch.cuda.is_available()),
    reason="runs on a GPU, or with TRITON_INTERPRET=1, by test_triton.py",
)
DEVICE = "cpu" if _triton.INTERPRETED else "cuda"

# The interpreter takes 5 to 30 ms a program, so cases of many heads or pairs stay out; these take
# their place.
SLOW = {"around 32", "around 64", "around 128", "beyond 256", "beyond 512", "transformer-m"}
SLOW |= {"uni-mol", "graphormer slim", "sink, dense bias", "sink beyond 256"}
OWN = (
    Case("one tile of 32", (31, 32), heads=1, width=24),
    Case("one tile of 64", (33, 64), width=10),
    Case("loop", (66, 5), width=40),
    Case("two tiles of widest heads", (64, 36), heads=1, width=128, distances=False),
    Case("loop of widest heads", (40, 3), width=128, distances=False, bias=True),
    Case("pair types", (7, 12), width=8, types="pair", head="mlp"),
    Case("sink, one tile of 64", (33, 64), heads=3, width=10, sink=True),
    Case("sink, loop", (34, 5), heads=3, width=40, distances=False, bias=True, sink=True),
    Case("sink, widest heads", (33, 36), heads=2, width=128, distances=False, sink=True),
)
NOT_IN_TRITON = {"radial_rows", "radial_rows_backward", "radial_grid", "pairs_by_hops"}
VIEWS = {"alias", "as_strided", "detach", "expand", "new_empty", "slice", "split", "view", "t"}
VIEWS |= {"_unsafe_view", "empty", "empty_like", "is_same_size", "reshape", "split_with_sizes"}
VIEWS.add("promote_types")
# On a GPU ``test_coattention.py`` runs all of CASES.
SMALL = OWN if DEVICE == "cuda" else (*(x for x in CASES if x.name not in SLOW), *OWN)
EVERYTHING = Case(
    *("everything", (6, 4)), bias=True, sink=True, conformer_missing=True, types="atom", width=8
)
KINDS = [
    pytest.param(torch.float32, "padded", id="float32-padded"),
    pytest.param(torch.float32, "packed", id="float32-packed"),
    pytest.param(torch.float16, "packed", id="float16-packed"),
]
if DEVICE == "cuda":
    KINDS.append(pytest.param(torch.bfloat16, "packed", id="bfloat16-packed"))


@pytest.fixture(autouse=True)
def small_tables(monkeypatch):
    """Tables no larger than a few Gaussians need."""
    set_knots(monkeypatch, 2048)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """In the interpreter fewer programs, of more entries each; sums in several, as on a GPU.

    With the blocks of `conftest.py` the sums of "one tile of 32" round past their budget.
    """
    if _triton.INTERPRETED:
        set_pairs(monkeypatch, entries=256, hop_entries=16, cells=1024, pairs=2048)
        launch = pytest.importorskip("collamo_kernels.radial.triton.launch")
        larger = dataclasses.replace(launch.RADIAL, blocks=64, places=64, entries=4096)
        monkeypatch.setattr(launch, "RADIAL", larger)


def set_pairs(monkeypatch, **sizes):
    launch = pytest.importorskip("collamo_kernels.coattention.triton.launch_pairs")
    monkeypatch.setattr(launch, "PAIRS", dataclasses.replace(launch.PAIRS, **sizes))


def set_knots(monkeypatch, knots):
    for dtype in FIXED_KNOTS:
        monkeypatch.setitem(FIXED_KNOTS, dtype, knots)


def draw(case, dtype=torch.float32):
    return make_inputs(case, dtype, DEVICE)


def table_of(inputs):
    """The table of fixed size that the attention reads."""
    relations = inputs.relations
    zero = torch.zeros((), device=DEVICE)
    learned = relations.coordinates.requires_grad
    return inputs.radial.table(
        zero, relations.farthest, inputs.q.dtype, derivative=learned, fixed_size=True
    )


def by_triton(layout="packed", **options):
    return lambda inputs: attend(inputs, layout, backend="triton", **options)


@pytest.mark.parametrize(("dtype", "layout"), KINDS)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name.replace(" ", "-"))
def test_accuracy(case, dtype, layout):
    inputs = draw(case, dtype)
    exact = with_gradients(attend, inputs.double())
    with hardware_rounding(DEVICE):
        yardstick = with_gradients(attend_eagerly, inputs)
    actual = with_gradients(by_triton(layout), inputs)
    assert actual["out"].dtype == dtype
    assert_all_accurate(actual, yardstick, exact)


TWO_TILES = (
    Case("65 and 127", (65, 127), heads=1, width=24),
    Case("128 and 40", (128, 40), heads=1, width=8, bias=True, types="atom", head="mlp"),
    Case("sink", (90, 40), heads=2, width=8, sink=True),
)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(
    ("case", "knots"),
    [*((case, 2048) for case in TWO_TILES), (Case("exact", (70,), heads=1, width=8), 16)],
    ids=lambda x: x.name.replace(" ", "-") if isinstance(x, Case) else "",
)
def test_two_tiles_in_one_program(case, knots, layout, monkeypatch, launches):
    """65 to 128 atoms in half precision: a program goes over both halves of keys and queries."""
    set_knots(monkeypatch, knots)
    inputs = draw(case, torch.float16)
    exact = with_gradients(attend, inputs.double())
    yardstick = with_gradients(attend_eagerly, inputs)
    with launches() as names:
        actual = with_gradients(by_triton(layout), inputs)
    assert "differentiate_tile" not in names
    assert_all_accurate(actual, yardstick, exact)


@pytest.mark.parametrize("tiles_of_64", [True, False], ids=["64", "2-x-32"])
@pytest.mark.parametrize("sizes", [(40, 3, 0, 33), (5, 34, 66)], ids=str)
def test_molecules_of_every_size_in_one_batch(sizes, tiles_of_64, monkeypatch, launches):
    """Each size is a launch; where tiles of 64 are refused, tiles of 32 take their place."""
    from collamo_kernels.coattention.triton import trust

    refused = frozenset() if tiles_of_64 else frozenset({64, 128})
    monkeypatch.setattr(trust, "refused", lambda *_: refused)
    inputs = draw(Case("sizes", sizes, heads=1, width=8, bias=True, sink=True), torch.float16)
    exact = with_gradients(attend, inputs.double())
    yardstick = with_gradients(attend_eagerly, inputs)
    with launches() as names:
        actual = with_gradients(by_triton("packed"), inputs)
    assert names.count("attend") == 2 + (tiles_of_64 and max(sizes) > 64)
    assert names.count("differentiate") == 3  # the last is that of the radial table
    assert names.count("differentiate_tile") == (max(sizes) > 64)
    assert_all_accurate(actual, yardstick, exact)


def test_the_order_of_molecules_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    sizes, heads, width = (5, 66, 34), 2, 8
    molecules = [torch.randn(4, n, heads, width, generator=generator) for n in sizes]
    sink = torch.tensor([0.5, -1.0], device=DEVICE)

    def results(order):
        q, k, v, cotangent = torch.cat([molecules[x] for x in order], 1).half().to(DEVICE)
        ends = torch.tensor([0, *(sizes[x] for x in order)]).cumsum(0).int()
        relations = ck.Relations(cu_seqlens=ends.to(DEVICE))
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out = ck.coattention(*leaves, relations=relations, sink=sink, backend="triton")
        every = (out, *torch.autograd.grad(out, leaves, cotangent))
        split = zip(*(x.split([sizes[y] for y in order]) for x in every), strict=True)
        return dict(zip(order, split, strict=True))

    first, again = results((0, 1, 2)), results((2, 0, 1))
    for molecule, own in first.items():
        assert all(torch.equal(x, y) for x, y in zip(own, again[molecule], strict=True))


EXACT = (
    Case("linear", (17, 0, 5), width=8),
    Case("mlp", (7, 12), conformer_missing=True, head="mlp", gaussians=20),
    Case("pair types", (6, 4), width=8, types="pair", head="mlp", bias=True),
    Case("loop", (40, 3), heads=1, width=8),
    Case("many Gaussians", (6, 4), width=8, gaussians=130),
)


@pytest.mark.parametrize(("dtype", "layout"), KINDS)
@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_exact_gaussians_where_the_table_is_too_coarse(case, dtype, layout, monkeypatch):
    set_knots(monkeypatch, 16)
    inputs = draw(case, dtype)
    if case.types is None:
        assert table_of(inputs).fits == 0
    exact = with_gradients(attend, inputs.double())
    yardstick = with_gradients(attend_eagerly, inputs)
    assert_all_accurate(with_gradients(by_triton(layout), inputs), yardstick, exact)


def test_the_table_is_read_where_it_fits(monkeypatch):
    """Values from the table, not from the exact path: with its rows doubled the result changes."""
    inputs = draw(Case("two", (5, 3), width=8))
    assert table_of(inputs).fits == 1
    before = attend(inputs, "packed", backend="triton")
    op = pytest.importorskip("collamo_kernels.radial.triton.op")
    tabulate = op.tabulate

    def doubled(*arguments):
        table = tabulate(*arguments)
        return table._replace(rows=2 * table.rows)

    monkeypatch.setattr(op, "tabulate", doubled)
    assert not torch.allclose(before, attend(inputs, "packed", backend="triton"))


SHARED = (
    Case("both", (6, 4), width=8, head="mlp"),
    Case("hops", (6, 4), width=8, distances=False),
    Case("types", (5, 0, 4), width=8, hops=False, types="atom", conformer_missing=True),
)


@pytest.mark.parametrize("knots", [2048, 16], ids=["table", "exact"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_bias_built_once_for_several_layers(case, layout, knots, monkeypatch):
    set_knots(monkeypatch, knots)
    inputs = draw(case, torch.float16)

    def layers(inputs, phi_of, layout="packed", **options):
        relations = inputs.relations if layout == "packed" else inputs.relations.padded()
        place = inputs.layout
        q, k, v = inputs.q, inputs.k, inputs.v
        phi = phi_of(relations, hop_bias=inputs.hop_bias, radial=inputs.radial)
        for _ in range(2):
            x = (q, k, v)
            if layout == "padded":
                x = (place.pad(y).transpose(1, 2) for y in x)
            q = ck.coattention(*x, relations=relations, **phi, **options)
            q = place.pack(q.transpose(1, 2)) if layout == "padded" else q
        return q

    def built(relations, **phi):
        phi = ck.share_bias(relations, layers=4, dtype=torch.float16, **phi)
        assert phi.keys() == {"bias"}
        return phi

    def in_tile(relations, **phi):
        return phi

    def eagerly(inputs):
        once = attend_eagerly(inputs)
        return attend_eagerly(dataclasses.replace(inputs, q=once))

    exact = with_gradients(lambda x: layers(x, in_tile), inputs.double())
    yardstick = with_gradients(eagerly, inputs)
    ours = with_gradients(lambda x: layers(x, built, layout, backend="triton"), inputs)
    assert_all_accurate(ours, yardstick, exact)


def test_half_precision_is_summed_in_float32():
    inputs = draw(Case("hops", (40, 33), width=8, distances=False))
    phi = ck.share_bias(inputs.relations, layers=4, dtype=torch.float16, hop_bias=inputs.hop_bias)[
        "bias"
    ]
    cotangent = torch.randn_like(phi)
    (ours,) = torch.autograd.grad(phi, inputs.hop_bias, cotangent)

    def summed(dtype):
        table = inputs.hop_bias.to(dtype).detach().requires_grad_()
        term = hop_term(inputs.relations.padded(), table).permute(0, 2, 3, 1)
        dense = inputs.layout.pack_pairs(term).t()
        return torch.autograd.grad(dense, table, cotangent.to(dtype))[0]

    assert_accurate(ours, summed(torch.float32), summed(torch.float64), factor=5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_module_without_a_table(layout):
    inputs = draw(EVERYTHING)
    inputs.radial = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 2))
    inputs.radial.to(DEVICE)
    exact = with_gradients(attend, inputs.double())
    yardstick = with_gradients(attend_eagerly, inputs)
    assert_all_accurate(with_gradients(by_triton(layout), inputs), yardstick, exact)


DROPPED = (
    Case("one tile", (6, 4), distances=False, bias=True),
    Case("two tiles", (40, 36), heads=1, width=16, distances=False, bias=True),
    Case("loop", (40, 5), heads=1, width=40, distances=False),
    Case("one tile with a sink", (6, 4), distances=False, sink=True),
    # A number a head: of one head alone PyTorch's error is small by luck.
    Case("loop with a sink", (34, 5), heads=4, width=40, distances=False, sink=True),
)


def dropped_by_definition(inputs, seed):
    """The formula with the stream of `dropout_factors`, in the inputs' own dtype."""
    return definition(
        Arguments(
            *(inputs.q, inputs.k, inputs.v),
            hop_bias=inputs.hop_bias,
            bias=inputs.bias,
            sink=inputs.sink,
            hops=inputs.relations.hops,
            cu_seqlens=inputs.relations.cu_seqlens,
            scale=inputs.q.shape[-1] ** -0.5,
            dropout_p=0.3,
            seed=seed,
        )
    )


@pytest.mark.parametrize("case", DROPPED, ids=lambda case: case.name.replace(" ", "-"))
def test_dropout_is_the_stream_of_the_definition(case):
    """Same seed, same weights dropped as on the CPU, forward and backward."""
    inputs = draw(case)
    torch.manual_seed(3)
    seed = torch.randint(2**63 - 1, (1,), device=DEVICE)
    torch.manual_seed(3)
    ours = with_gradients(by_triton(dropout_p=0.3), inputs)
    yardstick = with_gradients(lambda x: dropped_by_definition(x, seed), inputs)
    exact = with_gradients(lambda x: dropped_by_definition(x, seed), inputs.double())
    assert_all_accurate(ours, yardstick, exact)


def test_a_new_probability_compiles_no_new_graph():
    """From the second on, where the compiler learns that it changes; the same weights dropped."""
    inputs = draw(Case("drop", (3, 2), heads=1, width=8, hops=False, distances=False))

    def drop(x, dropout_p):
        return attend(x, "packed", backend="triton", dropout_p=dropout_p)

    compiler = CompileCounterWithBackend("aot_eager")
    compiled, graphs = torch.compile(drop, fullgraph=True, backend=compiler), []
    for dropout_p in (0.1, 0.3, 0.5, 0.7):
        torch.manual_seed(5)
        out = compiled(inputs, dropout_p)
        torch.manual_seed(5)
        assert torch.equal(out, drop(inputs, dropout_p))
        graphs.append(compiler.frame_count)
    assert graphs[1:] == [graphs[1]] * 3


@pytest.mark.parametrize("knots", [2048, 16], ids=["table", "exact"])
def test_heads_in_rounds(knots, monkeypatch, launches):
    """Heads beyond the budget take another round, forward and backward."""
    from collamo_kernels.coattention.triton import rounds as rounds_of_heads
    from collamo_kernels.triton_launch import forget_plans

    set_knots(monkeypatch, knots)
    inputs = draw(Case("nine heads", (6, 4), heads=9, width=8, head="mlp"))
    whole = with_gradients(by_triton(), inputs)
    a_head = 4 * inputs.relations.num_pairs
    monkeypatch.setattr(rounds_of_heads, "BUDGET", 3 * a_head)
    forget_plans()
    with launches() as names:
        rounds = with_gradients(by_triton(), inputs)
    assert names.count("attend") == 3
    for name in ("out", "q", "k", "v"):
        assert torch.equal(whole[name], rounds[name]), name
    exact = with_gradients(attend, inputs.double())
    assert_all_accurate(rounds, with_gradients(attend_eagerly, inputs), exact)


@pytest.mark.parametrize(("fit", "counts"), [(3, [3] * 13 + [1]), (8, [8] * 5), (21, [16, 16, 8])])
def test_rounds_begin_where_a_sector_does(fit, counts, monkeypatch):
    """dL/dlogits of a pair are side by side; 8 of them are 32 bytes, which are read together."""
    from collamo_kernels.coattention.triton import rounds as rounds_of_heads

    monkeypatch.setattr(rounds_of_heads, "BUDGET", fit * 4 * 100)
    rounds = list(rounds_of_heads.rounds_of(40, 100, limited=True))
    assert [x.stop - x.start for x in rounds] == counts
    assert [x.start for x in rounds] == [0, *(x.stop for x in rounds[:-1])]
    assert list(rounds_of_heads.rounds_of(40, 100, limited=False)) == [slice(0, 40)]


def test_launches(launches):
    """Of a layer and its radial function; PyTorch adds |σ| + min_sigma and joins parameters."""
    inputs = draw(Case("two", (5, 3), width=8, head="mlp"))
    inputs.relations.prepare()
    inputs.relations.coordinates.requires_grad_(False)
    tensors = [x for _, x in inputs.grads() if x.requires_grad]
    with launches() as names, Recorder() as forward:
        out = attend(inputs, "packed", backend="triton")
    assert names == ["survey", "tabulate", "locate", "attend"]
    assert {f._opname for f in forward.others} - VIEWS == {"abs", "add", "cat"}
    with launches() as names, Recorder() as backward:
        torch.autograd.grad(out, tensors, inputs.cotangent)
    own = "evaluate", "differentiate", "add_up", "add_exact", "finish"  # of the attention
    assert names == [*own, "differentiate", "collect"]  # the radial table
    assert {f._opname for f in backward.others} - VIEWS == {"add", "mul", "sgn"}


def test_layers_tabulate_together(launches, monkeypatch):
    """Two launches forward and two backward for all that are alike, to the same bits.

    A layer that wants a history where there is none tabulates by itself.
    """
    set_knots(monkeypatch, 512)
    inputs = draw(Case("two", (5, 3), width=8))
    relations = inputs.relations
    relations.coordinates.requires_grad_(False)
    torch.manual_seed(0)
    layers = [ck.CoAttention(16, 2, hop_buckets=0, radial=None) for _ in range(4)]
    for layer in layers[:2]:
        layer.radial = ck.GaussianRadial(2, 12, min_sigma=0.3)
    layers[2].radial = ck.GaussianRadial(2, 12, head="linear", min_sigma=0.3)
    model = torch.nn.ModuleList(layers).to(DEVICE)
    parameters, x = list(model.parameters()), torch.randn(8, 16, device=DEVICE)
    radials = [layer.radial for layer in layers]

    def run():
        y = x
        with ck.use_backend("triton"):
            for layer in layers:
                y = y + layer(y, relations)
        return y

    def gradients(y):
        return torch.autograd.grad(y.square().sum(), parameters)

    with launches() as names:
        alone = run()
        expected = gradients(alone)
    assert names.count("survey") == names.count("tabulate") == names.count("collect") == 3
    with launches() as names:
        with ck.tabulated_together(relations, radials, dtype=torch.float32):
            ours = run()
        actual = gradients(ours)
    for name in ("survey", "tabulate", "collect"):
        assert names.count(name) == 2, name  # of the two that are alike, and of the other
    assert torch.equal(ours, alone)
    assert all(map(torch.equal, actual, expected))
    together = ck.tabulated_together(relations, radials, dtype=torch.float32)
    with launches() as names:
        with torch.no_grad(), together, torch.enable_grad():
            ours = run()
        actual = gradients(ours)
    assert names.count("survey") == 2 + 3
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_layer_never_waits_for_the_device(layout, head, no_waiting):
    """Nothing was prepared: what a layer needs of its relations is worked out on the way."""
    inputs = draw(dataclasses.replace(EVERYTHING, head=head))
    relations, q = inputs.relations, inputs.q
    if layout == "padded":
        relations, q = relations.padded(), inputs.layout.pad(q).transpose(1, 2)
    x = relations.coordinates.detach().requires_grad_()
    relations, q = dataclasses.replace(relations, coordinates=x), q.detach().requires_grad_()
    phi = {"hop_bias": inputs.hop_bias, "radial": inputs.radial}
    cotangent = torch.randn_like(q)
    with no_waiting():
        out = ck.coattention(q, q, q, relations=relations, dropout_p=0.1, backend="triton", **phi)
        out.backward(cotangent)
        dense = ck.share_bias(relations, layers=9, dtype=torch.float16, **phi)["bias"]
        dense.backward(torch.ones_like(dense))
    assert q.grad.abs().sum() > 0


def test_preparing_never_waits_for_the_device(monkeypatch, no_waiting):
    """On a GPU, that is: the CPU's attention wants the largest distance as a number."""
    relations = dataclasses.replace(draw(EVERYTHING).relations)
    monkeypatch.setattr(ck.Relations, "device", torch.device("cuda", 0))
    with no_waiting():
        relations.prepare()


def test_same_bits_every_time():
    inputs = draw(EVERYTHING)
    first = with_gradients(by_triton(), inputs)
    again = with_gradients(by_triton(), inputs)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.fixture
def unwritten_is_nan():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unwritten_is_nan")
@pytest.mark.skipif(not _triton.INTERPRETED, reason="a GPU runs programs in an order of its own")
@pytest.mark.parametrize("knots", [2048, 16], ids=["table", "exact"])
def test_same_bits_in_whatever_order_programs_end(knots, monkeypatch):
    """Entries of several rows of pairs and rows of several entries, gaps, heads of two columns."""
    from triton.runtime.interpreter import interpreter_builder

    from collamo_kernels.coattention.triton import launch_pairs as launch

    set_knots(monkeypatch, knots)
    finer = {"entries": 64, "hop_entries": 2, "runs": 4, "hop_runs": 2}
    set_pairs(monkeypatch, **finer, sums=32, steps=4, heads=2, columns=2)
    finer = {"places": 64, "slice": 16, "chunk": 16}
    radial = launch.on_radial
    monkeypatch.setattr(radial, "RADIAL", dataclasses.replace(radial.RADIAL, **finer))
    case = Case("slices", (17, 0, 6), heads=3, width=4, head="mlp", gaussians=20)
    inputs = draw(dataclasses.replace(case, conformer_missing=True))
    first = with_gradients(by_triton(), inputs)
    exact = with_gradients(attend, inputs.double())
    assert_all_accurate(first, with_gradients(attend_eagerly, inputs), exact)
    place = interpreter_builder.set_grid_idx
    for order in (lambda x, n: n - 1 - x, lambda x, n: x // 2 + x % 2 * ((n + 1) // 2)):

        def elsewhere(x, y, z, order=order):
            count = interpreter_builder.grid_dim[0]
            place(order(x, count), y, z)

        monkeypatch.setattr(interpreter_builder, "set_grid_idx", elsewhere)
        again = with_gradients(by_triton(), inputs)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.usefixtures("unwritten_is_nan")
def test_entries_behind_a_gap_are_zero(monkeypatch):
    """Columns of the hop table that no pair reads, where a row of pairs ends and within one."""
    set_pairs(monkeypatch, hop_entries=2, hop_runs=2, steps=64, sums=64)
    hops = torch.tensor([1] * 64 + [20] * 96 + [40] * 32 + [255] * 64, dtype=torch.uint8)
    relations = ck.Relations(hops=hops, cu_seqlens=torch.tensor([0, 16], dtype=torch.int32))
    relations, generator = relations.to(DEVICE), torch.Generator().manual_seed(0)
    q, k, v, cotangent = torch.randn(4, 16, 3, 8, generator=generator).to(DEVICE)
    hop_bias = torch.randn(3, 64, generator=generator).to(DEVICE).requires_grad_()

    out = ck.coattention(q, k, v, relations=relations, hop_bias=hop_bias, backend="triton")
    gradient, read = torch.autograd.grad(out, hop_bias, cotangent)[0].cpu(), torch.zeros(64).bool()
    read[[1, 20, 40, 63]] = True
    assert torch.equal(gradient[:, ~read], torch.zeros(3, 60))
    assert (gradient[:, read] != 0).all()


class Recorder(TorchDispatchMode):
    """The first call of every operator of ours, and the operators of PyTorch beside them."""

    def __init__(self):
        super().__init__()
        self.calls, self.others = {}, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "collamo_kernels":
            self.calls.setdefault(function, args)
        else:
            self.others.add(function)
        return function(*args, **(kwargs or {}))


def test_opcheck(monkeypatch):
    """Schema, fake, autograd and compilation of all eight operators, as the attention calls."""
    set_knots(monkeypatch, 16)  # where a table fits the exact Φ3d is left as it is in memory
    inputs = draw(dataclasses.replace(EVERYTHING, head="mlp"))
    phi = {"hop_bias": inputs.hop_bias, "radial": inputs.radial}
    with Recorder() as recorder:
        with_gradients(by_triton(dropout_p=0.1), inputs)
        half = ck.share_bias(inputs.relations, layers=4, dtype=torch.float16, **phi)["bias"]
        half.sum().backward()
    ours = {f: args for f, args in recorder.calls.items() if f._opname not in NOT_IN_TRITON}
    assert len(ours) == 8
    for function, args in ours.items():
        forward = not function._opname.endswith("backward")

        def leaf(x, forward=forward):
            tensor = isinstance(x, torch.Tensor)
            return x.detach().requires_grad_(forward and x.requires_grad) if tensor else x

        torch.library.opcheck(function, tuple(map(leaf, args)))


def test_no_operator_writes_what_it_is_given():
    """Where the table fits: its pairs are sorted into segments then."""
    inputs = draw(Case("two", (5, 3), width=8))
    assert table_of(inputs).fits == 1
    with Recorder() as recorder:
        with_gradients(by_triton(), inputs)
    calls = {f._opname: (f, args) for f, args in recorder.calls.items()}
    for name in ("coattention_triton_backward", "radial_table_backward"):
        function, args = calls[name]
        args = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in args)
        torch.library.opcheck(function, args, test_utils="test_schema")


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_compiles_as_one_graph(layout):
    inputs = draw(EVERYTHING)
    plain = with_gradients(by_triton(layout), inputs)
    compiled = torch.compile(by_triton(layout), fullgraph=True, backend="aot_eager")
    graph = with_gradients(compiled, inputs)
    exact = with_gradients(attend, inputs.double())
    assert torch.equal(graph["out"], plain["out"])
    assert_all_accurate(graph, with_gradients(attend_eagerly, inputs), exact)


def test_second_gradients():
    inputs = draw(Case("two", (4, 3), width=4, bias=True))

    def second(inputs, backend):
        out = attend(inputs, "packed", backend=backend)
        (first,) = torch.autograd.grad(out, inputs.q, inputs.cotangent, create_graph=True)
        tensors = [inputs.q, inputs.k, inputs.hop_bias, inputs.bias]
        return torch.autograd.grad(first.square().sum(), tensors)

    ours, theirs = second(inputs, "triton"), second(inputs, "reference")
    for x, y, exact in zip(ours, theirs, second(inputs.double(), "reference"), strict=True):
        assert_accurate(x, y, exact, factor=5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 129}, "head width 129 > 128"),
        ({"dtype": torch.float64}, "float64 runs the reference"),
        pytest.param(
            *({"dtype": torch.bfloat16}, "bfloat16 needs a GPU"),
            marks=pytest.mark.skipif(DEVICE == "cuda", reason="there is one"),
        ),
    ],
)
def test_refusals(change, reason):
    width, dtype = change.get("width", 8), change.get("dtype", torch.float32)
    q = torch.zeros(1, 1, 2, width, dtype=dtype, device=DEVICE)
    with pytest.raises(ck.BackendError, match=f"backend 'triton': {reason}"):
        ck.coattention(q, q, q, backend="triton")


def test_refuses_a_hop_table_with_more_columns_than_a_pair_can_name():
    q, hops = torch.zeros(1, 1, 2, 8), torch.zeros(1, 2, 2, dtype=torch.uint8)
    relations, table = ck.Relations(hops=hops).to(DEVICE), torch.zeros(1, 16385, device=DEVICE)
    q = q.to(DEVICE)
    with pytest.raises(ck.BackendError, match="a hop table of 16385 columns > 16384"):
        ck.coattention(q, q, q, relations=relations, hop_bias=table, backend="triton")
    shared = ck.share_bias(relations, layers=9, dtype=torch.float16, hop_bias=table)
    assert shared.keys() == {"hop_bias", "radial"}


def test_without_triton(monkeypatch):
    monkeypatch.setattr(_triton, "INSTALLED", False)
    q = torch.zeros(1, 1, 2, 8, device=DEVICE)
    with pytest.raises(ck.BackendError, match="Triton is not installed; run: pip install triton"):
        ck.coattention(q, q, q, backend="triton")
