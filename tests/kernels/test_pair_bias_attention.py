"""Attention that hands its logits on, and its gradients, on every backend."""

import math

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.coattention.dropout import dropout_factors
from collamo_kernels.coattention.triton import backend as _triton
from collamo_kernels.pair_bias_attention import reference
from collamo_kernels.testing import assert_accurate, device_of


@pytest.fixture
def attend(pair_bias_attention_backend, serves):
    """`collamo_kernels.pair_bias_attention` on the backend under test."""
    backend = pair_bias_attention_backend
    device = device_of(backend)

    def run(*tensors, **options):
        *tensors, relations = tensors
        moved, options["backend"] = [x.to(device) for x in tensors], backend
        found = serves(
            backend, lambda: ck.pair_bias_attention(*moved, relations.to(device), **options)
        )
        return tuple(None if x is None else x.cpu() for x in found)

    return run


def on_cpu(*arguments, **options):
    return ck.pair_bias_attention(*arguments, backend="cpu", **options)


def packed(sizes):
    """Relations of molecules of these sizes."""
    return ck.Relations(cu_seqlens=torch.tensor([0, *sizes]).cumsum(0).int())


def inputs(sizes, heads=2, width=8, dtype=torch.float32, seed=0):
    """q, k, v as the thirds of one tensor, a bias and the relations."""
    generator = torch.Generator().manual_seed(seed)
    relations = packed(sizes)
    qkv = torch.randn(relations.num_atoms, 3, heads, width, generator=generator)
    bias = torch.randn(heads, relations.num_pairs, generator=generator)
    wide = torch.promote_types(dtype, torch.float32)
    return (*qkv.to(dtype).unbind(1), bias.to(wide), relations)


def learned(tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def test_by_hand(attend):
    """Two molecules, of two atoms and of one; logits ln 3 and 0 give weights 3/4 and 1/4."""
    q = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]], [[5.0, 5.0]]])
    k = torch.tensor([[[1.0, 9.0]], [[-1.0, 9.0]], [[7.0, 7.0]]])
    v = torch.tensor([[[4.0, 8.0]], [[0.0, 4.0]], [[1.0, 2.0]]])
    third = math.log(3)
    bias = torch.tensor([[third - 2.0, 2.0, 0.0, third, -70.0]])
    out, logits = attend(q, k, v, bias, packed([2, 1]), scale=1.0)
    torch.testing.assert_close(logits, torch.tensor([[third, 0.0, 0.0, third, 0.0]]))
    torch.testing.assert_close(out, torch.tensor([[[3.0, 7.0]], [[1.0, 5.0]], [[1.0, 2.0]]]))
    halved, logits = attend(2 * q, k, v, bias, packed([2, 1]), scale=0.5, with_logits=False)
    assert logits is None
    torch.testing.assert_close(halved, out)


SIZES = [(), (0, 0), (0, 1, 2, 3), (15, 16, 17), (31, 32, 33), (63, 64, 65), (129, 4)]
SHAPES = [(sizes, 2, 8) for sizes in SIZES]
SHAPES += [((27, 12), 64, 8), ((7, 18), 1, 1), ((9, 20), 3, 10), ((5, 33), 5, 24), ((3, 17), 1, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("used", ["both", "out", "logits", "no logits"])
def test_accuracy(shape, used, attend):
    """Both results and the gradients of q, k, v and bias through the results that are used."""
    *tensors, relations = inputs(*shape)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, generator=generator) for x in (tensors[0], tensors[3])]
    options = {"with_logits": used != "no logits"}

    def results(run, dtype):
        leaves = learned(x.to(dtype) for x in tensors)
        found = dict(zip(("out", "logits"), run(*leaves, relations, **options), strict=True))
        chosen = {"both": ["out", "logits"], "no logits": ["out"]}.get(used, [used])
        pulled = dict(zip(("out", "logits"), cotangents, strict=True))
        gradients = torch.autograd.grad(
            [found[name] for name in chosen],
            leaves,
            [pulled[name].to(dtype) for name in chosen],
            materialize_grads=True,
        )
        named = zip(("dq", "dk", "dv", "dbias"), gradients, strict=True)
        return {name: x for name, x in (*found.items(), *named) if x is not None}

    def by_definition(*arguments, **options):
        return ck.pair_bias_attention(*arguments, backend="reference", **options)

    exact = results(by_definition, torch.float64)
    yardstick = results(by_definition, torch.float32)
    for name, value in results(attend, torch.float32).items():
        factor = 2 if name in ("out", "logits") else 3
        assert_accurate(value, yardstick[name], exact[name], factor=factor, name=name)


