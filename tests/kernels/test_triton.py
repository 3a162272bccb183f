"""The Triton attention without a GPU: what the compiler makes of it."""

import dataclasses
import os

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels.testing import Case, attend, make_inputs, required_backends, with_gradients

CAPABILITIES = 80, 90
REGISTERS = 255  # of a thread, all there are
SHARED = 101376  # bytes: two programs on an H100, one on every processor since sm_80
# Bytes of stack a thread that spill. Which of the kernels with several tiles spill a few depends on
# Triton's version; what runs in one tile spills nothing, with three exceptions. More warps would
# end them at a price: of 32 atoms in bfloat16, 128 wide, 217 instructions a pair instead of 149.
LOOP_SPILLS = 48
SPILLS = {
    ("backward 32 atoms, width 128, bf16", 80): 16,
    ("backward 32 atoms, width 128, fp32", 90): 8,
    ("backward 64 atoms, width 64, bf16", 80): 48,
    ("backward 128 atoms, width 64, bf16", 80): 216,
    ("backward 128 atoms, width 64, bf16", 90): 64,  # 40 by Triton 3.9
    ("backward 128 atoms, width 64, bf16, sink", 90): 72,  # 32 by Triton 3.9
    ("backward 64 atoms, width 64, fp32", 90): 64,  # 32 with a sink; 0 by Triton 3.6
    ("backward 128 atoms, width 16, bf16, logits", 80): 120,  # 8 by Triton 3.9
    ("forward 64 atoms, width 16, bf16, logits", 80): 8,  # 0 by Triton 3.6
    # By Triton 3.6; 3.9 spills 0, 0 and 8 here.
    **{("tabulate, mlp", 90): 24, ("evaluate, mlp", 90): 8},
    ("table differentiate, linear", 90): 16,
    ("add_exact, linear", 80): 8,  # was in `add_up`, whose registers were those of the MLP's
    # In the branch of the exact Φ3d; without, ptxas takes 88 registers, and the branch of the table
    # would have fewer programs on a processor.
    **{("locate, mlp, 32 heads", 90): 8, ("locate, mlp, 64 heads", 90): 16},
}


@pytest.fixture(scope="module")
def triton():
    if "triton" in required_backends():
        import triton
    else:
        triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the compiler is off in the interpreter")
    return triton


def test_refuses_the_cpu_in_one_line():
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ck.BackendError, match="backend 'triton': q is on cpu; this backend runs"):
        ck.coattention(q, q, q, backend="triton")


# --- ahead of time ------------------------------------------------------------------------------


