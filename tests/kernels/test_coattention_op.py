"""The compiled attention as an operator: its registration, its bits, its second derivative."""

import dataclasses
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import collamo_kernels as ck
from collamo_kernels.coattention import _cpu, op
from collamo_kernels.coattention.arguments import PLACES, Arguments, Learned, to_bits
from collamo_kernels.coattention.definition import definition
from collamo_kernels.coattention.dropout import dropout_factors
from collamo_kernels.extension import why_absent
from collamo_kernels.testing import (
    CASES,
    Case,
    assert_accurate,
    assert_all_accurate,
    attend,
    attend_eagerly,
    make_inputs,
    required_backends,
    with_gradients,
)

ABSENT = why_absent() if "cpu" not in required_backends() else None
pytestmark = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))

BY_NAME = {case.name: case for case in CASES}
SMALL = (
    Case("plain", (5, 3), hops=False, distances=False, width=4),
    Case("table", (5, 0, 3), width=4, conformer_missing=True),
    Case("typed, dense bias", (5, 3), width=4, types="pair", bias=True),
    Case("atom types", (4, 2), heads=9, width=3, types="atom"),
    Case("sink", (5, 0, 3), width=4, bias=True, sink=True),
)
SINKS = pytest.mark.parametrize("sink", [False, True], ids=["plain", "sink"])


def ids(case):
    return case.name.replace(" ", "-")


def on_cpu(inputs, layout="packed", **options):
    return attend(inputs, layout, backend="cpu", **options)


def arguments_of(inputs, monkeypatch, layout="packed", **options):
    """Everything that the public function hands to the operator, in the schema's order."""
    caught = {}

    def attend_and_tell(arguments):
        caught["all"] = arguments
        return torch.zeros_like(arguments.q)

    with monkeypatch.context() as patch:
        patch.setattr(_cpu.op, "attend", attend_and_tell)
        on_cpu(inputs, layout, **options)
    return caught["all"]


def leaves(arguments):
    """The arguments as leaves of a graph of their own, the learned ones asking for gradients."""
    return tuple(
        x.detach().requires_grad_(at in PLACES) if isinstance(x, torch.Tensor) else x
        for at, x in enumerate(arguments)
    )