@pytest.mark.parametrize("with_logits", [True, False])
def test_bfloat16(with_logits, attend, pair_bias_attention_backend):
    """q, k and v in bfloat16; bias, logits and all sums in float32."""
    if _triton.INTERPRETED and pair_bias_attention_backend == "triton":
        pytest.skip("Triton's interpreter has no bfloat16")
    *tensors, relations = inputs((20, 33), heads=4, dtype=torch.bfloat16)
    cotangents = [torch.randn_like(tensors[0]), torch.randn_like(tensors[3])][: 1 + with_logits]

    def results(run, dtype=None):
        leaves = learned(x.to(dtype or x.dtype) for x in tensors)
        found = run(*leaves, relations, with_logits=with_logits)[: 1 + with_logits]
        assert [x.dtype for x in found] == [leaves[i].dtype for i in (0, 3)][: 1 + with_logits]
        pulled = [c.to(x.dtype) for c, x in zip(cotangents, found, strict=True)]
        return *found, *torch.autograd.grad(found, leaves, pulled)

    def by_definition(*arguments, **options):
        return ck.pair_bias_attention(*arguments, backend="reference", **options)

    exact = results(by_definition, torch.float64)
    for ours, plain, truth in zip(results(attend), results(by_definition), exact, strict=True):
        assert_accurate(ours, plain, truth, factor=3)


def test_batch_is_its_singles(attend):
    q, k, v, bias, relations = inputs((5, 19, 2))
    out, logits = attend(q, k, v, bias, relations)
    atom = pair = 0
    for n in (5, 19, 2):
        own = [x[atom : atom + n] for x in (q, k, v)]
        alone = attend(*own, bias[:, pair : pair + n * n], packed([n]))
        torch.testing.assert_close(alone[0], out[atom : atom + n])
        torch.testing.assert_close(alone[1], logits[:, pair : pair + n * n])
        atom, pair = atom + n, pair + n * n


def test_excluded_keys(attend):
    """A bias of -∞ takes a key out; a row without keys is 0, with gradients 0."""
    q, k, v, bias, relations = inputs((4,), heads=1)
    bias = bias.view(4, 4).clone()
    bias[:, 1], bias[2] = -math.inf, -math.inf
    leaves = learned((q, k, v, bias.view(1, 16)))
    out, logits = attend(*leaves, relations)
    assert not out[2].any()
    assert (logits == -math.inf).sum() == 7
    gradients = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert all(x.isfinite().all() for x in gradients)
    assert not gradients[0][2].any()
    assert not gradients[2][1].any()


def test_nan_stays_in_its_molecule(attend):
    q, k, v, bias, relations = inputs((4, 5))
    bias[:, 3] = math.nan
    out, _ = attend(q, k, v, bias, relations)
    assert out[0].isnan().all()
    assert out[1:].isfinite().all()


@pytest.mark.parametrize("with_logits", [True, False])
def test_in_place(with_logits, pair_bias_attention_backend, serves):
    backend = pair_bias_attention_backend
    device = device_of(backend)
    *tensors, relations = inputs((4, 19, 1), heads=3)
    tensors, relations = [x.to(device) for x in tensors], relations.to(device)
    options = {"with_logits": with_logits, "backend": backend}
    wanted = serves(backend, lambda: ck.pair_bias_attention(*tensors, relations, **options))
    bias, before = tensors[3], tensors[3].clone()
    out, logits = ck.pair_bias_attention(*tensors, relations, in_place=True, **options)
    assert torch.equal(out, wanted[0])
    assert logits is (bias if with_logits else None)
    assert torch.equal(bias, wanted[1] if with_logits else before)


def test_any_strides(attend):
    q, k, v, bias, relations = inputs((4, 19), heads=3)
    wanted = attend(q, k, v, bias, relations)
    odd = [x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in (q, k, v)]
    odd.append(torch.stack([bias, bias], -1)[..., 0])
    assert not any(x.is_contiguous() for x in odd)
    for one, two in zip(wanted, attend(*odd, relations), strict=True):
        torch.testing.assert_close(one, two)


