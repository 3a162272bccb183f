"""Sums over the neighbours of a node and their gradients, on every backend."""

import math

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.neighbour_sum import reference
from collamo_kernels.neighbour_sum.op import gradients
from collamo_kernels.testing import assert_accurate


@pytest.fixture
def sum_of(neighbour_sum_backend, serves):
    """`collamo_kernels.neighbour_sum` on the backend under test."""

    def run(*arguments, **options):
        options["backend"] = neighbour_sum_backend
        return serves(neighbour_sum_backend, lambda: ck.neighbour_sum(*arguments, **options))

    return run


def graph(nodes, edges, channels, rows=None, kinds=7, seed=0):
    """x [rows, C], table [kinds, C], source, kind, ptr of `nodes` nodes, and a receiver of each."""
    generator = torch.Generator().manual_seed(seed)
    rows = nodes if rows is None else rows

    def numbers(limit, count):
        return torch.randint(max(limit, 1), (count,), generator=generator)

    x, table = (torch.randn(n, channels, generator=generator) for n in (rows, kinds))
    target = numbers(nodes, edges).sort().values
    ptr = torch.searchsorted(target, torch.arange(nodes + 1))
    return (x, table, numbers(rows, edges), numbers(kinds, edges), ptr), numbers(rows, nodes)


def test_by_hand(sum_of):
    x = torch.tensor([[1.0, -1.0], [10.0, -10.0]])
    table = torch.tensor([[0.5, 0.5], [-20.0, 20.0]])
    edges = torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0]), torch.tensor([0, 2, 3])
    assert sum_of(x, table, *edges).tolist() == [[10.5, 10.0], [1.5, 0.0]]
    assert sum_of(x, table, *edges, relu=False).tolist() == [[0.5, 0.5], [1.5, -0.5]]
    two = torch.tensor([2.0])
    assert sum_of(x, table, *edges, scale=two).tolist() == [[12.5, 8.0], [21.5, -20.0]]
    swapped = sum_of(x, table, *edges, scale=two, receiver=torch.tensor([1, 0]))
    assert swapped.tolist() == [[30.5, -10.0], [3.5, -2.0]]


SHAPES = [(0, 0, 5), (1, 0, 5), (1, 3, 1), (2, 4, 3), (17, 40, 15), (33, 64, 16), (65, 129, 17)]
SHAPES += [(257, 513, 300), (9, 2000, 65)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("own", ["none", "itself", "receiver"])
def test_accuracy(shape, relu, own, sum_of):
    """Value and the gradients of x, table and scale."""
    nodes = shape[0]
    rows = nodes + 3 if own == "receiver" else None
    (x, table, *edges), receiver = graph(*shape, rows=rows)
    options = {"relu": relu}
    if own == "receiver":
        options["receiver"] = receiver
    cotangent = torch.randn(nodes, shape[2])

    def results(run, dtype):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, table)]
        if own != "none":
            options["scale"] = torch.full((1,), 1.3, dtype=dtype, requires_grad=True)
            leaves.append(options["scale"])
        out = run(*leaves[:2], *edges, **options)
        return out, *torch.autograd.grad(out, leaves, cotangent.to(dtype))

    exact = results(reference.neighbour_sum, torch.float64)
    yardstick = results(reference.neighbour_sum, torch.float32)
    actual = results(sum_of, torch.float32)
    factors = {"out": 2, "x": 3, "table": 5, "scale": 5}
    for (name, factor), *values in zip(factors.items(), actual, yardstick, exact, strict=False):
        assert_accurate(*values, factor=factor, name=name)