class TestRegistration:
    @pytest.mark.parametrize("layout", ["padded", "packed"])
    @pytest.mark.parametrize("case", SMALL, ids=ids)
    def test_forward(self, case, layout, monkeypatch):
        arguments = leaves(arguments_of(make_inputs(case), monkeypatch, layout))
        opcheck(torch.ops.collamo_kernels.coattention_forward.default, arguments)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("case", SMALL, ids=ids)
    def test_backward(self, case, dtype, monkeypatch):
        inputs = make_inputs(case, dtype)
        arguments = arguments_of(inputs, monkeypatch)
        with torch.no_grad():
            results = torch.ops.collamo_kernels.coattention_forward(*arguments)
        # The second derivative of coordinates and affine is refused, so nobody asks for the first.
        refused = {"coordinates", "affine"}
        asked = Learned(*(name not in refused for name in Learned._fields))
        arguments = (inputs.cotangent, *results, *arguments, to_bits(asked))
        places = zip(PLACES, Learned._fields, strict=True)
        learned = {3 + at for at, name in places if name not in refused} | {0}
        arguments = tuple(
            x.detach().requires_grad_(at in learned) if isinstance(x, torch.Tensor) else x
            for at, x in enumerate(arguments)
        )
        opcheck(torch.ops.collamo_kernels.coattention_backward.default, arguments)

    def test_dropout(self, monkeypatch):
        arguments = leaves(arguments_of(make_inputs(SMALL[0]), monkeypatch, dropout_p=0.5))
        opcheck(torch.ops.collamo_kernels.coattention_forward.default, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(
    ("types", "sink"), [(None, False), (None, True), ("pair", True), ("atom", False)]
)
def test_compiles_as_one_graph_with_its_gradients(layout, types, sink):
    """Through the public function; a compiled graph evaluates the radial module at every pair."""

    def gradients(inputs, compiled=False, backend="reference"):
        place, relations = inputs.layout, inputs.relations
        q, bias = inputs.q, inputs.bias
        if layout == "padded":
            q, relations = place.pad(q).transpose(1, 2), relations.padded()
            bias = place.pad_pairs(bias.t()).permute(0, 3, 1, 2)
        q, bias = (x.detach().requires_grad_() for x in (q, bias))
        hop_bias, radial = inputs.hop_bias, inputs.radial

        def run(q):
            phi = {"relations": relations, "hop_bias": hop_bias, "radial": radial, "bias": bias}
            return ck.coattention(q, q, q, **phi, sink=inputs.sink, backend=backend)

        if compiled:
            run = torch.compile(run, fullgraph=True, backend="aot_eager")
        out = run(q)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        names = ["q", "bias", "hop_bias", "radial.mu", "radial.head.0.weight", *["sink"] * sink]
        learned = [q, bias, hop_bias, radial.mu, radial.head[0].weight, *[inputs.sink] * sink]
        found = torch.autograd.grad(out, learned, cotangent)
        return {"out": out.detach(), **dict(zip(names, found, strict=True))}

    case = Case("small", (6, 4), bias=True, types=types, conformer_missing=True, sink=sink)
    ours = gradients(make_inputs(case), compiled=True, backend="cpu")
    assert_all_accurate(ours, gradients(make_inputs(case)), gradients(make_inputs(case).double()))


class TestSameBits:
    CASE = Case("three sizes", (40, 3, 26), heads=10, width=10, types="pair", sink=True)

    def run(self, threads=1):
        inputs = make_inputs(self.CASE)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return with_gradients(on_cpu, inputs)
        finally:
            torch.set_num_threads(before)

    def test_forward_repeats(self):
        inputs = make_inputs(self.CASE)
        with torch.no_grad():
            first = on_cpu(inputs)
            assert all(torch.equal(on_cpu(inputs), first) for _ in range(249))

    def test_backward_repeats(self):
        first = self.run()
        for _ in range(49):
            again = self.run()
            assert all(torch.equal(again[name], first[name]) for name in first)

    @pytest.mark.parametrize("threads", [2, 3])
    def test_any_number_of_threads(self, threads):
        first, again = self.run(), self.run(threads)
        assert all(torch.equal(again[name], first[name]) for name in first)

    def test_tasks_that_end_out_of_order(self, monkeypatch):
        """Table gradients are added up task by task: in one order, whichever ends first."""
        sizes = (128, 4, 60) * 6 + (200, 31)  # nine tasks
        monkeypatch.setattr(TestSameBits, "CASE", Case("many", sizes, heads=16, width=4, sink=True))
        first = self.run()
        for _ in range(20):
            again = self.run(threads=4)
            assert all(torch.equal(again[name], first[name]) for name in first)

    @pytest.mark.parametrize("threads", [2, 3])
    def test_one_large_molecule_on_threads(self, threads, monkeypatch):
        monkeypatch.setattr(
            TestSameBits, "CASE", Case("large", (300,), heads=1, width=5, sink=True)
        )
        first, again = self.run(), self.run(threads)
        assert all(torch.equal(again[name], first[name]) for name in first)


class TestThreads:
    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux lists threads there")
    def test_as_many_as_torch_says(self, threads):
        """A call on two threads starts the one that was not there; on one thread it starts none."""
        code = f"""
import os, torch
torch.set_num_threads(1)
from collamo_kernels.testing import Case, attend, make_inputs
inputs = make_inputs(Case("large", (200,), heads=32, width=32))
count = lambda: len(os.listdir("/proc/self/task"))
with torch.no_grad():
    attend(inputs, backend="cpu")  # whatever a first call starts
    before = count()
    torch.set_num_threads({threads})
    attend(inputs, backend="cpu")
print(count() - before)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
        )
        assert int(done.stdout) == threads - 1

    @pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
    def test_other_python_threads_run_meanwhile(self, backward):
        """The GIL is released while the operator runs.

        No thread is made to give the GIL up here, so this one gets a turn only where the other
        releases it: once in each small operation of PyTorch around the operator, and again and
        again inside an operator that is long and lets it.
        """
        one_atom, large = (
            make_inputs(Case("", (atoms,), heads=32, width=32)) for atoms in (1, 400)
        )
        assert turns_during(large, backward) > 100 + 3 * turns_during(one_atom, backward)


def turns_during(inputs, backward):
    """How often this thread gets the GIL while another one calls the attention ten times."""
    running, turns = False, 0

    def call():
        nonlocal running
        outputs = [on_cpu(inputs) for _ in range(10)] if backward else []
        running = True
        if backward:
            torch.autograd.grad(outputs, inputs.q, [inputs.cotangent] * 10)
        else:
            for _ in range(10):
                on_cpu(inputs)
        running = False

    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600.0)
    try:
        worker = threading.Thread(target=call)
        worker.start()
        while worker.is_alive():
            turns += running
            time.sleep(0)  # offers the GIL
    finally:
        sys.setswitchinterval(interval)
    return turns


def test_real_molecules():
    """A drug, a long chain, a salt of two ions and a single atom, with conformers."""
    chem = pytest.importorskip("rdkit.Chem")
    embed = pytest.importorskip("rdkit.Chem.AllChem").EmbedMolecule
    smiles = "CC(=O)Oc1ccccc1C(=O)O", "CCCCCCCCCCCC(=O)O", "[Na+].[O-]C(=O)c1ccccc1", "O"
    mols = [chem.MolFromSmiles(x) for x in smiles]
    with pytest.importorskip("rdkit.rdBase").BlockLogs():  # no hydrogens, on purpose
        assert all(embed(mol, randomSeed=7) == 0 for mol in mols)
    ptr = torch.tensor([0, *(mol.GetNumAtoms() for mol in mols)]).cumsum(0)
    bonds = [
        (start + bond.GetBeginAtomIdx(), start + bond.GetEndAtomIdx())
        for mol, start in zip(mols, ptr.tolist(), strict=False)
        for bond in mol.GetBonds()
    ]
    one_way = torch.tensor(bonds).t()
    x = [torch.tensor(mol.GetConformer().GetPositions()).float() for mol in mols]
    relations = ck.Relations.from_graphs(
        torch.cat([one_way, one_way.flip(0)], 1),
        ptr,
        torch.cat(x).requires_grad_(),
        layout="packed",
    )
    case = Case("real", tuple(ptr.diff().tolist()), heads=8, width=24, gaussians=128, head="mlp")
    drawn = make_inputs(case)
    inputs = dataclasses.replace(drawn, relations=relations)
    runs = (on_cpu, inputs), (attend_eagerly, inputs), (attend, inputs.double())
    assert_all_accurate(*(with_gradients(*run) for run in runs))
    assert (relations.hops == 255).any()  # between the ions


def test_as_accurate_where_nothing_learns():
    """The radial table has fewer knots then."""
    inputs = make_inputs(BY_NAME["transformer-m"])
    with torch.no_grad():
        out = on_cpu(inputs)
        assert_accurate(out, attend_eagerly(inputs), attend(inputs.double()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "on_instruction_set", ["baseline", "avx2_narrow", "avx2", "avx512"], indirect=True
)
def test_every_instruction_set(on_instruction_set):
    """On the accuracy tests of a few cases."""
    cases = "around-16 or slim or uni-mol or beyond-256 or dense-bias or atom-types or sink"
    on_instruction_set("tests/kernels/test_coattention.py", f"accuracy and cpu and ({cases})")
    on_instruction_set("tests/kernels/test_coattention.py", "Sink and cpu")


class TestSecondDerivative:
    @SINKS
    @pytest.mark.parametrize("layout", ["padded", "packed"])
    @pytest.mark.parametrize("radial", ["table", "rows"])
    def test_is_that_of_the_definition(self, radial, layout, sink):
        """A penalty on first gradients, differentiated: what gradient-penalised training does."""
        sizes = (5, 4) if sink else (4, 3)
        case = Case("small", sizes, width=4, bias=True, conformer_missing=True, sink=sink)

        def run(inputs, backend):
            if radial == "rows":
                module, exact = inputs.radial, inputs.q.dtype == torch.float64
                inputs.radial = lambda r: module(r if exact else r.float())
            learned = [inputs.q, inputs.k, inputs.v, inputs.hop_bias, inputs.bias]
            if radial == "rows":
                learned.append(inputs.relations.coordinates)
            if sink:
                learned.append(inputs.sink)
            out = attend(inputs, layout, backend=backend)
            grads = torch.autograd.grad(out, learned, inputs.cotangent, create_graph=True)
            penalty = sum(g.square().sum() for g in grads)
            second = torch.autograd.grad(penalty, learned)
            return dict(enumerate(second))

        names = ["q", "k", "v", "hop_bias", "bias"]
        names += ["coordinates"] * (radial == "rows") + ["sink"] * sink
        ours, plain, exact = (
            {names[at]: x for at, x in run(inputs, backend).items()}
            for inputs, backend in (
                (make_inputs(case), "cpu"),
                (make_inputs(case), "reference"),
                (make_inputs(case).double(), "reference"),
            )
        )
        assert_all_accurate(ours, plain, exact)

    def test_of_coordinates_through_a_table_is_refused(self):
        inputs = make_inputs(Case("small", (4,)))
        x = inputs.relations.coordinates
        (force,) = torch.autograd.grad(on_cpu(inputs), x, inputs.cotangent, create_graph=True)
        with pytest.raises(NotImplementedError, match="use backend='reference'"):
            torch.autograd.grad(force.square().sum(), inputs.radial.mu)


class TestDropout:
    P = 0.3

    def weights(self, seed, layout="padded", n=24, heads=3):
        """Uniform attention over values that are unit vectors: the result is the weights."""
        q = torch.zeros(2, heads, n, n)
        v = torch.eye(n).expand(2, heads, n, n)
        torch.manual_seed(seed)
        if layout == "padded":
            return ck.coattention(q, q, v, dropout_p=self.P, backend="cpu")
        relations = ck.Relations(cu_seqlens=torch.tensor([0, n, 2 * n], dtype=torch.int32))
        q, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, v))
        out = ck.coattention(q, q, v, relations=relations, dropout_p=self.P, backend="cpu")
        return out.unflatten(0, (2, n)).transpose(1, 2)

    @pytest.mark.parametrize("layout", ["padded", "packed"])
    def test_drops_what_the_definition_drops(self, layout):
        torch.manual_seed(3)
        factors = dropout_factors(torch.randint(2**63 - 1, (1,)), (2, 3, 24, 24), self.P)
        expected = factors.double() / 24
        assert_accurate(self.weights(3, layout), expected.float(), expected)

    def test_neighbours_are_independent(self):
        """Pairs of weights next to each other along every axis are kept together p² of the time."""
        seed = torch.tensor([12345])
        kept = (dropout_factors(seed, (20, 20, 20, 20), self.P) > 0).double()
        for axis in range(4):
            both = (kept.narrow(axis, 0, 19) * kept.narrow(axis, 1, 19)).mean()
            deviation = math.sqrt(0.49 * 0.51 / kept.numel())
            assert abs(float(both) - 0.49) < 6 * deviation

    @SINKS
    @pytest.mark.parametrize("sizes", [(9, 5), (150,)], ids=["small", "cut-in-parts"])
    def test_backward_drops_the_same_weights(self, sizes, sink):
        """Gradients are those of the definition with the forward's own factors."""
        inputs = make_inputs(Case("drop", sizes, width=4, bias=True, distances=False, sink=sink))

        def ours(x):
            torch.manual_seed(5)
            return on_cpu(x, dropout_p=self.P)

        def defined(x):
            torch.manual_seed(5)
            return definition(
                Arguments(
                    *(x.q, x.k, x.v),
                    hop_bias=x.hop_bias,
                    bias=x.bias,
                    sink=x.sink,
                    hops=x.relations.hops,
                    cu_seqlens=x.relations.cu_seqlens,
                    seed=torch.randint(2**63 - 1, (1,)),
                    scale=1 / math.sqrt(4),
                    dropout_p=torch.tensor([self.P], dtype=torch.float64),
                )
            )

        runs = (ours, inputs), (defined, inputs), (defined, inputs.double())
        assert_all_accurate(*(with_gradients(*run) for run in runs))

    def test_a_new_probability_compiles_no_new_graph(self):
        """From the second on, where the compiler learns that it changes."""
        inputs = make_inputs(Case("drop", (5, 3), distances=False))

        def drop(x, dropout_p):
            torch.manual_seed(5)
            return on_cpu(x, dropout_p=dropout_p)

        compiler = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(on_cpu, fullgraph=True, backend=compiler)
        graphs = []
        for dropout_p in (0.1, 0.2, 0.3, 0.4):
            torch.manual_seed(5)
            out = compiled(inputs, dropout_p=dropout_p)
            assert torch.equal(out, drop(inputs, dropout_p))
            graphs.append(compiler.frame_count)
        assert graphs[1:] == [graphs[1]] * 3


class TestAnyRadial:
    """A function without a table is evaluated at the pairs; its gradients flow through autograd."""

    @pytest.mark.parametrize("layout", ["padded", "packed"])
    @pytest.mark.parametrize("name", ["distances only", "a conformer missing", "atom types"])
    def test_matches_the_reference(self, name, layout):
        def run(inputs, backend):
            module = inputs.radial
            inputs.radial = WithoutTable(module)
            result = with_gradients(lambda x: attend(x, layout, backend=backend), inputs)
            inputs.radial = module
            return result

        case = BY_NAME[name]
        ours = run(make_inputs(case), "cpu")
        plain = run(make_inputs(case), "reference")
        exact = run(make_inputs(case).double(), "reference")
        assert_all_accurate(ours, plain, exact)

    def test_gaussians_too_narrow_for_a_table(self):
        inputs = make_inputs(BY_NAME["distances only"])
        with torch.no_grad():
            inputs.radial.sigma.zero_()
        inputs.radial.min_sigma = 1e-5
        assert inputs.radial.table(0.0, inputs.relations.max_distance) is None
        exact, plain = attend(inputs.double()), attend(inputs, backend="reference")
        assert_accurate(on_cpu(inputs), plain, exact)

    def test_wrong_number_of_heads(self):
        inputs = make_inputs(BY_NAME["distances only"])
        inputs.radial = ck.GaussianRadial(5)
        with pytest.raises(ValueError, match="radial has 5 heads, but q has 2"):
            on_cpu(inputs)


class WithoutTable(torch.nn.Module):
    """The same radial function with its table hidden."""

    def __init__(self, module):
        super().__init__()
        self.module, self.pair_types = module, module.pair_types

    def named_parameters(self, *_, **__):
        return self.module.named_parameters()

    def forward(self, *arguments):
        return self.module(*arguments)


@SINKS
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_real_atoms_in_any_pattern(layout, sink):
    """`valid` need not be a prefix: dropping atoms is the same as never having had them."""
    whole = make_inputs(Case("one", (9, 6), bias=True, sink=sink))
    kept = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 0], dtype=torch.bool)
    pairs = torch.cat([(kept[a:b, None] & kept[None, a:b]).flatten() for a, b in ((0, 9), (9, 15))])
    ends = [0, int(kept[:9].sum()), int(kept.sum())]
    packed = {"cu_seqlens": torch.tensor(ends, dtype=torch.int32)}
    x = whole.relations.coordinates.detach()
    smaller = ck.Relations(hops=whole.relations.hops[pairs], coordinates=x[kept], **packed)
    phi = {"hop_bias": whole.hop_bias, "radial": whole.radial, "sink": whole.sink}
    q, k, v = (x.detach() for x in (whole.q, whole.k, whole.v))
    bias = whole.bias.detach()
    alone = ck.coattention(
        q[kept], k[kept], v[kept], relations=smaller, bias=bias[:, pairs], **phi, backend="cpu"
    )
    relations = ck.Relations(
        hops=whole.relations.hops,
        coordinates=torch.where(kept[:, None], x, math.nan),
        valid=kept,
        cu_seqlens=whole.relations.cu_seqlens,
    )
    q, k, v = (torch.where(kept[:, None, None], t, math.nan) for t in (q, k, v))
    if layout == "packed":
        out = ck.coattention(q, k, v, relations=relations, bias=bias, **phi, backend="cpu")
    else:
        place = whole.layout
        q, k, v = (place.pad(t).transpose(1, 2) for t in (q, k, v))
        bias = place.pad_pairs(bias.t()).permute(0, 3, 1, 2)
        out = ck.coattention(q, k, v, relations=relations.padded(), bias=bias, **phi, backend="cpu")
        out = place.pack(out.transpose(1, 2))
    assert torch.equal(out[kept], alone)
    assert out[~kept].abs().max() == 0