def hold_to_limits(program, capability):
    from collamo_kernels.coattention.triton.ahead import WITH_SINK

    used = program.compile(capability)
    what = f"{program.name} on sm_{capability}: {used}"
    assert used["REG"] <= REGISTERS, what
    allowed = 0 if program.single else LOOP_SPILLS
    for name in (program.name.removesuffix(WITH_SINK), program.name):
        allowed = SPILLS.get((name, capability), allowed)
    assert used["STACK"] <= allowed, what
    assert used["SHARED"] <= SHARED, what


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])  # two halves, for two processes
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_shipped_attention_fits(capability, dtype, triton):
    """Hop table and radial table inside, forward and backward, every bucket, width and dtype.

    With a sink or without, in turn: what one Triton leaves out, the oldest compiles, or the others.
    """
    from collamo_kernels.coattention.triton import ahead as ahead

    oldest = triton.__version__.startswith("3.6.")
    for index, both in enumerate(zip(ahead.shipped(False), ahead.shipped(True), strict=True)):
        if dtype in both[0].name:
            hold_to_limits(both[(index // 2 + capability // 10 + oldest) % 2], capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_attention_that_writes_its_logits_fits(capability, triton):
    """Uni-Mol's: 64 heads of 8, a dense bias and what becomes of it, no tables."""
    from collamo_kernels.coattention.triton import ahead as ahead

    for program in ahead.shipped_with_logits():
        hold_to_limits(program, capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_on_pairs_fit(capability, triton):
    from collamo_kernels.coattention.triton import ahead as ahead

    for program in ahead.shipped_on_pairs():
        hold_to_limits(program, capability)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_radial_kernels_fit(capability, triton):
    from collamo_kernels.coattention.triton import ahead as ahead

    for program in ahead.shipped_of_radial():
        hold_to_limits(program, capability)


@pytest.mark.slow
def test_sums_of_table_gradients_share_a_processor(triton):
    """They wait for memory: three programs and more hide that. An exact branch inside took 195."""
    from collamo_kernels.coattention.triton import ahead as ahead

    sums = [x for x in ahead.shipped_on_pairs() if x.name.startswith("add_up")]
    assert sums
    for program in sums:
        used = program.compile(90)
        assert used["REG"] <= 96, (program.name, used)
        assert 3 * 32 * program.num_warps * used["REG"] <= 65536
        assert 3 * used["SHARED"] <= 2 * SHARED


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("bucket", [32, "loop"])
def test_every_term_compiles(bucket, packed, triton):
    """Padding, dropout, a dense bias, a sink and their gradients on top, with TensorFloat-32."""
    from collamo_kernels.coattention.triton import ahead as ahead

    for forward in (True, False):
        program = ahead.attention(
            *(bucket, 32, torch.float32, forward),
            absent=(),
            packed=packed,
            PRECISION="tf32",
        )
        assert program.compile(90)["STACK"] <= LOOP_SPILLS


@pytest.mark.slow
def test_no_number_of_a_batch_is_compiled_in(triton):
    """A new N, or a new number of pairs, must never compile a kernel again."""
    from collamo_kernels.coattention.triton import ahead as ahead

    model_numbers = {"heads", "buckets", "count", "units", "types", "q_t", "out_t"}
    model_numbers |= {"size", "slices", "length", "chunks", "between"}
    every = *ahead.shipped(), *ahead.shipped_on_pairs(), *ahead.shipped_of_radial()
    for program in every:
        for argument in program.arguments():
            if argument.type != "i32" or argument.name in model_numbers:
                continue
            what = f"{program.name}: {argument.name}"
            # Triton specialises what is in a tuple, whatever do_not_specialize says.
            assert len(argument.path) == 1, what
            assert program.kernel.params[argument.path[0]].do_not_specialize, what


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
class TestOnGPU:
    @pytest.fixture
    def step(self, triton):
        """``step(inputs)``: forward and all gradients on the GPU, of relations prepared before."""

        def run(inputs):
            return with_gradients(lambda x: attend(x, "packed", backend="triton"), inputs)

        def make(sizes):
            inputs = make_inputs(Case("gpu", sizes, head="mlp"), torch.bfloat16, "cuda")
            inputs.relations.prepare()
            run(inputs)  # compiles
            return inputs, run

        return make

    def test_nobody_waits_for_the_gpu(self, step):
        inputs, run = step((20, 45))
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_is_captured_in_a_cuda_graph(self, step):
        inputs, run = step((20, 45))
        eager = {name: x.clone() for name, x in run(inputs).items()}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(inputs)
        for x in captured.values():
            x.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(captured[name], eager[name]) for name in eager)

    def test_a_replay_sees_the_relations_that_were_copied_in(self, step):
        inputs, run = step((20, 45))
        other = make_inputs(inputs.case, torch.bfloat16, "cuda", seed=1).relations
        other = dataclasses.replace(other, max_seqlen=inputs.relations.max_seqlen)
        expected = run(dataclasses.replace(inputs, relations=other))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(inputs)
        inputs.relations.copy_(other)
        graph.replay()
        torch.cuda.synchronize()
        for name in ("out", "q", "k", "v", "hop_bias"):
            assert torch.equal(captured[name], expected[name]), name

    def test_a_graphed_layer(self, triton):
        """The recipe of docs/performance.md."""
        batches = [make_inputs(Case("gpu", (20, 45)), device="cuda", seed=s) for s in range(3)]
        first, *others = (
            dataclasses.replace(x.relations, coordinates=x.relations.coordinates.detach())
            for x in batches
        )
        static = first.prepare()

        class OnStatic(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = ck.CoAttention(32, 4, sink=True)

            def forward(self, x):
                return self.layer(x, static)

        layer = OnStatic().cuda()
        x = torch.randn(65, 32, device="cuda", requires_grad=True)
        graphed = torch.cuda.make_graphed_callables(layer, (x,))
        for relations in others:
            static.copy_(relations)
            y = layer.layer(x, relations)
            (plain,) = torch.autograd.grad(y.square().sum(), x)
            y_graphed = graphed(x)
            (gradient,) = torch.autograd.grad(y_graphed.square().sum(), x)
            assert torch.equal(y_graphed, y)
            assert torch.equal(gradient, plain)

    def test_a_new_number_of_atoms_compiles_nothing(self, step):
        from collamo_kernels.coattention.triton import kernels as kernels
        from collamo_kernels.coattention.triton import pairs as on_pairs
        from collamo_kernels.coattention.triton import table_gradients

        ours = kernels.attend, kernels.differentiate, kernels.differentiate_tile
        ours += on_pairs.locate, table_gradients.add_up, table_gradients.finish
        for sizes in ((20, 5), (20, 45), (128, 127), (70, 1, 2), (129, 3)):  # every bucket
            step(sizes)

        def compiled():
            return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in ours]

        before = compiled()
        for sizes in ((31,), (48, 16, 64), (90, 70), (150, 3), (88, 40, 20)):
            step(sizes)
        assert compiled() == before