def test_gradcheck():
    *tensors, relations = inputs((3, 1, 2), width=3, dtype=torch.float64)

    def run(*tensors):
        return ck.pair_bias_attention(*tensors, relations)

    assert torch.autograd.gradcheck(run, learned(tensors))
    assert torch.autograd.gradgradcheck(run, learned(tensors))


@pytest.mark.slow
def test_every_instruction_set(on_instruction_set):
    on_instruction_set(__file__, "cpu and (accuracy or bfloat16) or dropout")


@pytest.mark.usefixtures("compiled")
class TestOperator:
    """The compiled operator alone."""

    @pytest.fixture
    def compiled(self, serves):
        serves("cpu", lambda: on_cpu(*inputs((2,))))

    def test_same_bits_whatever_the_threads(self):
        *tensors, relations = inputs((40, 3, 17, 90), heads=5)
        leaves, found, before = learned(tensors), [], torch.get_num_threads()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, logits = on_cpu(*leaves, relations)
            found.append((out, logits, *torch.autograd.grad((out.sum() + logits.sum()), leaves)))
        torch.set_num_threads(before)
        for other in found[1:]:
            assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))

    P = 0.3

    def test_dropout_drops_what_the_definition_drops(self):
        """Uniform attention over values that are unit vectors: the result is the weights."""
        n, heads = 20, 3
        q = torch.zeros(2 * n, heads, n)
        v = torch.eye(n).repeat(2, 1)[:, None].expand(-1, heads, -1)
        bias = torch.zeros(heads, 2 * n * n)
        torch.manual_seed(3)
        out, logits = on_cpu(q, q, v, bias, packed([n, n]), dropout_p=self.P)
        torch.manual_seed(3)
        factors = dropout_factors(torch.randint(2**63 - 1, (1,)), (2, heads, n, n), self.P)
        expected = factors.double() / n
        assert_accurate(out.view(2, n, heads, n).transpose(1, 2), expected.float(), expected)
        assert not logits.any()

    def test_dropout_backward_drops_the_same_weights(self):
        """Gradients are those of the definition with the forward's own factors."""
        *tensors, relations = inputs((9, 20), heads=3)
        torch.manual_seed(5)
        factors = dropout_factors(torch.randint(2**63 - 1, (1,)), (2, 3, 20, 20), self.P)
        cotangents = [torch.randn_like(tensors[0]), torch.randn_like(tensors[3])]

        def drop(weights, molecule):
            n = weights.shape[-1]
            return weights * factors[molecule, :, :n, :n]

        def results(run, dtype):
            torch.manual_seed(5)
            leaves = learned(x.to(dtype) for x in tensors)
            found = run(*leaves)
            return *found, *torch.autograd.grad(found, leaves, [c.to(dtype) for c in cotangents])

        def defined(*leaves):
            return reference.formula(*leaves, relations, 8**-0.5, drop)

        ours = results(lambda *x: on_cpu(*x, relations, dropout_p=self.P), torch.float32)
        plain, exact = results(defined, torch.float32), results(defined, torch.float64)
        for values in zip(ours, plain, exact, strict=True):
            assert_accurate(*values, factor=3)

    @pytest.mark.parametrize("dropout_p", [0.0, 0.3])
    @pytest.mark.parametrize("with_logits", [True, False])
    def test_second_derivative_is_that_of_the_definition(self, dropout_p, with_logits):
        """A penalty on first gradients, differentiated: what gradient-penalised training does."""
        *tensors, relations = inputs((4, 0, 3), width=4)
        torch.manual_seed(7)
        seed = torch.randint(2**63 - 1, (1,))
        factors = dropout_factors(seed, (3, 2, 4, 4), dropout_p)

        def drop(weights, molecule):
            n = weights.shape[-1]
            return weights * factors[molecule, :, :n, :n]

        def results(run, dtype):
            torch.manual_seed(7)
            leaves = learned(x.to(dtype) for x in tensors)
            found = [x for x in run(*leaves) if x is not None][: 1 + with_logits]
            first = torch.autograd.grad(
                sum(x.sin().sum() for x in found), leaves, create_graph=True
            )
            return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)

        def ours(*leaves):
            return on_cpu(*leaves, relations, dropout_p=dropout_p, with_logits=with_logits)

        def defined(*leaves):
            return reference.formula(*leaves, relations, 4**-0.5, drop)

        plain, exact = results(defined, torch.float32), results(defined, torch.float64)
        for values in zip(results(ours, torch.float32), plain, exact, strict=True):
            assert_accurate(*values, factor=3)

    @pytest.mark.parametrize("with_logits", [True, False])
    @pytest.mark.parametrize("dropout_p", [0.0, 0.5])
    def test_opcheck(self, with_logits, dropout_p):
        *tensors, relations = inputs((3, 5))
        leaves, ends = learned(tensors), relations.cu_seqlens
        seed = torch.tensor([11]) if dropout_p else None
        shared = (*leaves, ends, seed, 0.3, dropout_p)
        operators = torch.ops.collamo_kernels
        torch.library.opcheck(operators.pair_bias_attention, (*shared, with_logits))
        in_place = [x.detach().clone() for x in leaves]
        torch.library.opcheck(operators.pair_bias_attention_, (*in_place, *shared[4:]))
        grad, of_logits = learned((torch.randn(8, 2, 8), torch.randn(2, 34)))
        of_logits = of_logits if with_logits else None
        torch.library.opcheck(operators.pair_bias_attention_backward, (grad, of_logits, *shared))

    def test_compiles_as_one_graph(self):
        *tensors, relations = inputs((3, 5))
        leaves = learned(tensors)

        def run(*leaves):
            out, logits = on_cpu(*leaves, relations)
            return on_cpu(out, *leaves[1:3], logits, relations, with_logits=False)[0]

        eager = run(*leaves)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*leaves)
        assert torch.equal(compiled, eager)
        ours, wanted = (torch.autograd.grad(x.square().sum(), leaves) for x in (compiled, eager))
        assert all(torch.equal(one, two) for one, two in zip(ours, wanted, strict=True))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"q": torch.zeros(8, 16)}, "q must be float32 or bfloat16"),
            ({"q": torch.zeros(8, 2, 8).half()}, "q must be float32 or bfloat16"),
            ({"k": torch.zeros(8, 2, 7)}, "k must be like q"),
            ({"v": torch.zeros(8, 2, 8).bfloat16()}, "v must be like q"),
            ({"bias": torch.zeros(2, 33)}, "bias must be float32"),
            ({"bias": torch.zeros(2, 34).double()}, "bias must be float32"),
            ({"cu_seqlens": torch.tensor([0, 9]).int()}, "cu_seqlens must go from 0"),
            ({"cu_seqlens": torch.tensor([0, 9, 8]).int()}, "cu_seqlens must never fall"),
            ({"cu_seqlens": torch.tensor([0, 8])}, "cu_seqlens must be int32"),
            ({"dropout_p": 0.5}, "dropout needs a seed"),
            ({"dropout_p": 1.0}, "dropout_p must be at least 0"),
            ({"grad": torch.zeros(8, 2, 7)}, "grad must be like q"),
            ({"grad_logits": torch.zeros(34)}, "grad_logits must be"),
        ],
    )
    def test_never_reads_beyond_its_input(self, changes, message):
        q, k, v, bias, relations = inputs((3, 5))
        given = {"q": q, "k": k, "v": v, "bias": bias, "cu_seqlens": relations.cu_seqlens}
        given |= {"seed": None, "scale": 1.0, "dropout_p": 0.0}
        of = {name: changes[name] for name in changes if name.startswith("grad")}
        given |= {name: changes[name] for name in changes if name not in of}
        operators = torch.ops.collamo_kernels
        if not of:
            with pytest.raises(ValueError, match=message):
                operators.pair_bias_attention(*given.values(), True)
        of = {"grad": torch.zeros(8, 2, 8), "grad_logits": None} | of
        with pytest.raises(ValueError, match=message):
            operators.pair_bias_attention_backward(*of.values(), *given.values())

    def test_other_dtypes_run_the_reference(self):
        for dtype in (torch.float16, torch.float64):
            arguments = inputs((3, 2), dtype=dtype)
            assert ck.pair_bias_attention(*arguments)[0].dtype == dtype
            with pytest.raises(ck.BackendError, match=f"q is {dtype}; this backend takes float32"):
                on_cpu(*arguments)


