"""What tests and benchmarks share: the cases, their inputs, and the one rule for accuracy."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from collamo_kernels.coattention import coattention
from collamo_kernels.coattention.reference import hop_term, radial_term
from collamo_kernels.radial import GaussianRadial
from collamo_kernels.relations import PackedLayout, Relations

NUM_TYPES = 5  # of pairs (or atoms) in the cases that have types


@dataclass(frozen=True)
class Case:
    """One shape of call: `sizes` are the atoms of each molecule, the flags its relations."""

    name: str
    sizes: tuple[int, ...]
    heads: int = 2
    width: int = 16
    hop_buckets: int = 12
    hops: bool = True
    distances: bool = True
    conformer_missing: bool = False  # in every second molecule
    fragments: int = 1
    bias: bool = False
    sink: bool = False
    types: str | None = None  # "pair" or "atom"
    head: str = "linear"
    gaussians: int = 8


CASES = (
    Case("no molecules", ()),
    Case("empty molecules", (0, 0)),
    Case("empty, one, two atoms", (0, 1, 2, 3), heads=4, width=8),
    Case("around 16", (15, 16, 17), width=16),
    Case("around 32", (31, 32, 33), heads=3, width=24),
    Case("around 64", (63, 64, 65), width=32),
    Case("around 128", (127, 128, 129), width=40),
    Case("beyond 256", (257, 5), width=64),
    Case("beyond 512", (513,), heads=1, width=96),
    Case("widest head", (9, 20), width=128),
    Case("graphormer slim", (26, 14, 31), heads=8, width=10, hop_buckets=64),
    Case("transformer-m", (27, 19), heads=32, width=24, gaussians=128, head="mlp"),
    Case("uni-mol", (27, 12), heads=64, width=8, hops=False, types="pair", head="mlp"),
    Case("no relations", (7, 12), hops=False, distances=False),
    Case("hops only", (7, 12), distances=False, hop_buckets=2),
    Case("distances only", (7, 12), hops=False),
    Case("a conformer missing", (7, 12, 5), conformer_missing=True),
    Case("salt", (18, 6), fragments=3),
    Case("dense bias", (7, 12), bias=True),
    Case("atom types", (7, 12), types="atom"),
    Case("sink alone", (0, 1, 5, 12), hops=False, distances=False, sink=True),
    Case("sink", (26, 14, 31), heads=8, width=10, sink=True),
    Case("sink, dense bias", (7, 12), heads=17, bias=True, types="pair", sink=True),
    Case("sink beyond 256", (257, 5), heads=5, width=24, sink=True),
)


@dataclass
class Inputs:
    """The arguments of one call, packed."""

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    relations: Relations
    hop_bias: Tensor | None
    radial: nn.Module | None
    bias: Tensor | None
    sink: Tensor | None
    cotangent: Tensor
    layout: PackedLayout = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.layout = self.relations.packed_layout()

    def grads(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and tensor of everything that gets a gradient."""
        tensors = {"q": self.q, "k": self.k, "v": self.v, "bias": self.bias}
        tensors |= {"coordinates": self.relations.coordinates, "hop_bias": self.hop_bias}
        tensors |= {"sink": self.sink}
        yield from ((name, x) for name, x in tensors.items() if x is not None)
        if self.radial is not None and self.relations.coordinates is not None:
            yield from ((f"radial.{name}", x) for name, x in self.radial.named_parameters())

    def double(self) -> Inputs:
        """Return the same numbers in float64."""

        def widen(x: Tensor) -> Tensor:
            return x.detach().double().requires_grad_(x.requires_grad)

        def widen_if_there(x: Tensor | None) -> Tensor | None:
            return None if x is None else widen(x)

        relations = copy.copy(self.relations)
        object.__setattr__(relations, "coordinates", widen_if_there(relations.coordinates))
        q, k, v = (widen(x) for x in (self.q, self.k, self.v))
        radial = None if self.radial is None else copy.deepcopy(self.radial).double()
        return Inputs(
            self.case,
            *(q, k, v),
            relations,
            widen_if_there(self.hop_bias),
            radial,
            widen_if_there(self.bias),
            widen_if_there(self.sink),
            widen(self.cotangent),
        )


