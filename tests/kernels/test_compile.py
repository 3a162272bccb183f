"""The layer under torch.compile and torch.export: batch after batch, prepared relations, files."""

import copy
import io
import operator

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import collamo_kernels as ck
from collamo_kernels.testing import TABLE_FACTOR, assert_accurate, random_graphs

WIDTH, HEADS = 16, 4
BATCHES = (6, 4, 5), (9, 7), (12, 3, 8, 2), (20, 21)
LAYOUTS = pytest.mark.parametrize("layout", ["padded", "packed"])


def batch(sizes, layout, seed=0, coordinates=True):
    """x and the relations of molecules of these sizes, every second one without a conformer."""
    generator = torch.Generator().manual_seed(seed)
    edge_index, ptr = random_graphs(sizes, generator)
    places = torch.randn(sum(sizes), 3, generator=generator) if coordinates else None
    has_3d = torch.arange(len(sizes)) % 2 == 0 if coordinates else None
    relations = ck.Relations.from_graphs(edge_index, ptr, places, has_3d, layout="packed")
    x = torch.randn(sum(sizes), WIDTH, generator=generator)
    if layout == "packed":
        return x, relations
    return relations.packed_layout().pad(x), relations.padded()


def layer(**options):
    torch.manual_seed(0)
    return ck.CoAttention(WIDTH, HEADS, hop_buckets=8, sink=True, **options)


def gradients(run, x, relations, module):
    """The result, and the gradients of x and of the learned tensors, by name."""
    x = x.to(module.output.weight.dtype).requires_grad_()
    torch.manual_seed(0)
    out = run(x, relations)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    names, learned = zip(("x", x), *module.named_parameters(), strict=True)
    return dict(
        zip(("out", *names), (out, *torch.autograd.grad(out, learned, cotangent)), strict=True)
    )


def graph_of(function, *arguments):
    """The targets of what torch.compile records."""
    targets = []

    def record(graph, _):
        targets.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(function, fullgraph=True, backend=record)(*arguments)
    return targets


class Count(TorchDispatchMode):
    """How often an operator runs in compiled graphs: what torch.compile takes as its backend."""

    def __init__(self, name):
        super().__init__()
        self.name, self.times = name, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.times += function._opname == self.name
        return function(*args, **(kwargs or {}))

    def __call__(self, graph, _):
        def run(*inputs):
            with self:
                return graph.forward(*inputs)

        return run


class TestCompiled:
    def test_pairs_of_a_packed_batch_divide_by_nothing(self):
        """Inductor's vectors divide by the zeros beside the last number: ZeroDivisionError."""
        _, relations = batch((6, 4, 5), "packed")
        targets = graph_of(lambda x: x.atoms_of_pairs(), relations)
        divisions = {operator.floordiv, operator.mod, operator.truediv, "floor_divide", "remainder"}
        assert not divisions.intersection(targets)

    @LAYOUTS
    @pytest.mark.parametrize(
        ("coordinates", "prepared"), [(False, False), (True, False), (True, True)]
    )
    def test_two_graphs_serve_every_batch(self, layout, coordinates, prepared):
        """The second is for sizes that change."""
        torch._dynamo.reset()
        module, counter = layer(dropout=0.1), CompileCounter()
        compiled = torch.compile(module, fullgraph=True, backend=counter)
        for seed, sizes in enumerate(BATCHES):
            x, relations = batch(sizes, layout, seed, coordinates)
            if prepared:
                relations.prepare()
            torch.manual_seed(seed)
            out = compiled(x.requires_grad_(), relations)
            out.sum().backward()
            torch.manual_seed(seed)
            assert torch.allclose(out, module(x, relations), atol=1e-6)
        assert counter.frame_count == 2

    @pytest.mark.slow
    @inductor.patch(fallback_random=True)  # monkeypatch would leave torch without the setting
    def test_the_default_compiler_trains_a_packed_layer(self):
        """Its gradients too, of batches that fill no register."""
        torch._dynamo.reset()
        module = layer(dropout=0.1, radial=ck.GaussianRadial(HEADS, 8, head="linear"))
        exact = copy.deepcopy(module).double()
        compiled = torch.compile(module, fullgraph=True, dynamic=True)
        for seed, sizes in enumerate(BATCHES[:2]):
            x, relations = batch(sizes, "packed", seed)
            wide = copy.copy(relations)
            object.__setattr__(wide, "coordinates", relations.coordinates.double())
            found = gradients(compiled, x, relations, module)
            plain, truth = (
                gradients(m, x, relations if m is module else wide, m) for m in (module, exact)
            )
            for name, x in found.items():
                assert_accurate(x, plain[name], truth[name], TABLE_FACTOR, name)

    @LAYOUTS
    def test_prepared_relations_are_not_prepared_again(self, layout):
        layers = torch.nn.ModuleList(layer() for _ in range(3))

        def run(x, relations):
            for module in layers:
                x = x + module(x, relations)
            return x

        torch._dynamo.reset()
        distances = Count("linalg_vector_norm")
        compiled = torch.compile(run, fullgraph=True, backend=distances)
        x, relations = batch((6, 4, 5), layout)
        compiled(x, relations)
        assert distances.times > 0
        distances.times = 0
        compiled(x, relations.prepare())
        assert distances.times == 0


class TestTree:
    @LAYOUTS
    def test_leaves_come_back(self, layout):
        _, relations = batch((6, 4, 5), layout)
        back = pytree.tree_map(lambda x: x, relations.prepare())
        assert back is not relations
        for name in ("hops", "coordinates", "valid", "has_3d", "cu_seqlens"):
            assert getattr(back, name) is getattr(relations, name)
        for name in ("max_seqlen", "num_atoms", "num_pairs"):
            assert getattr(back, name) == getattr(relations, name)
        assert "_distances" not in back.__dict__

    def test_paths_name_the_relations(self):
        _, relations = batch((6, 4, 5), "packed")
        paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(relations)[0]]
        assert paths[:2] == [".hops", ".coordinates"]


class TestExported:
    @pytest.mark.parametrize(
        ("layout", "strict"), [("padded", False), ("packed", False), ("packed", True)]
    )
    def test_saved_and_opened_it_is_the_layer(self, layout, strict, caplog):
        module = layer().eval()
        exact = copy.deepcopy(module).double()
        example = batch(BATCHES[0], layout)
        others = torch.export.AdditionalInputs()
        for seed, sizes in enumerate(BATCHES[:3]):
            others.add(batch(sizes, layout, seed))
        file = io.BytesIO()
        program = torch.export.export(module, example, dynamic_shapes=others, strict=strict)
        torch.export.save(program, file)
        file.seek(0)
        opened = torch.export.load(file).module()
        assert "weights_only" not in caplog.text  # nothing that could run code was read
        for seed, sizes in enumerate([*BATCHES, (5,), (3, 0, 40)]):
            x, relations = batch(sizes, layout, 10 + seed)
            wide = copy.copy(relations)
            object.__setattr__(wide, "coordinates", relations.coordinates.double())
            with ck.use_backend("reference"):
                plain, truth = module(x, relations), exact(x.double(), wide)
            assert_accurate(opened(x, relations), plain, truth)