@pytest.mark.skipif(
    not (_triton.INTERPRETED or torch.cuda.is_available()),
    reason="runs on a GPU, or in `make test-interpreter`",
)
class TestTritonOperator:
    """The operators of the Triton backend alone."""

    P = 0.3

    @pytest.fixture
    def device(self):
        return device_of("triton")

    def drawn(self, device, sizes=(4, 0, 3), **options):
        *tensors, relations = inputs(sizes, **options)
        return learned(x.to(device) for x in tensors), relations.to(device)

    @staticmethod
    def by_triton(*arguments, **options):
        return ck.pair_bias_attention(*arguments, backend="triton", **options)

    @pytest.mark.parametrize("with_logits", [True, False])
    def test_a_launch_of_each_size_and_no_waiting(self, with_logits, device, launches, no_waiting):
        """Nor a tensor as large as [B, H, N, N], with which 256 molecules of 88 fill 0.5 GB."""
        leaves, relations = self.drawn(device, (40, 1, 2, 3), heads=3)
        padded = 4 * 3 * 40 * 40

        class Small(no_waiting):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                found = super().__torch_dispatch__(function, types, args, kwargs)
                made = found if isinstance(found, (tuple, list)) else (found,)
                assert all(x.numel() < padded for x in made if isinstance(x, torch.Tensor))
                return found

        with launches() as names, Small():
            found = self.by_triton(*leaves, relations, with_logits=with_logits, dropout_p=self.P)
            results = found[: 1 + with_logits]
            torch.autograd.grad(results, leaves, [torch.ones_like(x) for x in results])
        assert names == ["attend", "attend", "differentiate", "differentiate"]

    @pytest.mark.parametrize("sizes", [(9, 20), (40, 3)], ids=["one tile", "loop"])
    def test_dropout_drops_what_the_definition_drops(self, sizes, device):
        """The same weights forward and backward, and none of the logits."""
        tensors, relations = self.drawn(device, sizes, heads=3)
        torch.manual_seed(5)
        seed = torch.randint(2**63 - 1, (1,), device=device)
        factors = dropout_factors(seed, (2, 3, max(sizes), max(sizes)), self.P)
        cotangents = [torch.randn_like(tensors[0]), torch.randn_like(tensors[3])]

        def drop(weights, molecule):
            n = weights.shape[-1]
            return weights * factors[molecule, :, :n, :n]

        def results(run, dtype):
            torch.manual_seed(5)
            leaves = learned(x.to(dtype) for x in tensors)
            found = run(*leaves)
            return *found, *torch.autograd.grad(found, leaves, [c.to(dtype) for c in cotangents])

        def defined(*leaves):
            return reference.formula(*leaves, relations, 8**-0.5, drop)

        ours = results(lambda *x: self.by_triton(*x, relations, dropout_p=self.P), torch.float32)
        plain, exact = results(defined, torch.float32), results(defined, torch.float64)
        for values in zip(ours, plain, exact, strict=True):
            assert_accurate(*values, factor=3)

    @pytest.mark.parametrize("with_logits", [True, False])
    @pytest.mark.parametrize("bias_learns", [True, False])
    def test_second_derivative_is_that_of_the_definition(self, with_logits, bias_learns, device):
        tensors, relations = self.drawn(device, width=4)

        def results(run, dtype):
            leaves = learned(x.to(dtype) for x in tensors)
            leaves[3].requires_grad_(bias_learns)
            asked = leaves[: 3 + bias_learns]
            found = [x for x in run(*leaves) if x is not None][: 1 + with_logits]
            first = torch.autograd.grad(sum(x.sin().sum() for x in found), asked, create_graph=True)
            return torch.autograd.grad(sum(x.square().sum() for x in first), asked)

        def ours(*leaves):
            return self.by_triton(*leaves, relations, with_logits=with_logits)

        def defined(*leaves):
            return reference.formula(*leaves, relations, 4**-0.5, lambda weights, _: weights)

        plain, exact = results(defined, torch.float32), results(defined, torch.float64)
        for values in zip(results(ours, torch.float32), plain, exact, strict=True):
            assert_accurate(*values, factor=3)

    @pytest.mark.parametrize("with_logits", [True, False])
    @pytest.mark.parametrize("dropout_p", [0.0, 0.5])
    def test_opcheck(self, with_logits, dropout_p, device):
        from collamo_kernels.pair_bias_attention import triton_op

        leaves, relations = self.drawn(device, (3, 5))
        dropout = None, None
        if dropout_p:
            p = torch.tensor([dropout_p], dtype=torch.float64, device=device)
            dropout = torch.tensor([11], device=device), p
        places = relations.cu_seqlens, relations.pair_start, relations.tiles
        shared = (*leaves, *places, *dropout, 0.3, 5)
        operators = torch.ops.collamo_kernels
        torch.library.opcheck(operators.pair_bias_attention_triton, (*shared, with_logits))
        in_place = [x.detach().clone() for x in leaves]
        torch.library.opcheck(operators.pair_bias_attention_triton_, (*in_place, *shared[4:]))
        out, _logits, *rows = triton_op.run_forward(*shared, with_logits)
        given = [torch.randn_like(x).requires_grad_() for x in (leaves[0], leaves[3])]
        if not with_logits:
            given[1] = None
        backward = operators.pair_bias_attention_triton_backward
        arguments = (*given, True, out.detach(), *rows, *shared)
        torch.library.opcheck(backward, arguments)

    def test_compiles_as_one_graph(self, device):
        leaves, relations = self.drawn(device, (6, 3))
        relations.prepare()

        def layer(*tensors):
            out, logits = self.by_triton(*tensors, relations)
            return out.square().sum() + logits.sin().sum()

        plain = torch.autograd.grad(layer(*leaves), leaves)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        graph = torch.autograd.grad(compiled(*leaves), leaves)
        for one, two in zip(plain, graph, strict=True):
            torch.testing.assert_close(one, two)

    def test_same_bits_every_time(self, device):
        leaves, relations = self.drawn(device, (40, 3), heads=3)

        def results():
            found = self.by_triton(*leaves, relations)
            return *found, *torch.autograd.grad(found[0].sum() + found[1].sum(), leaves)

        assert all(torch.equal(x, y) for x, y in zip(results(), results(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": [[1.0]]}, "q is a list; make it a tensor"),
        ({"q": torch.zeros(1, 2, 8, 8)}, "q has shape .* it must be \\[T, H, D\\]"),
        ({"k": torch.zeros(8, 2, 4)}, "k has shape .* it must be that of q"),
        ({"v": torch.zeros(8, 2, 8).half()}, "v has dtype torch.float16"),
        ({"bias": torch.zeros(2, 8)}, r"bias has shape \[2, 8\]; it must be \[H, P\] = \[2, 34\]"),
        ({"bias": torch.zeros(2, 34).half()}, "bias is torch.float16; .* it must be torch.float32"),
        ({"bias": torch.zeros(2, 34, device="meta")}, "bias is on meta and q on cpu"),
        ({"relations": None}, "relations must be packed"),
        ({"relations": ck.Relations()}, "relations must be packed"),
        ({"relations": packed((8, 1))}, "q has 8 atoms, but relations.cu_seqlens ends at 9"),
        ({"dropout_p": 1.0}, "dropout_p is 1.0"),
        ({"q": torch.zeros(8, 2, 8, requires_grad=True), "in_place": True}, "gradients are asked"),
        ({"bias": torch.zeros(34, 2).t(), "in_place": True}, "bias is not contiguous; leave it"),
    ],
)
def test_wrong_form_is_named(changes, message):
    names = ("q", "k", "v", "bias", "relations")
    arguments = dict(zip(names, inputs((3, 5)), strict=True)) | changes
    with pytest.raises(ValueError, match=message):
        ck.pair_bias_attention(**arguments)


def test_another_relation_is_refused():
    *tensors, relations = inputs((3, 5))
    valid = torch.ones(8, dtype=torch.bool)
    relations = ck.Relations(cu_seqlens=relations.cu_seqlens, valid=valid)
    with pytest.raises(ValueError, match="relations has valid; add its term to bias"):
        ck.pair_bias_attention(*tensors, relations)