def make_inputs(
    case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> Inputs:
    """Draw the inputs of a case: trees with a few rings, coordinates a bond's length apart.

    q, k, v, bias and the cotangent have `dtype`; the learned tables, the sink and the coordinates
    are float32 (float64 for float64), as they are in training.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def draw(*shape: int, as_type: torch.dtype = dtype) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(device, as_type).requires_grad_()

    relations = _make_relations(case, wide, generator, draw).to(device)
    atoms, pairs = sum(case.sizes), sum(n * n for n in case.sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        types = NUM_TYPES if case.types else None
        radial = GaussianRadial(case.heads, case.gaussians, head=case.head, pair_types=types)
    q, k, v = (draw(atoms, case.heads, case.width) for _ in range(3))
    return Inputs(
        case,
        *(q, k, v),
        relations,
        draw(case.heads, case.hop_buckets, as_type=wide) if case.hops else None,
        radial.to(device, wide) if case.distances else None,
        draw(case.heads, pairs) if case.bias else None,
        draw(case.heads, as_type=wide) if case.sink else None,
        draw(atoms, case.heads, case.width).detach(),
    )


def _make_relations(
    case: Case, wide: torch.dtype, generator: torch.Generator, draw: Callable[..., Tensor]
) -> Relations:
    edges, ptr = random_graphs(case.sizes, generator, case.fragments)
    relations = Relations.from_graphs(edges, ptr, layout="packed")
    atoms, pairs = sum(case.sizes), sum(n * n for n in case.sizes)

    def integers(*shape: int) -> Tensor:
        return torch.randint(NUM_TYPES, shape, generator=generator)

    return Relations(
        hops=relations.hops if case.hops else None,
        coordinates=draw(atoms, 3, as_type=wide) if case.distances else None,
        has_3d=torch.arange(len(case.sizes)) % 2 == 0 if case.conformer_missing else None,
        cu_seqlens=relations.cu_seqlens,
        pair_types=integers(pairs) if case.types == "pair" else None,
        atom_types=integers(atoms, 2) if case.types == "atom" else None,
    )


def random_graphs(
    sizes: tuple[int, ...], generator: torch.Generator, fragments: int = 1
) -> tuple[Tensor, Tensor]:
    """Return ``edge_index [2, E]`` and ``ptr [B + 1]`` of random trees with a few rings."""
    columns, start = [torch.zeros(2, 0, dtype=torch.int64)], 0
    for atoms in sizes:
        for piece in torch.arange(start, start + atoms).tensor_split(fragments):
            columns.append(_random_graph(piece, generator))
        start += atoms
    edge_index = torch.cat(columns, 1)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    return torch.cat([edge_index, edge_index.flip(0)], 1), ptr


def _random_graph(atoms: Tensor, generator: torch.Generator) -> Tensor:
    n = len(atoms)
    if n < 2:
        return torch.zeros(2, 0, dtype=torch.int64)
    child = torch.arange(1, n)
    near = (torch.rand(n - 1, generator=generator) * child.clamp(max=4)).long()
    ring = torch.randint(n, (2, n // 8), generator=generator)
    return atoms[torch.cat([torch.stack([child - 1 - near, child]), ring], 1)]


# --- running -----------------------------------------------------------------------------------


def attend(inputs: Inputs, layout: str = "padded", **options: Any) -> Tensor:
    """Run `coattention` in a layout and return its result packed ``[T, H, D]``.

    In the padded layout the padding of every input is NaN (of integers: the largest), so that
    whoever reads it as data is found out.
    """
    shared: dict[str, Any] = {"hop_bias": inputs.hop_bias, "radial": inputs.radial}
    shared |= {"sink": inputs.sink, **options}
    if layout == "packed":
        arguments = (inputs.q, inputs.k, inputs.v)
        return coattention(*arguments, relations=inputs.relations, bias=inputs.bias, **shared)
    place = inputs.layout
    q, k, v = (place.pad(x, math.nan).transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
    bias = inputs.bias
    bias = None if bias is None else place.pad_pairs(bias.t(), math.nan).permute(0, 3, 1, 2)
    relations = padded_with_garbage(inputs.relations)
    out = coattention(q, k, v, relations=relations, bias=bias, **shared)
    return place.pack(out.transpose(1, 2))


def padded_with_garbage(relations: Relations) -> Relations:
    """Return the packed relations padded, with coordinates of NaN wherever no data are promised."""
    padded = relations.padded()
    if relations.coordinates is not None:
        place = relations.packed_layout()
        x = place.pad(relations.coordinates, math.nan)
        if relations.has_3d is not None:
            x = torch.where(relations.has_3d[:, None, None], x, math.nan)
        object.__setattr__(padded, "coordinates", x)
    if relations.hops is not None:
        place = relations.packed_layout()
        object.__setattr__(padded, "hops", place.pad_pairs(relations.hops, fill=7))
    return padded


def attend_eagerly(inputs: Inputs) -> Tensor:
    """The attention as one would write it in the input's own dtype; the yardstick for rounding."""
    place, relations = inputs.layout, inputs.relations.padded()
    q, k, v = (place.pad(x).transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    bias = inputs.bias
    dense = None if bias is None else place.pad_pairs(bias.t()).permute(0, 3, 1, 2)
    terms = hop_term(relations, inputs.hop_bias), radial_term(relations, inputs.radial), dense
    for term in terms:
        logits = logits if term is None else logits + term.to(logits.dtype)
    allowed = place.pair_valid[:, None]
    floor = torch.finfo(logits.dtype).min
    logits = logits.masked_fill(~allowed, floor)
    if inputs.sink is not None:
        sink = inputs.sink.to(logits.dtype)[:, None, None].expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sink], -1)
    weights = logits.softmax(-1)[..., : v.shape[-2]]
    return place.pack((weights @ v).transpose(1, 2))