BAD = {
    "k and v must have the shape of q": {"k": torch.zeros(1, 2, 4, 4)},
    "q must be float32, bfloat16 or float16": {"q": torch.zeros(1, 2, 3, 4, dtype=torch.float64)},
    "valid has the wrong dtype": {"valid": torch.ones(1, 3)},
    "valid has the wrong number": {"valid": torch.ones(1, 4, dtype=torch.bool)},
    "with cu_seqlens, else": {"cu_seqlens": torch.tensor([0, 3], dtype=torch.int32)},
    "hop_bias must be": {
        "hops": torch.zeros(1, 3, 3, dtype=torch.uint8),
        "hop_bias": torch.zeros(3, 4),
    },
    "hops has the wrong number": {
        "hops": torch.zeros(1, 2, 3, dtype=torch.uint8),
        "hop_bias": torch.zeros(2, 4),
    },
    "rows needs coordinates": {"rows": torch.zeros(2, 2, 2)},
    "first_knot must end at": {
        "rows": torch.zeros(3, 2, 2),
        "coordinates": torch.zeros(1, 3, 3),
        "first_knot": torch.tensor([0, 1], dtype=torch.int32),
    },
    "type 7 of a pair or atom": {
        "rows": torch.zeros(2, 2, 2),
        "coordinates": torch.zeros(1, 3, 3),
        "first_knot": torch.tensor([0, 1], dtype=torch.int32),
        "affine": torch.zeros(5, 2),
        "pair_types": torch.full((1, 3, 3), 7, dtype=torch.int32),
    },
    "phi has the wrong number": {"phi": torch.zeros(8, 2)},
    "bias must be": {"bias": torch.zeros(1, 2, 3, 2)},
    "sink must be": {"sink": torch.zeros(1, 2)},
    "sink has the wrong number": {"sink": torch.zeros(3)},
    "sink has the wrong dtype": {"sink": torch.zeros(2, dtype=torch.float64)},
    "dropout needs a seed": {"dropout_p": torch.tensor([0.5], dtype=torch.float64)},
    "dropout_p has the wrong dtype": {"dropout_p": torch.tensor([0.5])},
    "dropout_p has the wrong number": {"dropout_p": torch.zeros(2, dtype=torch.float64)},
    "dropout_p must be at least 0": {"dropout_p": torch.tensor([-0.5], dtype=torch.float64)},
    "and below 1": {"dropout_p": torch.tensor([1.0], dtype=torch.float64)},
}


@pytest.mark.parametrize("message", BAD)
def test_the_operator_guards_its_memory(message):
    """Callers through torch.ops get an error where the kernels would leave a tensor."""
    arguments = dict.fromkeys("qkv", torch.zeros(1, 2, 3, 4)) | BAD[message]
    with pytest.raises(ValueError, match=message):
        op.attend(Arguments(**arguments))
