"""Choosing an implementation, saying why, and what import costs."""

import subprocess
import sys

import pytest
import torch

import collamo_kernels as ck
from collamo_kernels import extension
from collamo_kernels.backends import BACKENDS, choose
from collamo_kernels.coattention import reference
from collamo_kernels.coattention.api import checked
from collamo_kernels.testing import required_backends

Q = torch.zeros(1, 1, 2, 8)
CARBON = torch.zeros(2, 0, dtype=torch.int64), torch.tensor([0, 1])
BOND = torch.tensor([[0, 1], [1, 0]])


def test_required_backends_exist():
    known = {row.name for rows in BACKENDS.values() for row in rows}
    assert required_backends() <= known, "COLLAMO_TEST_BACKENDS names a backend that does not exist"


@pytest.mark.parametrize("op", BACKENDS)
def test_every_operation_has_its_definition_last(op):
    assert BACKENDS[op][-1].name == "reference"
    for row in BACKENDS[op]:
        module = row.load()
        assert callable(module.run)
        assert callable(module.unsupported)


def test_a_named_backend_that_refuses_raises_its_reason(monkeypatch):
    from collamo_kernels.shortest_paths import _cpu

    monkeypatch.setattr(_cpu, "why_absent", lambda: "there is no C++ compiler")
    with pytest.raises(ck.BackendError, match="backend 'cpu': there is no C"):
        ck.shortest_paths(*CARBON, backend="cpu")
    assert ck.shortest_paths(*CARBON).tolist() == [[[0]]]  # None: the next best
    text = ck.explain(ck.shortest_paths, *CARBON)
    assert [line.split(maxsplit=1) for line in text.splitlines()[1:]] == [
        ["cuda", "edge_index is on cpu; this backend runs on a GPU"],
        ["cpu", "there is no C++ compiler"],
        ["reference", "takes it"],
    ]


def test_all_refusals_are_in_the_message(monkeypatch):
    from collamo_kernels.coattention import _cpu, reference

    monkeypatch.setattr(_cpu, "unsupported", lambda _: "out of paper")
    monkeypatch.setattr(reference, "unsupported", lambda _: "out of ink")
    reasons = "backend 'cpu': out of paper; backend 'reference': out of ink"
    with pytest.raises(ck.BackendError, match=reasons):
        ck.coattention(Q, Q, Q)


def test_explain_answers_for_every_operation(capsys):
    for call in (
        (ck.coattention, Q, Q, Q),
        ("shortest_paths", *CARBON),
        (ck.pairwise_distances, torch.zeros(1, 2, 3)),
    ):
        text = ck.explain(*call)
        assert "takes it" in text
        assert capsys.readouterr().out.strip() == text


def test_unknown_names():
    with pytest.raises(ValueError, match="operation 'attention' does not exist"):
        choose("attention", None, checked(Q, Q, Q))
    with pytest.raises(ValueError, match="operation 'attention' does not exist"):
        ck.explain("attention", Q)
    with pytest.raises(ValueError, match="operation 'Tensor' does not exist"):
        ck.explain(Q, Q, Q)
    with pytest.raises(ValueError, match="choose from 'triton', 'cpu', 'reference'"):
        ck.coattention(Q, Q, Q, backend="fast")


def test_build_info():
    info = ck.build_info()
    assert info["extension"] == (info["why_absent"] is None)
    assert info["torch"] == torch.__version__
    if info["extension"]:
        assert info["abi_target"] == "2.11"
        assert info["cpu_capability"] in ("baseline", "avx2", "avx512")
        assert info["compiler"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"spec": object()}, "the extension does not load .undefined symbol"),
        ({"compiler": None}, "there is no C.. compiler"),
        ({"include": "/nowhere"}, "there are no Python headers"),
    ],
)
def test_why_absent_names_what_is_missing(found, reason, monkeypatch):
    found = {"spec": None, "compiler": "/usr/bin/c++", "include": "/nowhere"} | found
    monkeypatch.setattr(extension, "_IMPORT_ERROR", "undefined symbol")
    monkeypatch.setattr(extension.importlib.util, "find_spec", lambda _: found["spec"])
    monkeypatch.setattr(extension.shutil, "which", lambda _: found["compiler"])
    monkeypatch.setattr(extension.sysconfig, "get_paths", lambda: {"include": found["include"]})
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(extension._reason())
    assert "pip install" in extension._reason()


def test_import_brings_nothing_optional_and_starts_no_gpu():
    program = """
import sys, torch
def refuse(*args, **kwargs):
    raise RuntimeError("asked for a GPU")
torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = refuse
before = set(sys.modules)
import collamo_kernels
new = {name.split(".")[0] for name in set(sys.modules) - before}
unwanted = {"triton", "rdkit", "transformers", "scipy", "networkx", "flash_attn", "collamo"}
assert not new & unwanted, new & unwanted
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_first_call_may_be_compiled():
    program = """
import torch, collamo_kernels as ck
def run(x, edges, ptr):
    hops = ck.shortest_paths(edges, ptr, max_atoms=3)
    return ck.pairwise_distances(x) + hops, ck.coattention(*[x[:, None]] * 3)
compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
compiled(torch.randn(1, 3, 3), torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 3]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_switch_for_every_operation():
    positions = torch.zeros(1, 2, 3)
    with ck.use_backend("reference"):
        assert choose("coattention", None, checked(Q, Q, Q)) is reference.run
        with ck.use_backend(None):
            chosen = ck.explain(ck.coattention, Q, Q, Q)
        assert "reference    takes it" in ck.explain(ck.coattention, Q, Q, Q)
        assert torch.equal(ck.pairwise_distances(positions), torch.zeros(1, 2, 2))
    assert chosen == ck.explain(ck.coattention, Q, Q, Q)
    with ck.use_backend("cuda"), pytest.raises(ValueError, match="does not exist for coattention"):
        ck.coattention(Q, Q, Q)
    assert ck.explain(ck.coattention, Q, Q, Q) == chosen
    with pytest.raises(ValueError, match="'refrence' does not exist"), ck.use_backend("refrence"):
        pass


@pytest.mark.slow
def test_a_compiled_graph_holds_a_call_of_every_operation():
    """Calls are frozen dataclasses, made inside the graph."""
    hops = ck.Relations.from_graphs(BOND, torch.tensor([0, 2]))
    packed = ck.Relations(cu_seqlens=torch.tensor([0, 2], dtype=torch.int32))
    x, q, t = torch.randn(2, 3), torch.randn(1, 1, 2, 8), torch.randn(2, 1, 8)
    neighbours = BOND[1], torch.tensor([0, 0]), torch.tensor([0, 1, 2])

    def run():
        out, logits = ck.pair_bias_attention(t, t, t, torch.zeros(1, 4), packed)
        return (
            ck.coattention(q, q, q, relations=hops, hop_bias=torch.ones(1, 4)),
            *(out, logits),
            ck.shortest_paths(BOND, torch.tensor([0, 2]), max_atoms=2),
            ck.pairwise_distances(x[None]),
            ck.gaussian_basis(x[0], x[0], x[0].exp()),
            ck.neighbour_sum(x, x[:1], *neighbours),
        )

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")()
    for mine, theirs in zip(compiled, run(), strict=True):
        assert torch.equal(mine, theirs)