def with_gradients(run: Callable[[Inputs], Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """Return ``{"out": …, "q": dL/dq, …}`` for the loss ``(out · cotangent).sum()``."""
    out = run(inputs)
    names, tensors = zip(*inputs.grads(), strict=True)
    grads = torch.autograd.grad(out, tensors, inputs.cotangent, allow_unused=True)
    filled = (torch.zeros_like(x) if g is None else g for x, g in zip(tensors, grads, strict=True))
    return {"out": out.detach(), **dict(zip(names, filled, strict=True))}


def hardware_rounding(device: str) -> contextlib.AbstractContextManager[object]:
    """Let a yardstick round as the kernels on that device do: on a GPU, or where one is imitated.

    ``APPROX_ULP`` says that Triton's interpreter does so: `tests/kernels/approx_rounding.py`.
    """
    approximate = device == "cuda" or "APPROX_ULP" in os.environ
    return HardwareRounding() if approximate else contextlib.nullcontext()


class HardwareRounding(TorchDispatchMode):
    """PyTorch with the rounding of a GPU's fast exponential, division and square root.

    CUDA bounds ``ex2.approx``, ``div.full`` and ``sqrt.approx`` by 2 ulp, where PyTorch on a CPU is
    right to half of one. As the yardstick of a kernel that uses them it makes their error count,
    once for each time that the formula takes one. Float32 alone; the noise is the same every time.
    """

    FUNCTIONS = ("exp", "_softmax", "div", "reciprocal", "sqrt", "linalg_vector_norm")
    ULP = 2.0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and move what it gives by up to `ULP`."""
        out = function(*args, **(kwargs or {}))
        if function._opname not in self.FUNCTIONS or out.dtype != torch.float32:
            return out
        generator = torch.Generator(out.device).manual_seed(out.numel())
        noise = 2 * torch.rand(out.shape, generator=generator, device=out.device) - 1
        return out * (1 + self.ULP * 2.0**-23 * noise)


# --- accuracy ----------------------------------------------------------------------------------

# How many times the error of the yardstick is allowed: 2 for results, 3 for gradients of the
# inputs, 5 for sums over all pairs of a batch (tables and the radial function).
FACTORS = {"out": 2, "q": 3, "k": 3, "v": 3, "bias": 3, "coordinates": 5}
TABLE_FACTOR = 5


def assert_accurate(
    actual: Tensor,
    yardstick: Tensor,
    exact: Tensor,
    factor: float = 2,
    name: str = "result",
    beside: Sequence[tuple[Tensor, Tensor]] = (),
) -> None:
    """Hold one tensor to ``factor · max|yardstick - exact| + 2 rounding bands``.

    Parameters
    ----------
    actual
        What is tested.
    yardstick
        What plain PyTorch computes in the same dtype.
    exact
        The float64 reference.
    factor
        2 for results, 3 for input gradients, 5 for table gradients.
    name
        What to call it in the message.
    beside
        Further yardsticks with their exact values, whose errors count as well: for a sum whose
        terms cancel, a sum of terms of the same size that do not; other roundings of the same sum.

    Raises
    ------
    AssertionError
        With the error, the budget, and where the largest error is.
    """
    assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, expected {exact.shape}"
    if actual.numel() == 0:
        return
    actual, yardstick, exact = actual.detach(), yardstick.detach(), exact.detach()
    error = (actual.double() - exact.double()).abs()
    assert bool(error.isfinite().all()), f"{name}: not finite where the reference is"
    theirs = (yardstick.double() - exact.double()).abs().max()
    for other, value in beside:
        theirs = torch.maximum(theirs, (other.double() - value.double()).abs().max())
    rounded = exact.to(actual.dtype)
    band = ((rounded + 0.3 - 0.3).double() - rounded.double()).abs().max()
    budget = float(factor * theirs + 2 * band)
    worst = float(error.max())
    at = torch.unravel_index(error.argmax(), error.shape)
    assert worst <= budget, (
        f"{name}: error {worst:.3g} at {[int(i) for i in at]} exceeds {budget:.3g} "
        f"= {factor} x {float(theirs):.3g} (plain PyTorch) + 2 x {float(band):.3g} (rounding)"
    )


def one_rounding_away(inputs: Inputs, draw: int) -> Inputs:
    """Return the inputs with every number of q moved by a rounding, up or down by `draw`."""
    generator = torch.Generator().manual_seed(draw)
    sign = torch.rand(inputs.q.shape, generator=generator).sub(0.5).sign().to(inputs.q)
    q = inputs.q.detach() * (1 + torch.finfo(inputs.q.dtype).eps * sign)
    return replace(inputs, q=q.requires_grad_(inputs.q.requires_grad))


def assert_all_accurate(
    actual: dict[str, Tensor],
    yardstick: dict[str, Tensor],
    exact: dict[str, Tensor],
    others: Sequence[dict[str, Tensor]] = (),
) -> None:
    """Hold every tensor of `with_gradients` to its budget.

    ``others``: what PyTorch computes from inputs `one_rounding_away`. A gradient of the radial
    function is a few numbers, each a sum over all pairs, and one rounding of such a sum says
    little: over eight draws of q, k and v PyTorch's error went from 6e-7 to 5e-6, and ours alike.
    """
    assert actual.keys() == exact.keys()
    for name, value in actual.items():
        factor = FACTORS.get(name, TABLE_FACTOR)
        # The last bias of the radial head moves all logits of a row alike: its gradient is 0, and
        # what is left of it is the rounding of the pairs' terms. The weight's terms are as large.
        weight = name.replace(".bias", ".weight")
        beside = [(yardstick[weight], exact[weight])] if weight != name else []
        if name.startswith("radial."):
            beside += [(other[name], exact[name]) for other in others]
        assert_accurate(value, yardstick[name], exact[name], factor, name, beside)


def required_backends() -> frozenset[str]:
    """Return the backends that must not be skipped: ``COLLAMO_TEST_BACKENDS=reference,cpu,…``."""
    names = os.environ.get("COLLAMO_TEST_BACKENDS", "")
    return frozenset(name.strip() for name in names.split(",") if name.strip())


def device_of(backend: str) -> str:
    """Return where a backend is tested: on the GPU where it needs one and one is there."""
    on_gpu = backend in ("cuda", "triton") and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"