def test_same_bits_whatever_the_threads(sum_of):
    (x, table, *edges), _ = graph(300, 900, 65)
    x.requires_grad_(), table.requires_grad_()
    cotangent, found, before = torch.randn(300, 65), [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = sum_of(x, table, *edges)
        found.append((out, *torch.autograd.grad(out, (x, table), cotangent)))
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


def test_edges_count_in_their_order(sum_of):
    """A sum that depends on it: 1 is lost beside 2**24, but not after it has gone."""
    x = torch.tensor([[2.0**24], [1.0], [-(2.0**24)]])
    edges = torch.tensor([0, 1, 2, 0, 2, 1]), torch.zeros(6, dtype=torch.int64)
    ptr = torch.tensor([0, 3, 6])
    assert sum_of(x, torch.zeros(1, 1), *edges, ptr, relu=False).tolist() == [[0.0], [1.0]]


def test_nan_goes_through(sum_of):
    (x, table, *edges), _ = graph(9, 20, 5)
    source, _, ptr = edges
    x[int(source[0])] = math.nan
    target = int(torch.searchsorted(ptr, 0, right=True)) - 1
    out = sum_of(x, table, *edges)
    assert out[target].isnan().all()
    assert not out.isnan().all()


def test_any_strides(sum_of):
    (x, table, source, kind, ptr), receiver = graph(20, 50, 9)
    options = {"receiver": receiver, "scale": torch.tensor(0.7)}
    wanted = sum_of(x, table, source, kind, ptr, **options)
    odd = [t.t().contiguous().t() for t in (x, table)]
    odd += [torch.stack([t, t], -1)[..., 0] for t in (source, kind, ptr)]
    assert not any(t.is_contiguous() for t in odd)
    assert torch.equal(sum_of(*odd, **options), wanted)


def test_gradcheck():
    arguments, receiver = graph(5, 12, 3, rows=4)
    x, table = (t.double().requires_grad_() for t in arguments[:2])
    scale = torch.tensor([1.2], dtype=torch.float64, requires_grad=True)
    for relu in (True, False):

        def run(x, table, scale, relu=relu):
            options = {"receiver": receiver, "scale": scale, "relu": relu}
            return ck.neighbour_sum(x, table, *arguments[2:], **options)

        assert torch.autograd.gradcheck(run, (x, table, scale))


@pytest.mark.parametrize("relu", [True, False])
def test_the_definition_of_the_gradients(relu):
    (x, table, *edges), _ = graph(17, 40, 5)
    x, table = (t.double().requires_grad_() for t in (x, table))
    cotangent = torch.randn(17, 5, dtype=torch.float64)
    out = reference.neighbour_sum(x, table, *edges, relu=relu)
    wanted = torch.autograd.grad(out, (x, table), cotangent)
    for ours, theirs in zip(gradients(cotangent, x, table, *edges, relu), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nan_passes_gradients_on(sum_of):
    """As through PyTorch's ReLU: a weight behind a message that is no number still learns."""
    (x, table, *edges), _ = graph(17, 40, 5)
    x[int(edges[0][0])] = math.nan
    x.requires_grad_(), table.requires_grad_()
    cotangent = torch.randn(17, 5)
    wanted = torch.autograd.grad(reference.neighbour_sum(x, table, *edges), (x, table), cotangent)
    found = torch.autograd.grad(sum_of(x, table, *edges), (x, table), cotangent)
    defined = gradients(cotangent, x.detach(), table.detach(), *edges, True)
    for theirs, *ours in zip(wanted, found, defined, strict=True):
        for gradient in ours:
            torch.testing.assert_close(gradient, theirs)


def test_second_gradients(serves):
    """The backward is linear in the cotangent: its gradient is the sum with what came back."""
    (x, table, *edges), _ = graph(17, 40, 5)
    x.requires_grad_(), table.requires_grad_()
    cotangent = torch.randn(17, 5, requires_grad=True)
    out = serves("cpu", lambda: ck.neighbour_sum(x, table, *edges, backend="cpu"))
    first = torch.autograd.grad(out, (x, table), cotangent, create_graph=True)
    back = [torch.randn_like(t) for t in first]
    (second,) = torch.autograd.grad(first, cotangent, back)
    on = (x[edges[0]] + table[edges[1]] > 0).float() * (back[0][edges[0]] + back[1][edges[1]])
    target = torch.arange(17).repeat_interleave(edges[2].diff())
    torch.testing.assert_close(second, torch.zeros(17, 5).index_add(0, target, on.detach()))


@pytest.mark.parametrize("own", [False, True])
def test_opcheck(own, serves):
    (x, table, *edges), receiver = graph(9, 20, 5)
    x.requires_grad_(), table.requires_grad_()
    scale = torch.tensor([1.2], requires_grad=True) if own else None
    receiver = receiver if own else None
    serves("cpu", lambda: ck.neighbour_sum(x, table, *edges, backend="cpu"))
    operators = torch.ops.collamo_kernels
    torch.library.opcheck(operators.neighbour_sum, (x, table, *edges, receiver, scale, True))
    grad = torch.randn(9, 5, requires_grad=True)
    torch.library.opcheck(operators.neighbour_sum_backward, (grad, x, table, *edges, True))


def test_compiles_as_one_graph(sum_of):
    (x, table, *edges), _ = graph(9, 20, 5)
    x.requires_grad_()

    def run(x):
        return sum_of(x, table, *edges, scale=torch.ones(1)).square().sum(-1)

    eager = run(x)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled, eager)
    gradients = (torch.autograd.grad(out.sum(), x)[0] for out in (eager, compiled))
    assert torch.equal(*gradients)


def wrong(**changes):
    """The arguments of a small graph with some replaced."""
    names = ("x", "table", "source", "kind", "ptr")
    return dict(zip(names, graph(3, 4, 2)[0], strict=True)) | changes


ONES = torch.ones(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [[1.0]]}, "x is a list; make it a tensor"),
        ({"x": torch.zeros(3)}, "x is torch.float32"),
        ({"table": torch.zeros(7, 3)}, "x has 2 channels and table 3"),
        ({"source": ONES.int()}, "source is torch.int32"),
        ({"kind": ONES[:3]}, "kind has 3 edges and source 4"),
        ({"ptr": ONES[:0]}, "ptr is empty"),
        ({"receiver": ONES}, "receiver has 4 nodes and ptr 3"),
        ({"x": torch.zeros(5, 2), "scale": torch.ones(1)}, "x has 5 rows and ptr 3 nodes"),
        ({"scale": torch.ones(2)}, r"scale has shape \[2\]"),
        ({"scale": torch.ones(1, device="meta")}, "scale is on meta and x on cpu"),
    ],
)
def test_wrong_form_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ck.neighbour_sum(**wrong(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 3 * ONES}, "source must be .* rows of x"),
        ({"source": -ONES}, "source must be .* rows of x"),
        ({"kind": 7 * ONES}, "kind must be .* rows of table"),
        ({"ptr": torch.tensor([0, 3, 2, 4])}, "ptr must rise from 0 to the number of edges"),
        ({"ptr": torch.tensor([1, 2, 3, 4])}, "ptr must rise"),
        ({"ptr": torch.tensor([0, 1, 2, 3])}, "ptr must rise"),
        ({"receiver": torch.tensor([0, 1, 3])}, "receiver must be .* rows of x"),
    ],
)
def test_the_operator_never_reads_beyond_its_input(changes, message, serves):
    serves("cpu", lambda: ck.neighbour_sum(**wrong(), backend="cpu"))
    with pytest.raises(ValueError, match=message):
        ck.neighbour_sum(**wrong(**changes), backend="cpu")


def test_other_dtypes_run_the_reference(serves):
    arguments = wrong()
    serves("cpu", lambda: ck.neighbour_sum(**arguments, backend="cpu"))
    for dtype in (torch.float64, torch.bfloat16):
        cast = arguments | {name: arguments[name].to(dtype) for name in ("x", "table")}
        assert ck.neighbour_sum(**cast).dtype == dtype
        with pytest.raises(ck.BackendError, match=f"x is {dtype}; this backend takes float32"):
            ck.neighbour_sum(**cast, backend="cpu")
